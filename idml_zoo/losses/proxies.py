"""Losses against one learned proxy for each class."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idml_zoo.losses.common import Criterion, checked_settings, over_labels
from idml_zoo.registry import losses, unknown_name
from idml_zoo.similarity import (
    TAU,
    cosine,
    introspective_distance,
    introspective_factor,
    introspective_similarity,
    released_factor,
    released_similarity,
)
from idml_zoo.types import Embedding

_ALL = slice(None)


def proxy_anchor(
    similarity: Tensor, labels: Tensor, scale: float = 32.0, margin: float = 0.1, weight: Tensor | None = None
) -> Tensor:
    """Proxy Anchor (Kim et al., CVPR 2020) over a similarity matrix.

        L = 1/|P⁺| Σ_{p∈P⁺} log(1 + Σ_{x∈X_p⁺} e^{−α(s−δ)}) + 1/|P| Σ_{p∈P} log(1 + Σ_{x∈X_p⁻} e^{α(s+δ)})

    P⁺ are the proxies with a positive in the batch.

    Args:
        similarity: ``(B, C)`` s of B images and C proxies; float32 or float64.
        labels: ``(B,)`` int64 in [0, C).
        scale: α > 0.
        margin: δ.
        weight: ``(C,)`` how many proxies each column stands for, where columns are a sample; None for one each.

    Returns:
        The loss, a scalar ≥ 0.

    Raises:
        ValueError: if the shapes disagree.
    """
    if similarity.ndim != 2 or labels.shape != similarity.shape[:1]:
        raise ValueError(f"expected (B, C) and (B,), got {tuple(similarity.shape)} and {tuple(labels.shape)}")
    positive = F.one_hot(labels, similarity.shape[1]).bool()
    # log(1 + Σ e^z) = softplus(logsumexp z). A finite floor instead of −inf keeps the gradient of an empty sum at 0.
    floor = torch.finfo(similarity.dtype).min / 2
    pull = torch.logsumexp((-scale * (similarity - margin)).masked_fill(~positive, floor), 0)
    push = torch.logsumexp((scale * (similarity + margin)).masked_fill(positive, floor), 0)
    pushes = F.softplus(push)
    push_term = pushes.mean() if weight is None else (weight * pushes).sum() / weight.sum()
    return F.softplus(pull).sum() / positive.any(0).sum() + push_term


def proxy_nca(squared_distance: Tensor, labels: Tensor, scale: float = 32.0, weight: Tensor | None = None) -> Tensor:
    """ProxyNCA (Movshovitz-Attias et al., ICCV 2017), with the positive proxy in the denominator as in ProxyNCA++, PML.

        L = −1/B Σ_x log( e^{−σ d²(x, p_y)} / Σ_p e^{−σ d²(x, p)} )

    Args:
        squared_distance: ``(B, C)`` d² of B images and C proxies.
        labels: ``(B,)`` int64 in [0, C).
        scale: σ > 0, the softmax scale.
        weight: ``(C,)`` how many proxies each column stands for, where columns are a sample; None for one each.

    Returns:
        The loss, a scalar ≥ 0.

    Raises:
        ValueError: if the shapes disagree.
    """
    if squared_distance.ndim != 2 or labels.shape != squared_distance.shape[:1]:
        raise ValueError(f"expected (B, C) and (B,), got {tuple(squared_distance.shape)} and {tuple(labels.shape)}")
    logits = -scale * squared_distance
    return F.cross_entropy(logits if weight is None else logits + weight.log(), labels)


class ProxyLoss(Criterion):
    """A loss against one learned proxy for each class, with a similarity of one's choice.

    Args:
        num_classes: C, at least 2.
        embedding_dim: D.
        similarity: "cosine" (plain), "introspective" (section 2 of the method, proxies normalised) or "released"
            (the authors' code: proxies not normalised; for "proxy_anchor" only).
        loss: "proxy_anchor" over the similarity S, "proxy_nca" over the squared distance D², or another of the loss
            registry whose record has proxies and a function.
        tau: temperature of the introspective metric.
        proxy_uncertainty: "zero" (u_p = 0, as in the released code [C]) or "learned"; only "introspective" uses it.
            With u_p = 0 the level β of a pair is the image's own ‖u‖, and the second matrix product is spared.
        samples: number of proxies, beside those of the batch's classes, that training compares with. They are drawn
            anew in every step and weighed as the whole; for more classes than a matrix holds. None: all proxies.
            Proxy Anchor's mean over draws is that of the whole. Proxy NCA's is a little less, as its sum stands under
            a logarithm.
        settings: of the loss's function: :func:`proxy_anchor` (scale, margin), :func:`proxy_nca` (scale).

    Initialisation of the proxies as in Proxy Anchor's code: kaiming normal, fan out, so ‖p‖ ≈ √(2D/C). The proxies'
    uncertainty, where learned, starts at 0, so that at first the pair's level β is the image's.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        similarity: str = "introspective",
        loss: str = "proxy_anchor",
        tau: float = TAU,
        proxy_uncertainty: str = "zero",
        samples: int | None = None,
        **settings: float,
    ) -> None:
        super().__init__()
        spec = losses[loss]
        if not spec.proxies or spec.function is None:
            raise unknown_name("proxy loss", loss, [n for n in losses if losses[n].proxies and losses[n].function])
        if similarity not in spec.similarities:
            raise unknown_name(f"similarity for {loss}", similarity, spec.similarities)
        if proxy_uncertainty not in ("learned", "zero"):
            raise ValueError(f"proxy_uncertainty must be 'learned' or 'zero', got {proxy_uncertainty!r}")
        if num_classes < 2:
            raise ValueError(f"{loss} needs at least 2 classes to tell apart, got {num_classes}")
        if samples is not None and not 1 <= samples < num_classes:
            raise ValueError(f"samples must lie in 1–{num_classes - 1} (fewer than there are classes), got {samples}")
        if samples is not None and "weight" not in inspect.signature(spec.function).parameters:
            raise ValueError(
                f"{loss} has no argument `weight`, by which sampled proxies stand for all; leave out samples"
            )
        self.loss, self.similarity, self.tau, self.samples, self.draws = loss, similarity, tau, samples, 0
        self.settings = checked_settings(loss, spec.function, settings)
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")
        self.uncertainty: nn.Parameter | None = None
        if similarity == "introspective" and proxy_uncertainty == "learned":
            self.uncertainty = nn.Parameter(torch.zeros(num_classes, embedding_dim))

    def get_extra_state(self) -> dict[str, int]:
        return {"draws": self.draws}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.draws = int(state["draws"])

    def proxy_embedding(self, rows: Tensor | slice = _ALL) -> Embedding | Tensor:
        """Returns the proxies, or some rows of them, as embeddings: unit vectors, with their uncertainty if learned."""
        semantic = F.normalize(self.proxies[rows])
        return semantic if self.uncertainty is None else Embedding(semantic, self.uncertainty[rows])

    def matrix(self, embedding: Embedding, rows: Tensor | slice = _ALL) -> Tensor:
        """Returns ``(B, C)`` what the loss is a function of: S, D or D² of images to (some) proxies, full precision."""
        if self.similarity == "released":
            return released_similarity(embedding.semantic, self.proxies[rows], embedding.uncertainty)
        kind, proxies = losses[self.loss].matrix, self.proxy_embedding(rows)
        if self.similarity == "introspective":
            if kind == "similarity":
                return introspective_similarity(embedding, proxies, self.tau)
            distance = introspective_distance(embedding, proxies, self.tau)
            return distance if kind == "distance" else distance**2
        similarity = cosine(embedding, proxies)
        if kind == "similarity":
            return similarity
        # the floor keeps the gradient of an image that equals its proxy finite
        return (2 - 2 * similarity).clamp(min=1e-8).sqrt() if kind == "distance" else 2 - 2 * similarity

    def _sample(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ``(K,)`` proxies to compare with, how many each stands for, and ``(B,)`` the labels as their rows.

        The count of the steps alone seeds the draw: it is the same on every process, and after an interruption.
        """
        assert self.samples is not None
        present, labels_of_present = labels.unique(return_inverse=True)
        generator = torch.Generator().manual_seed(self.draws)
        self.draws += 1
        drawn = torch.randint(len(self.proxies), (self.samples,), generator=generator).to(labels.device)
        others = ~torch.isin(drawn, present)
        stands_for = (len(self.proxies) - len(present)) / others.sum().clamp(min=1)
        weight = torch.cat([torch.ones(len(present), device=labels.device), stands_for * others])
        return torch.cat([present, drawn]), weight, labels_of_present

    def forward(
        self, embedding: Embedding, labels: Tensor, partners: Tensor | None = None, weight: float = 1.0
    ) -> Tensor:
        """Returns the loss of B images with ``(B,)`` int64 labels, a scalar.

        With ``partners``, the other labels of mixed images: weight·L(labels) + (1−weight)·L(partners), over one matrix.
        """
        rows: Tensor | slice = _ALL
        settings: dict[str, Any] = dict(self.settings)
        if self.samples is not None and self.training:
            both = labels if partners is None else torch.cat([labels, partners])
            rows, settings["weight"], both = self._sample(both)
            labels, partners = both[: len(labels)], None if partners is None else both[len(labels) :]
        matrix, function = self.matrix(embedding, rows), losses[self.loss].function
        return over_labels(lambda y: function(matrix, y, **settings), labels, partners, weight)

    @torch.no_grad()
    def statistics(self, embedding: Embedding, labels: Tensor) -> dict[str, Tensor]:
        """Returns what shows whether introspection acts, as 0-d tensors (no host synchronisation).

        ``level``: mean ‖u‖ of the images. ``factor_positive`` and ``factor_negative``: the mean factor on images with
        the proxy of their class and with the others; 1 = uncertainty does nothing. ``proxy_norm``: mean ρ = ‖p‖.
        """
        rows: Tensor | slice = _ALL
        if self.samples is not None:  # the batch's classes stand for all
            rows, labels = labels.unique(return_inverse=True)
        if self.similarity == "released":
            factor = released_factor(embedding.semantic, self.proxies[rows], embedding.uncertainty)
        elif self.similarity == "introspective":
            factor = introspective_factor(embedding, self.proxy_embedding(rows), self.tau)
        else:
            factor = torch.ones(len(embedding), len(self.proxies[rows]), device=embedding.device)
        positive = factor.gather(1, labels[:, None]).mean()
        return {
            "level": embedding.level.float().mean(),
            "factor_positive": positive,
            "factor_negative": (factor.sum() / len(embedding) - positive) / max(1, factor.shape[1] - 1),
            "proxy_norm": torch.linalg.vector_norm(self.proxies[rows], dim=1).mean(),
        }
