"""The introspective metric for pytorch-metric-learning (PML), whose losses and miners see one tensor for each image.

PML is optional; :func:`pack` and :func:`unpack` work without it. With it, its catalogue becomes introspective::

    from pytorch_metric_learning.losses import TripletMarginLoss
    from idml_zoo.losses.bridge import IntrospectiveDistance, pack

    loss = TripletMarginLoss(margin=0.1, distance=IntrospectiveDistance())
    loss(pack(model(images)), labels).backward()

``IntrospectiveDistance(tau=5.0)`` is D = α·exp(−β/(τα)) [R], for losses and miners over a distance.
``IntrospectiveSimilarity(tau=5.0)`` is S = 1 − (1 − c)·exp(−β/(τα)) [D] and stands where PML has ``CosineSimilarity``
(Multi-Similarity, NT-Xent, Circle, ...). A loss of PML with weights or proxies takes ``embedding_size=2 * D``, and
learns an uncertainty for each of them. Losses that ask for Euclidean geometry (PML's FastAP, Angular) refuse both.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from idml_zoo.similarity import ALPHA_FLOOR, TAU, check_tau, introspective_distance, introspective_similarity
from idml_zoo.types import Embedding


def pack(embedding: Embedding) -> Tensor:
    """Returns ``(B, 2D)`` [semantic | uncertainty] of B images, in the embedding's dtype."""
    return torch.cat([embedding.semantic, embedding.uncertainty], 1)


def unpack(packed: Tensor) -> Embedding:
    """Returns the embedding of :func:`pack`; raises ValueError for an odd width or a first half without unit norm."""
    return Embedding(*_halves(packed))


def _halves(packed: Tensor) -> tuple[Tensor, Tensor]:
    if packed.ndim != 2 or packed.shape[1] % 2:
        raise ValueError(
            f"expected (B, 2D), the semantic and the uncertainty embedding side by side, got {tuple(packed.shape)}; "
            "make it with idml_zoo.losses.bridge.pack(embedding)"
        )
    semantic, uncertainty = packed.chunk(2, dim=1)
    return semantic, uncertainty


def _embedding(packed: Tensor) -> Embedding:
    """Unpacks in full precision and normalises the semantic half: PML averages images and learns proxies."""
    with torch.autocast(packed.device.type, enabled=False):
        semantic, uncertainty = _halves(packed if packed.dtype == torch.float64 else packed.float())
        return Embedding(F.normalize(semantic), uncertainty)


def _row_by_row(first: Tensor, second: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Returns ``(B,)`` α and the factor exp(−β/(τα)) of row i with row i, without the matrix."""
    a, b = _embedding(first), _embedding(second)
    alpha = torch.linalg.vector_norm(a.semantic - b.semantic, dim=1).clamp(min=ALPHA_FLOOR)
    beta = torch.linalg.vector_norm(a.uncertainty + b.uncertainty, dim=1)
    return alpha, torch.exp(-beta / (tau * alpha))


def _define() -> dict[str, Any]:
    """Returns the two classes by name. They cannot stand at module level: their bases are PML's."""
    try:
        distances = importlib.import_module("pytorch_metric_learning.distances")
    except ImportError as error:
        raise ImportError(
            f"the introspective distances need pytorch-metric-learning, which cannot be imported ({error}): "
            "pip install pytorch-metric-learning"
        ) from error
    classes = (_distance_class(distances.BaseDistance), _similarity_class(distances.CosineSimilarity))
    return {c.__name__: c for c in classes}


def _distance_class(base: Any) -> type:
    class IntrospectiveDistance(base):
        """D = α·exp(−β/(τα)) [R], in [0, 2], of packed embeddings; float32 also inside autocast.

        Args:
            tau: temperature τ > 0; PML's ``LpDistance()`` as τ → ∞.
        """

        __qualname__ = "IntrospectiveDistance"

        def __init__(self, tau: float = TAU, **kwargs: Any) -> None:
            if fixed := {"normalize_embeddings", "p", "power", "is_inverted"} & kwargs.keys():
                raise TypeError(f"{min(fixed)} cannot be chosen: the introspective metric fixes it")
            # PML's own normalisation would take the uncertainty into the norm
            super().__init__(normalize_embeddings=False, p=1, power=1, is_inverted=False, **kwargs)
            self.tau = _checked(tau)

        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor | None) -> Tensor:
            """Returns ``(B, M)`` distances of ``(B, 2D)`` and ``(M, 2D)``."""
            ref_emb = query_emb if ref_emb is None else ref_emb
            return introspective_distance(_embedding(query_emb), _embedding(ref_emb), self.tau)

        def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            """Returns ``(B,)`` distances, row i with row i."""
            alpha, factor = _row_by_row(query_emb, ref_emb, self.tau)
            return alpha * factor

    return IntrospectiveDistance


def _similarity_class(cosine: Any) -> type:
    class IntrospectiveSimilarity(cosine):
        """S = 1 − (1 − c)·exp(−β/(τα)) [D], in [-1, 1], of packed embeddings; float32 also inside autocast.

        A ``CosineSimilarity`` to PML, several of whose losses accept nothing else.

        Args:
            tau: temperature τ > 0; PML's ``CosineSimilarity()`` as τ → ∞.
        """

        __qualname__ = "IntrospectiveSimilarity"

        def __init__(self, tau: float = TAU, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.tau = _checked(tau)

        def normalize(self, embeddings: Tensor, dim: int = 1, **kwargs: Any) -> Tensor:
            """Returns them as they are: unpacking normalises the semantic half, and the uncertainty must stay."""
            return embeddings

        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor | None) -> Tensor:
            """Returns ``(B, M)`` similarities of ``(B, 2D)`` and ``(M, 2D)``."""
            ref_emb = query_emb if ref_emb is None else ref_emb
            return introspective_similarity(_embedding(query_emb), _embedding(ref_emb), self.tau)

        def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            """Returns ``(B,)`` similarities (PML's name for it), row i with row i."""
            alpha, factor = _row_by_row(query_emb, ref_emb, self.tau)
            return 1 - alpha.square() / 2 * factor

    return IntrospectiveSimilarity


def _checked(tau: float) -> float:
    check_tau(tau)
    return tau


def __getattr__(name: str) -> Any:
    if name not in ("IntrospectiveDistance", "IntrospectiveSimilarity"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals().update(_define())  # once, so that each is one class, which pickle finds here
    return globals()[name]
