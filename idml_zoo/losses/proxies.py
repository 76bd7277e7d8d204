"""Losses against one learned proxy for each class."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idml_zoo.losses.common import checked_settings, over_labels
from idml_zoo.registry import unknown_name
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

SIMILARITIES = ("cosine", "introspective", "released")


def proxy_anchor(similarity: Tensor, labels: Tensor, scale: float = 32.0, margin: float = 0.1) -> Tensor:
    """Proxy Anchor (Kim et al., CVPR 2020) over a similarity matrix.

        L = 1/|P⁺| Σ_{p∈P⁺} log(1 + Σ_{x∈X_p⁺} e^{−α(s−δ)}) + 1/|P| Σ_{p∈P} log(1 + Σ_{x∈X_p⁻} e^{α(s+δ)})

    P⁺ are the proxies with a positive in the batch.

    Args:
        similarity: ``(B, C)`` s of B images and C proxies; float32 or float64.
        labels: ``(B,)`` int64 in [0, C).
        scale: α > 0.
        margin: δ.

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
    return F.softplus(pull).sum() / positive.any(0).sum() + F.softplus(push).mean()


def proxy_nca(squared_distance: Tensor, labels: Tensor, scale: float = 32.0) -> Tensor:
    """ProxyNCA (Movshovitz-Attias et al., ICCV 2017), with the own proxy in the denominator as in ProxyNCA++ and PML.

        L = −1/B Σ_x log( e^{−σ d²(x, p_y)} / Σ_p e^{−σ d²(x, p)} )

    Args:
        squared_distance: ``(B, C)`` d² of B images and C proxies.
        labels: ``(B,)`` int64 in [0, C).
        scale: σ > 0, the softmax scale.

    Returns:
        The loss, a scalar ≥ 0.

    Raises:
        ValueError: if the shapes disagree.
    """
    if squared_distance.ndim != 2 or labels.shape != squared_distance.shape[:1]:
        raise ValueError(f"expected (B, C) and (B,), got {tuple(squared_distance.shape)} and {tuple(labels.shape)}")
    return F.cross_entropy(-scale * squared_distance, labels)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {"proxy_anchor": proxy_anchor, "proxy_nca": proxy_nca}


class ProxyLoss(nn.Module):
    """A loss against one learned proxy for each class, with a similarity of one's choice.

    Args:
        num_classes: C, at least 2.
        embedding_dim: D.
        similarity: "cosine" (plain), "introspective" (section 2 of the method, proxies normalised) or "released"
            (the authors' code: proxies not normalised; for "proxy_anchor" only).
        loss: "proxy_anchor" over the similarity S, or "proxy_nca" over the squared distance D².
        tau: temperature of the introspective metric.
        proxy_uncertainty: "zero" (u_p = 0, as in the released code [C]) or "learned"; only "introspective" uses it.
            With u_p = 0 the level β of a pair is the image's own ‖u‖, and the second matrix product is spared.
        settings: of :func:`proxy_anchor` (scale, margin) or :func:`proxy_nca` (scale).

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
        **settings: float,
    ) -> None:
        super().__init__()
        if loss not in _FUNCTIONS:
            raise unknown_name("proxy loss", loss, _FUNCTIONS)
        if similarity not in SIMILARITIES:
            raise unknown_name("similarity for proxies", similarity, SIMILARITIES)
        if similarity == "released" and loss != "proxy_anchor":
            raise ValueError(f"only Proxy Anchor was released; {loss} takes cosine or introspective")
        if proxy_uncertainty not in ("learned", "zero"):
            raise ValueError(f"proxy_uncertainty must be 'learned' or 'zero', got {proxy_uncertainty!r}")
        if num_classes < 2:
            raise ValueError(f"{loss} needs at least 2 classes to tell apart, got {num_classes}")
        self.loss, self.similarity, self.tau = loss, similarity, tau
        self.settings = checked_settings(loss, _FUNCTIONS[loss], settings)
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")
        self.uncertainty: nn.Parameter | None = None
        if similarity == "introspective" and proxy_uncertainty == "learned":
            self.uncertainty = nn.Parameter(torch.zeros(num_classes, embedding_dim))

    def _proxies(self) -> Embedding | Tensor:
        """The proxies as images: unit vectors, with their uncertainty where they have one."""
        semantic = F.normalize(self.proxies)
        return semantic if self.uncertainty is None else Embedding(semantic, self.uncertainty)

    def matrix(self, embedding: Embedding) -> Tensor:
        """``(B, C)`` similarity of the images to the proxies (for ProxyNCA: D²), full precision."""
        if self.similarity == "released":
            return released_similarity(embedding.semantic, self.proxies, embedding.uncertainty)
        plain = self.similarity == "cosine"
        if self.loss == "proxy_nca":
            if plain:
                return 2 - 2 * cosine(embedding, self._proxies())
            return introspective_distance(embedding, self._proxies(), self.tau).square()
        if plain:
            return cosine(embedding, self._proxies())
        return introspective_similarity(embedding, self._proxies(), self.tau)

    def forward(
        self, embedding: Embedding, labels: Tensor, partners: Tensor | None = None, weight: float = 1.0
    ) -> Tensor:
        """The loss of B images with ``(B,)`` int64 labels, a scalar.

        With ``partners``, the other labels of mixed images: weight·L(labels) + (1−weight)·L(partners), over one matrix.
        """
        matrix = self.matrix(embedding)
        return over_labels(lambda y: _FUNCTIONS[self.loss](matrix, y, **self.settings), labels, partners, weight)

    @torch.no_grad()
    def statistics(self, embedding: Embedding, labels: Tensor) -> dict[str, Tensor]:
        """What shows whether introspection is acting, as 0-d tensors (no host synchronisation).

        ``level`` mean ‖u‖ of the images; ``factor_positive`` and ``factor_negative`` the mean factor on
        (image, own proxy) and (image, other proxy), 1 = uncertainty does nothing; ``proxy_norm`` mean ρ = ‖p‖.
        """
        if self.similarity == "released":
            factor = released_factor(embedding.semantic, self.proxies, embedding.uncertainty)
        elif self.similarity == "introspective":
            factor = introspective_factor(embedding, self._proxies(), self.tau)
        else:
            factor = torch.ones(len(embedding), len(self.proxies), device=embedding.device)
        own = factor.gather(1, labels[:, None]).mean()
        return {
            "level": embedding.level.float().mean(),
            "factor_positive": own,
            "factor_negative": (factor.sum() / len(embedding) - own) / (len(self.proxies) - 1),
            "proxy_norm": torch.linalg.vector_norm(self.proxies, dim=1).mean(),
        }
