"""The table of losses, and the modules that put a similarity and a loss together.

The three-term mixup needs only a function of the batch and its labels, so it goes with every loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from idml_zoo.losses import pairs
from idml_zoo.losses.common import Criterion, checked_settings, over_labels
from idml_zoo.losses.probabilistic import LossPrediction, VMFProxyLoss
from idml_zoo.losses.proxies import ProxyLoss, proxy_anchor, proxy_nca
from idml_zoo.registry import losses, unknown_name
from idml_zoo.similarity import (
    TAU,
    cosine,
    introspective_distance,
    introspective_factor,
    introspective_similarity,
)
from idml_zoo.types import Embedding

PAIR_SIMILARITIES = ("cosine", "introspective")
MATRICES = ("similarity", "distance", "squared")


@dataclass(frozen=True)
class LossSpec:
    """One loss of the table.

    Attributes:
        title: its name in the literature, with the source.
        matrix: what it is a function of: "similarity", "distance" or "squared" (distance).
        proxies: whether it compares the batch with learned proxies; False: with itself.
        similarities: those it can be combined with.
        function: ``function(matrix, labels, **settings)``, of a ``(B, B)`` matrix of the images among themselves or a
            ``(B, C)`` one of images and proxies. Proxies can be sampled if it has an argument ``weight`` ``(C,)``: how
            many proxies each column stands for.
        module: in place of ``function``, for a loss with parameters or a state: ``module(num_classes, embedding_dim,
            **settings)`` makes a criterion that sees the embeddings themselves. It gets the ``similarity`` and ``tau``
            too where it has arguments of these names.

    Raises:
        ValueError: an unknown matrix; neither a function nor a module, or both.
    """

    title: str
    matrix: str
    proxies: bool
    similarities: tuple[str, ...] = PAIR_SIMILARITIES
    function: Callable[..., Tensor] | None = None
    module: Callable[..., Criterion] | None = None

    def __post_init__(self) -> None:
        if self.matrix not in MATRICES:
            raise unknown_name(f"matrix for {self.title}", self.matrix, MATRICES)
        if (self.function is None) == (self.module is None):
            raise ValueError(f"{self.title}: give a function of the matrix, or a module of its own")


class _BatchLoss(Criterion):
    """A loss over the pairs of a batch: what :class:`PairLoss` and :class:`MarginLoss` share.

    Attributes:
        kind: what the loss is a function of: "similarity", "distance" or "squared".
        similarity: "cosine" or "introspective".
        tau: temperature of the introspective metric.
    """

    def __init__(self, kind: str, similarity: str, tau: float) -> None:
        super().__init__()
        self.kind, self.similarity, self.tau = kind, similarity, tau

    def matrix(self, embedding: Embedding) -> Tensor:
        """Returns ``(B, B)`` what the loss is a function of: S, D or D² of the batch with itself, full precision."""
        plain = self.similarity == "cosine"
        if self.kind == "similarity":
            return cosine(embedding, embedding) if plain else introspective_similarity(embedding, embedding, self.tau)
        distance = _euclidean(embedding) if plain else introspective_distance(embedding, embedding, self.tau)
        return distance if self.kind == "distance" else distance.square()

    @torch.no_grad()
    def statistics(self, embedding: Embedding, labels: Tensor) -> dict[str, Tensor]:
        """Returns those of :class:`ProxyLoss`, over the batch's pairs; a factor is 1 where there is no such pair."""
        if self.similarity == "cosine":
            factor = torch.ones(len(embedding), len(embedding), device=embedding.device)
        else:
            factor = introspective_factor(embedding, embedding, self.tau)
        same = labels[:, None] == labels
        other = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        positive, negative = (same & other).to(factor.dtype), (~same).to(factor.dtype)
        return {
            "level": embedding.level.float().mean(),
            "factor_positive": _mean_of(factor, positive),
            "factor_negative": _mean_of(factor, negative),
        }


class PairLoss(_BatchLoss):
    """A loss of the table that is a function of the batch's pairs, with a similarity of one's choice.

    Args:
        loss: "contrastive", "triplet", "fastap", "multi_similarity" (see :mod:`idml_zoo.losses.pairs`), or another of
            the loss registry whose record has a function and no proxies.
        embedding_dim: D; no such loss needs it, every criterion of the table takes it.
        similarity: "cosine" (plain; distances are Euclidean between unit vectors) or "introspective".
        tau: temperature of the introspective metric.
        settings: of the loss's function.

    Raises:
        ValueError: another loss of the table; an unknown loss, similarity or setting (the nearest names are given).
    """

    def __init__(
        self,
        loss: str,
        embedding_dim: int,
        similarity: str = "introspective",
        tau: float = TAU,
        **settings: Any,
    ) -> None:
        spec: LossSpec = losses[loss]
        if spec.proxies or spec.function is None:
            raise ValueError(f"{loss} compares with proxies, or is a module of its own; use create_criterion")
        if similarity not in spec.similarities:
            raise unknown_name(f"similarity for {loss}", similarity, spec.similarities)
        super().__init__(spec.matrix, similarity, tau)
        self.loss, self.embedding_dim = loss, embedding_dim
        self.settings = checked_settings(loss, spec.function, settings)

    def forward(
        self, embedding: Embedding, labels: Tensor, partners: Tensor | None = None, weight: float = 1.0
    ) -> Tensor:
        """Returns the loss of B images with ``(B,)`` int64 labels, a scalar; ``partners`` as in :class:`ProxyLoss`."""
        matrix = self.matrix(embedding)
        function = losses[self.loss].function
        return over_labels(lambda y: function(matrix, y, **self.settings), labels, partners, weight)


class MarginLoss(_BatchLoss):
    """Margin loss with distance-weighted negatives (:func:`idml_zoo.losses.pairs.margin_loss`) and a learned boundary.

    Args:
        num_classes: not needed; every module of the table takes it.
        embedding_dim: D ≥ 3, for the density of distances on the sphere.
        similarity: "cosine" or "introspective".
        tau: temperature of the introspective metric.
        boundary: b before training.
        margin, cutoff, nonzero_cutoff: of the function.
    """

    draws: Tensor  # of negatives so far

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        similarity: str = "introspective",
        tau: float = TAU,
        boundary: float = 1.2,
        margin: float = 0.2,
        cutoff: float = 0.5,
        nonzero_cutoff: float = 1.4,
    ) -> None:
        if similarity not in PAIR_SIMILARITIES:
            raise unknown_name("similarity for margin", similarity, PAIR_SIMILARITIES)
        super().__init__("distance", similarity, tau)
        self.settings = {"dim": embedding_dim, "margin": margin, "cutoff": cutoff, "nonzero_cutoff": nonzero_cutoff}
        self.boundary = nn.Parameter(torch.tensor(float(boundary)))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(
        self, embedding: Embedding, labels: Tensor, partners: Tensor | None = None, weight: float = 1.0
    ) -> Tensor:
        """Returns the loss of B images with ``(B,)`` int64 labels, a scalar; ``partners`` as in :class:`ProxyLoss`."""
        matrix = self.matrix(embedding)
        # negatives are drawn by the semantic distance: the density on the sphere is one of unit vectors [D]
        semantic = matrix.detach() if self.similarity == "cosine" else _euclidean(embedding.detach())
        # every rank has the whole batch, and must draw the same negatives for it, also after an interruption
        generator = torch.Generator().manual_seed(int(self.draws))
        self.draws += 1

        def loss(y: Tensor) -> Tensor:
            options: dict[str, Any] = {**self.settings, "boundary": self.boundary, "generator": generator}
            return pairs.margin_loss(matrix, semantic, y, **options)

        return over_labels(loss, labels, partners, weight)

    @torch.no_grad()
    def statistics(self, embedding: Embedding, labels: Tensor) -> dict[str, Tensor]:
        """Returns those of :class:`PairLoss`, and ``boundary``, the learned b."""
        return {**super().statistics(embedding, labels), "boundary": self.boundary.detach()}


def _mean_of(factor: Tensor, chosen: Tensor) -> Tensor:
    """Returns the mean over the chosen pairs; 1, as if uncertainty did nothing, where there is none."""
    count = chosen.sum()
    return torch.where(count > 0, (factor * chosen).sum() / count.clamp(min=1), 1.0)


def _euclidean(embedding: Embedding) -> Tensor:
    """Returns ``(B, B)`` ‖ŝ_i − ŝ_j‖, with the floor that keeps the gradient of equal images finite."""
    return (2 - 2 * cosine(embedding, embedding)).clamp(min=1e-8).sqrt()


for _name, _spec in {
    "contrastive": LossSpec("Contrastive (Hadsell et al., CVPR 2006)", "distance", False, function=pairs.contrastive),
    "triplet": LossSpec("Triplet, semi-hard (Schroff et al., CVPR 2015)", "distance", False, function=pairs.triplet),
    "margin": LossSpec(
        "Margin, distance-weighted sampling (Wu et al., ICCV 2017)", "distance", False, module=MarginLoss
    ),
    "fastap": LossSpec("FastAP (Cakir et al., CVPR 2019)", "squared", False, function=pairs.fastap),
    "multi_similarity": LossSpec(
        "Multi-Similarity (Wang et al., CVPR 2019)", "similarity", False, function=pairs.multi_similarity
    ),
    "proxy_nca": LossSpec("ProxyNCA (Movshovitz-Attias et al., ICCV 2017)", "squared", True, function=proxy_nca),
    "proxy_anchor": LossSpec(
        "Proxy Anchor (Kim et al., CVPR 2020)",
        "similarity",
        True,
        (*PAIR_SIMILARITIES, "released"),
        function=proxy_anchor,
    ),
    "vmf": LossSpec(
        "vMF expected-likelihood proxies (Kirchhof et al., ECCV 2022)",
        "similarity",
        True,
        ("cosine",),
        module=VMFProxyLoss,
    ),
    "loss_prediction": LossSpec(
        "Proxy Anchor with loss prediction (Yoo and Kweon, CVPR 2019)",
        "similarity",
        True,
        ("cosine",),
        module=LossPrediction,
    ),
}.items():
    losses.add(_name, _spec)


def create_criterion(
    loss: str,
    num_classes: int,
    embedding_dim: int,
    similarity: str = "introspective",
    *,
    tau: float = TAU,
    proxy_uncertainty: str = "zero",
    **settings: Any,
) -> Criterion:
    """Returns the module of a loss of the table, with a similarity of one's choice.

    Args:
        loss: a name of the loss registry.
        num_classes: C, for losses with proxies.
        embedding_dim: D.
        similarity: "cosine", "introspective", or "released" (Proxy Anchor only).
        tau, proxy_uncertainty: of the introspective metric.
        settings: of the loss's function: margins, scales, bins; and ``samples`` of proxies, see :class:`ProxyLoss`.

    Returns:
        ``criterion(embedding, labels) -> scalar``, with ``criterion.statistics(embedding, labels)``.

    Raises:
        ValueError: an unknown loss, similarity or setting (the nearest names are given), or a contradiction.
    """
    spec: LossSpec = losses[loss]
    if similarity not in spec.similarities:
        raise unknown_name(f"similarity for {loss}", similarity, spec.similarities)
    if spec.module:
        options = checked_settings(loss, spec.module, settings)
        arguments = inspect.signature(spec.module).parameters
        options |= {k: v for k, v in {"similarity": similarity, "tau": tau}.items() if k in arguments}
        return spec.module(num_classes, embedding_dim, **options)
    if spec.proxies:
        return ProxyLoss(num_classes, embedding_dim, similarity, loss, tau, proxy_uncertainty, **settings)
    return PairLoss(loss, embedding_dim, similarity, tau, **settings)
