"""Losses of the other uncertainty heads: a learned concentration, and loss prediction."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idml_zoo.losses.common import Criterion, over_labels
from idml_zoo.losses.proxies import ProxyLoss
from idml_zoo.similarity import cosine
from idml_zoo.types import Embedding


def log_vmf_normalizer(concentration: Tensor, dim: int) -> Tensor:
    """Returns log C_D(κ) of the von Mises–Fisher density C_D(κ)·exp(κ μᵀz) on the unit sphere in D dimensions.

        log C_D(κ) = v log κ − (D/2) log 2π − log I_v(κ),   v = D/2 − 1

    log I_v by Debye's uniform expansion with three correction terms (Abramowitz and Stegun 9.7.7), whose error is below
    3e-4 at D = 8 and below 1e-6 from D = 32 on, for every κ > 0; scipy's Bessel function over- and underflows where
    embeddings live.

    Args:
        concentration: κ > 0, any shape, float32 or float64.
        dim: D, at least 8.

    Raises:
        ValueError: D below 8.
    """
    if dim < 8:
        raise ValueError(f"the von Mises–Fisher normaliser is for at least 8 dimensions here, got {dim}")
    v = dim / 2 - 1
    z = concentration / v
    root = torch.sqrt(1 + z.square())
    p = 1 / root
    eta = root + torch.log(z / (1 + root))
    first = (3 * p - 5 * p**3) / 24
    second = (81 * p**2 - 462 * p**4 + 385 * p**6) / 1152
    third = (30375 * p**3 - 369603 * p**5 + 765765 * p**7 - 425425 * p**9) / 414720
    log_bessel = v * eta - 0.5 * math.log(2 * math.pi * v) - 0.5 * torch.log(root)
    log_bessel = log_bessel + torch.log1p(first / v + second / v**2 + third / v**3)
    return v * torch.log(concentration) - dim / 2 * math.log(2 * math.pi) - log_bessel


class VMFProxyLoss(Criterion):
    """Images and proxies as von Mises–Fisher distributions, compared by their expected likelihood.

        ELK(x, p) = log ∫ vMF(z; ŝ, κ_x) vMF(z; p̂, κ_p) dz = log C(κ_x) + log C(κ_p) − log C(‖κ_x ŝ + κ_p p̂‖)
        L = −1/B Σ_x log softmax_p(ELK(x, ·))[y]

    after Kirchhof et al., "A Non-isotropic Probabilistic Take on Proxy-based Deep Metric Learning" (ECCV 2022), in the
    isotropic form. An image's concentration is κ = 1/‖u‖, as the head "vmf" gives it: an image that cannot be told
    apart gets a small one. log C(κ_x) is the same for every proxy and falls out of the softmax.

    Args:
        num_classes: C, at least 2.
        embedding_dim: D, at least 8.
        concentration: of the proxies before training; None for D / 2.
    """

    def __init__(self, num_classes: int, embedding_dim: int, concentration: float | None = None) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"vmf needs at least 2 classes to tell apart, got {num_classes}")
        start = embedding_dim / 2 if concentration is None else concentration
        if start <= 0:
            raise ValueError(f"concentration must be positive, got {start}")
        self.embedding_dim = embedding_dim
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")
        self.log_concentration = nn.Parameter(torch.full((num_classes,), math.log(start)))
        log_vmf_normalizer(torch.ones(1), embedding_dim)  # refuses too few dimensions now, not at the first step

    def matrix(self, embedding: Embedding) -> Tensor:
        """Returns ``(B, C)`` ELK without its term log C(κ_x), full precision."""
        with torch.autocast(embedding.semantic.device.type, enabled=False):
            wide = embedding if embedding.dtype == torch.float64 else embedding.to(torch.float32)
            image = 1 / wide.level.clamp(min=1e-6)[:, None]
            proxy = self.log_concentration.exp()
            cos = wide.semantic @ F.normalize(self.proxies).T
            # ‖κ_x ŝ + κ_p p̂‖² with unit vectors
            squared = image.square() + proxy.square() + 2 * image * proxy * cos
            joint = squared.clamp(min=1e-6).sqrt()
            return log_vmf_normalizer(proxy, self.embedding_dim) - log_vmf_normalizer(joint, self.embedding_dim)

    def forward(
        self, embedding: Embedding, labels: Tensor, partners: Tensor | None = None, weight: float = 1.0
    ) -> Tensor:
        """Returns the loss ≥ 0 of B images with ``(B,)`` int64 labels; ``partners`` as in :class:`ProxyLoss`."""
        matrix = self.matrix(embedding)
        return over_labels(lambda y: F.cross_entropy(matrix, y), labels, partners, weight)

    @torch.no_grad()
    def statistics(self, embedding: Embedding, labels: Tensor) -> dict[str, Tensor]:
        """Returns ``level``, mean ‖u‖ = 1/κ of the images, and ``concentration``, mean κ of the proxies."""
        return {"level": embedding.level.float().mean(), "concentration": self.log_concentration.exp().mean()}


class LossPrediction(Criterion):
    """Proxy Anchor, and a head that regresses the loss of each image: the level is the loss it expects.

    After Yoo and Kweon, "Learning Loss for Active Learning" (CVPR 2019); as a baseline for uncertain representations in
    Kirchhof et al., "URL" (NeurIPS 2023). Proxy Anchor is no sum over images, so an image's own loss is taken as the
    cross entropy of its scaled cosines to the proxies, and log(1 + ·) of it, which tames its tail, is what is regressed
    (squared error). The head sees the features without gradient: nothing else changes, so retrieval is that of `pa`.

    Args:
        num_classes, embedding_dim: C and D.
        weight: of the regression.
        scale, margin: of Proxy Anchor; the scale serves the cross entropy too.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, weight: float = 1.0, scale: float = 32.0, margin: float = 0.1
    ) -> None:
        super().__init__()
        self.base = ProxyLoss(num_classes, embedding_dim, "cosine", scale=scale, margin=margin)
        self.weight, self.scale = weight, scale

    @property
    def proxies(self) -> nn.Parameter:
        return self.base.proxies

    def own_loss(self, embedding: Embedding, labels: Tensor) -> Tensor:
        """Returns ``(B,)`` log(1 + cross entropy) of each image, without gradient."""
        with torch.no_grad():
            logits = self.scale * cosine(embedding, self.base.proxy_embedding())
            return torch.log1p(F.cross_entropy(logits, labels, reduction="none"))

    def forward(
        self, embedding: Embedding, labels: Tensor, partners: Tensor | None = None, weight: float = 1.0
    ) -> Tensor:
        """Returns the loss of B images with ``(B,)`` int64 labels, a scalar; ``partners`` as in :class:`ProxyLoss`."""

        def regression(y: Tensor) -> Tensor:
            return F.mse_loss(embedding.level.float(), self.own_loss(embedding, y).float())

        return self.base(embedding, labels, partners, weight) + self.weight * over_labels(
            regression, labels, partners, weight
        )

    @torch.no_grad()
    def statistics(self, embedding: Embedding, labels: Tensor) -> dict[str, Tensor]:
        """Returns ``level``, mean predicted loss; ``own_loss``, mean true loss; ``proxy_norm``, mean ‖p‖."""
        return {
            "level": embedding.level.float().mean(),
            "own_loss": self.own_loss(embedding, labels).mean(),
            "proxy_norm": torch.linalg.vector_norm(self.proxies, dim=1).mean(),
        }
