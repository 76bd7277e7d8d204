"""The table of losses, and the modules that put a similarity and a loss together.

The three-term mixup asks of a loss only that it is a function of the batch and its labels, so every one admits it.
"""

from __future__ import annotations

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
        proxies: whether it compares with learned proxies, instead of the batch with itself.
        similarities: what it can be combined with.
        function: ``function(matrix, labels, **settings)``, of a ``(B, B)`` matrix of the images among themselves or a
            ``(B, C)`` one of images and proxies. Proxies can be sampled if it has an argument ``weight`` ``(C,)``: how
            many proxies each column stands for.
        module: in its place, for a loss with parameters of its own: ``module(num_classes, embedding_dim, **settings)``
            makes a criterion that sees the embeddings themselves.
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


for _name, _spec in {
    "contrastive": LossSpec("Contrastive (Hadsell et al., CVPR 2006)", "distance", False, function=pairs.contrastive),
    "triplet": LossSpec("Triplet, semi-hard (Schroff et al., CVPR 2015)", "distance", False, function=pairs.triplet),
    "margin": LossSpec(
        "Margin, distance-weighted sampling (Wu et al., ICCV 2017)", "distance", False, function=pairs.margin_loss
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


class PairLoss(Criterion):
    """A loss over the pairs of a batch, with a similarity of one's choice.

    Args:
        loss: "contrastive", "triplet", "margin", "fastap" or "multi_similarity"; see :mod:`idml_zoo.losses.pairs`.
        embedding_dim: D; the sampling of "margin" needs it.
        similarity: "cosine" (plain; distances are Euclidean between unit vectors) or "introspective".
        tau: temperature of the introspective metric.
        settings: of the loss's function.

    "margin" learns its boundary b, which starts at the setting ``boundary`` (1.2).
    """

    draws: Tensor  # of negatives so far; margin alone has it

    def __init__(
        self,
        loss: str,
        embedding_dim: int,
        similarity: str = "introspective",
        tau: float = TAU,
        **settings: Any,
    ) -> None:
        super().__init__()
        spec: LossSpec = losses[loss]
        if spec.proxies or spec.function is None:
            raise ValueError(f"{loss} compares with proxies, or is a module of its own; use create_criterion")
        if similarity not in spec.similarities:
            raise unknown_name(f"similarity for {loss}", similarity, spec.similarities)
        self.loss, self.similarity, self.tau, self.embedding_dim = loss, similarity, tau, embedding_dim
        self.settings = checked_settings(loss, spec.function, settings)
        self.boundary: nn.Parameter | None = None
        if loss == "margin":
            self.boundary = nn.Parameter(torch.tensor(float(self.settings.pop("boundary", 1.2))))
            self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def matrix(self, embedding: Embedding) -> Tensor:
        """``(B, B)`` what the loss is a function of: S, D or D² of the batch with itself, full precision."""
        kind = losses[self.loss].matrix
        plain = self.similarity == "cosine"
        if kind == "similarity":
            return cosine(embedding, embedding) if plain else introspective_similarity(embedding, embedding, self.tau)
        distance = _euclidean(embedding) if plain else introspective_distance(embedding, embedding, self.tau)
        return distance if kind == "distance" else distance.square()

    def forward(
        self, embedding: Embedding, labels: Tensor, partners: Tensor | None = None, weight: float = 1.0
    ) -> Tensor:
        """The loss of B images with ``(B,)`` int64 labels, a scalar; ``partners`` as in :class:`ProxyLoss`."""
        matrix = self.matrix(embedding)
        extra: tuple[Any, ...] = ()
        options = dict(self.settings)
        if self.boundary is not None:
            # negatives are drawn by the semantic distance: the density on the sphere is one of unit vectors [D]
            extra = (matrix.detach() if self.similarity == "cosine" else _euclidean(embedding.detach()),)
            options |= {"dim": self.embedding_dim, "boundary": self.boundary}
            # every rank has the whole batch, and must draw the same negatives for it, also after an interruption
            options["generator"] = torch.Generator().manual_seed(int(self.draws))
            self.draws += 1
        function = losses[self.loss].function
        return over_labels(lambda y: function(matrix, *extra, y, **options), labels, partners, weight)

    @torch.no_grad()
    def statistics(self, embedding: Embedding, labels: Tensor) -> dict[str, Tensor]:
        """As those of :class:`ProxyLoss`, over the batch's pairs, 1 where it has none; ``boundary`` of "margin"."""
        if self.similarity == "cosine":
            factor = torch.ones(len(embedding), len(embedding), device=embedding.device)
        else:
            factor = introspective_factor(embedding, embedding, self.tau)
        same = labels[:, None] == labels
        other = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        positive, negative = (same & other).to(factor.dtype), (~same).to(factor.dtype)
        found = {
            "level": embedding.level.float().mean(),
            "factor_positive": _mean_of(factor, positive),
            "factor_negative": _mean_of(factor, negative),
        }
        return found if self.boundary is None else found | {"boundary": self.boundary.detach()}


def _mean_of(factor: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the chosen pairs; 1, as if nothing acted, where there is none."""
    count = chosen.sum()
    return torch.where(count > 0, (factor * chosen).sum() / count.clamp(min=1), 1.0)


def _euclidean(embedding: Embedding) -> Tensor:
    """``(B, B)`` ‖ŝ_i − ŝ_j‖, with the floor that keeps the gradient of equal images finite."""
    return (2 - 2 * cosine(embedding, embedding)).clamp(min=1e-8).sqrt()


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
    """The module of a loss of the table, with a similarity of one's choice.

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
        ValueError: unknown loss, similarity or setting (the nearest names are given), or a combination that is none.
    """
    spec: LossSpec = losses[loss]
    if similarity not in spec.similarities:
        raise unknown_name(f"similarity for {loss}", similarity, spec.similarities)
    if spec.module:
        return spec.module(num_classes, embedding_dim, **checked_settings(loss, spec.module, settings))
    if spec.proxies:
        return ProxyLoss(num_classes, embedding_dim, similarity, loss, tau, proxy_uncertainty, **settings)
    return PairLoss(loss, embedding_dim, similarity, tau, **settings)
