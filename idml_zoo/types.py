"""The value objects that pass between the stages: an embedding of images, and their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from idml_zoo.reliability.risk import Limit

# How far ‖ŝ‖ may lie from 1: rounding of a normalisation, by dtype.
_NORM_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}


class EmbeddingError(ValueError):
    """An embedding that is not finite or has not unit norm: a network that diverged, or broken weights or images."""


@dataclass(frozen=True)
class Embedding:
    """What IDML says of a batch of images.

    Attributes:
        semantic: ``(B, D)``, L2-normalised (unit norm), floating point.
        uncertainty: ``(B, D)``, not normalised; all zeros where the model has no uncertainty.
        semantic_norm: ``(B,)`` norm of the semantic vector before its normalisation, a free baseline for
            uncertainty; None where it is unknown.

    Shapes, dtype and device are checked on construction. The ranges (finite, unit norm) are checked there too,
    except for tensors that carry a graph or live on an accelerator, where looking at values would stall the step;
    search and evaluation check those with :meth:`check_values`.

    Raises:
        ValueError: naming the field, what was found and what was expected; of values an :class:`EmbeddingError`.
    """

    semantic: Tensor
    uncertainty: Tensor
    semantic_norm: Tensor | None = None

    def __post_init__(self) -> None:
        s, u, n = self.semantic, self.uncertainty, self.semantic_norm
        if s.ndim != 2 or not s.is_floating_point():
            raise ValueError(f"semantic must be a floating (B, D) tensor, got {s.dtype} of shape {tuple(s.shape)}")
        if u.shape != s.shape or u.dtype != s.dtype or u.device != s.device:
            raise ValueError(
                f"uncertainty must have the shape, dtype and device of semantic ({tuple(s.shape)}, {s.dtype}, "
                f"{s.device}), got {tuple(u.shape)}, {u.dtype}, {u.device}"
            )
        if n is not None and n.shape != s.shape[:1]:
            raise ValueError(f"semantic_norm must have shape ({s.shape[0]},), got {tuple(n.shape)}")
        if not (torch.compiler.is_compiling() or s.requires_grad or u.requires_grad) and s.device.type == "cpu":
            self.check_values()

    def check_values(self) -> Embedding:
        """Returns self if every value is finite and every semantic vector has unit norm, else raises EmbeddingError."""
        for name, value in (("semantic", self.semantic), ("uncertainty", self.uncertainty)):
            bad = ~torch.isfinite(value.detach()).all(1)
            if bad.any():
                raise EmbeddingError(
                    f"{name} has NaN or inf in {int(bad.sum())} of {len(value)} rows (first: row "
                    f"{int(bad.nonzero()[0])}); the network diverged or its weights or images are broken"
                )
        norm = torch.linalg.vector_norm(
            self.semantic.detach(), dim=1, dtype=torch.promote_types(self.dtype, torch.float32)
        )
        off = (norm - 1).abs() > _NORM_TOLERANCE[self.dtype]
        if off.any():
            row = int(off.nonzero()[0])
            raise EmbeddingError(
                f"semantic must have unit norm, but {int(off.sum())} of {len(off)} rows do not (row {row}: norm "
                f"{float(norm[row]):.4g}); apply torch.nn.functional.normalize, and look for all-zero features"
            )
        return self

    @property
    def level(self) -> Tensor:
        """``(B,)`` uncertainty level ‖u‖₂ of each image, ≥ 0."""
        return torch.linalg.vector_norm(self.uncertainty, dim=1)

    @property
    def dim(self) -> int:
        """D, the width of the semantic embedding."""
        return self.semantic.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.semantic.dtype

    @property
    def device(self) -> torch.device:
        return self.semantic.device

    def __len__(self) -> int:
        return self.semantic.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Embedding:
        """Returns the embedding whose every field is the function of this one's."""
        norm = None if self.semantic_norm is None else function(self.semantic_norm)
        return Embedding(function(self.semantic), function(self.uncertainty), norm)

    def __getitem__(self, rows: Tensor | slice) -> Embedding:
        """The rows of a slice, a boolean mask or an index tensor. (One integer would lose the batch dimension.)"""
        if isinstance(rows, int):
            raise TypeError(f"index an Embedding by slice, mask or index tensor, for example e[{rows}:{rows + 1}]")
        return self.map(lambda t: t[rows])

    def to(self, *args: object, **kwargs: object) -> Embedding:
        """As ``Tensor.to``, for every field."""
        return self.map(lambda t: t.to(*args, **kwargs))  # type: ignore[call-overload]

    def detach(self) -> Embedding:
        return self.map(Tensor.detach)

    @staticmethod
    def cat(parts: Sequence[Embedding]) -> Embedding:
        """One embedding of all the parts' images, in order. Norms are kept if every part has them."""
        if not parts:
            raise ValueError("no embeddings to concatenate")
        norms = [p.semantic_norm for p in parts if p.semantic_norm is not None]
        return Embedding(
            torch.cat([p.semantic for p in parts]),
            torch.cat([p.uncertainty for p in parts]),
            torch.cat(norms) if len(norms) == len(parts) else None,
        )


@dataclass(frozen=True)
class RetrievalTask:
    """What is searched in what, and which answers are correct. Made by :meth:`idml_zoo.data.split.Split.task`.

    Attributes:
        queries: embedding of Q images.
        gallery: embedding of M images; the same object as ``queries`` where ``same_images``.
        query_labels: ``(Q,)`` int64 class of each query.
        gallery_labels: ``(M,)`` int64 class of each gallery image; one of the query's class is a positive.
        same_images: whether queries and gallery are the same images in the same order: no query may find itself.

    Raises:
        ValueError: numbers of embeddings and labels that differ, or ``same_images`` of unlike sizes.
    """

    queries: Embedding
    gallery: Embedding
    query_labels: Tensor
    gallery_labels: Tensor
    same_images: bool

    def __post_init__(self) -> None:
        for name, embedding, labels in (
            ("queries", self.queries, self.query_labels),
            ("gallery", self.gallery, self.gallery_labels),
        ):
            if len(embedding) != len(labels):
                raise ValueError(f"{name}: {len(embedding)} embeddings but {len(labels)} labels")
        if self.same_images and len(self.queries) != len(self.gallery):
            raise ValueError(
                f"same_images needs the same images twice, got {len(self.queries)} queries and {len(self.gallery)} in "
                "the gallery"
            )

    @classmethod
    def of(cls, embedding: Embedding, labels: Tensor, is_query: Tensor | None = None) -> RetrievalTask:
        """Returns the task of one set of images.

        Args:
            embedding: of N images.
            labels: ``(N,)`` int64.
            is_query: ``(N,)`` bool; these are searched in all the others. None: every image in all the others.
        """
        if len(embedding) != len(labels):
            raise ValueError(f"{len(embedding)} embeddings but {len(labels)} labels")
        if is_query is None:
            return cls(embedding, embedding, labels, labels, True)
        return cls(embedding[is_query], embedding[~is_query], labels[is_query], labels[~is_query], False)


@dataclass(frozen=True)
class Neighbours:
    """The nearest gallery images of each query, nearest first.

    Attributes:
        indices: ``(N, k)`` int64 rows of the gallery; never the query itself when it was searched in its own set.
        scores: ``(N, k)`` float32, larger is nearer: the cosine, or minus the introspective distance.
        excludes_self: whether queries and gallery were the same images, each query removed from its own list.
        declined: ``(N,)`` bool, queries too uncertain to be answered; None where nothing was declined.
        confidence: ``(N,)`` float32 in [0, 1], probability that the nearest neighbour is of the query's class; None
            where it was not asked for.
        unknown: ``(N,)`` float32 in [0, 1], score that the query's class is not in the gallery; None as above.
        limit: what ``declined`` promises, and on which assumption; None without a limit on the risk.
    """

    indices: Tensor
    scores: Tensor
    excludes_self: bool = False
    declined: Tensor | None = None
    confidence: Tensor | None = None
    unknown: Tensor | None = None
    limit: Limit | None = None

    def __post_init__(self) -> None:
        if self.indices.ndim != 2 or self.indices.dtype != torch.int64:
            raise ValueError(f"indices must be int64 (N, k), got {self.indices.dtype} {tuple(self.indices.shape)}")
        if self.scores.shape != self.indices.shape:
            raise ValueError(
                f"scores must have the shape of indices {tuple(self.indices.shape)}, got {tuple(self.scores.shape)}"
            )

    def __len__(self) -> int:
        return self.indices.shape[0]

    @property
    def k(self) -> int:
        return self.indices.shape[1]
