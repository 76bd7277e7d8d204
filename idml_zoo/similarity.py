"""How alike two sets of images are: cosine, the introspective metric, and the authors' released form.

Each function takes ``B`` images and ``M`` others and returns a ``(B, M)`` matrix. They compute in float32 (float64
stays float64) also inside autocast, because the ratio β/(τα) overflows half precision.

Sources: [R] the paper's abstract and public README, [C] the authors' public code, [D] derived and checked by us.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from idml_zoo.registry import similarities
from idml_zoo.types import Embedding

TAU = 5.0  # the constant 5 of the released code acts as the temperature τ of the metric [C]
ALPHA_FLOOR = 1e-4  # α is clamped here, so that β/(τα) stays finite for identical embeddings [D]


def _no_autocast(x: Tensor) -> AbstractContextManager[None]:
    return torch.autocast(x.device.type, enabled=False)


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _norm_of_sum(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i + b_j‖₂ as ``(B, M)``, by one matrix product; the floor under the root keeps the gradient finite at 0."""
    squared = a.square().sum(1, keepdim=True) + b.square().sum(1) + 2 * a @ b.T
    return squared.clamp(min=1e-20).sqrt()


def _parts(a: Embedding, b: Embedding, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """The cosine c, α clamped at its floor, and exp(−β/(τα)); each ``(B, M)``."""
    if tau <= 0:
        raise ValueError(f"tau must be positive, got {tau}")
    c = _full(a.semantic) @ _full(b.semantic).T
    alpha = (2 - 2 * c).clamp(min=ALPHA_FLOOR**2).sqrt()
    beta = _norm_of_sum(_full(a.uncertainty), _full(b.uncertainty))
    return c, alpha, torch.exp(-beta / (tau * alpha))


@similarities.register("cosine")
def cosine(a: Embedding, b: Embedding) -> Tensor:
    """``(B, M)`` cosine of the semantic embeddings, in [-1, 1] up to rounding; uncertainty is not looked at."""
    with _no_autocast(a.semantic):
        return _full(a.semantic) @ _full(b.semantic).T


def introspective_factor(a: Embedding, b: Embedding, tau: float = TAU) -> Tensor:
    """``(B, M)`` the weight exp(−β/(τα)) in (0, 1] that uncertainty puts on a semantic difference [R]; 1 = certain."""
    with _no_autocast(a.semantic):
        return _parts(a, b, tau)[2]


@similarities.register("introspective_distance")
def introspective_distance(a: Embedding, b: Embedding, tau: float = TAU) -> Tensor:
    """``(B, M)`` introspective distance D = α·exp(−β/(τα)) [R], in [0, 2]; an α below 1e-4 counts as 1e-4.

    α = ‖ŝ₁ − ŝ₂‖₂ is the semantic distance and β = ‖u₁ + u₂‖₂ the uncertainty of the pair, so an uncertain pair is
    judged closer to undecided. ∂D/∂α = (1+x)·e^(−x) and ∂D/∂β = −e^(−x)/τ with x = β/(τα) [D].

    Args:
        a, b: embeddings of B and M images of one width.
        tau: temperature τ > 0; D → α as τ → ∞.
    """
    with _no_autocast(a.semantic):
        _, alpha, factor = _parts(a, b, tau)
        return alpha * factor


@similarities.register("introspective")
def introspective_similarity(a: Embedding, b: Embedding, tau: float = TAU) -> Tensor:
    """``(B, M)`` introspective similarity S = 1 − (1 − c)·exp(−β/(τα)) [D], in [-1, 1]; c is the cosine.

    For losses that want a cosine: the factor multiplies 1 − c = α²/2 at the place where the released code has its own.
    """
    with _no_autocast(a.semantic):
        c, _, factor = _parts(a, b, tau)
        return 1 - (1 - c) * factor


def released_factor(semantic: Tensor, proxies: Tensor, uncertainty: Tensor | None = None) -> Tensor:
    """``(B, C)`` the factor exp(−(‖û‖² + 4)/(5·d²)) of the released code [C], d² = ‖ŝ − p‖²; see below."""
    with _no_autocast(semantic):
        s, p = _full(semantic), _full(proxies)
        d2 = (s.square().sum(1, keepdim=True) + p.square().sum(1) - 2 * s @ p.T).clamp(min=ALPHA_FLOOR**2)
        # ‖û‖² is 1 for every image, whatever û is: this is why the uncertainty head gets no gradient [D]
        level2 = (
            s.new_ones(()) if uncertainty is None else F.normalize(_full(uncertainty)).square().sum(1, keepdim=True)
        )
        return torch.exp(-(level2 + 4) / (5 * d2))


@similarities.register("released")
def released_similarity(semantic: Tensor, proxies: Tensor, uncertainty: Tensor | None = None) -> Tensor:
    """``(B, C)`` similarity of the authors' released retrieval loss [C]: s' = 1 − (1−c)·exp(−(‖û‖² + 4)/(5·d²)).

    Args:
        semantic: ``(B, D)`` unit vectors ŝ.
        proxies: ``(C, D)`` proxies p, **not** normalised: c uses p/‖p‖, but d² = ‖ŝ − p‖².
        uncertainty: ``(B, D)`` u of the images, normalised to û as the released code does (the proxies' is 0 there),
            or None for ‖û‖² = 1, which is what it always is.

    The only free quantity is ρ = ‖p‖, and s' → c as ρ → ∞ [D].
    """
    with _no_autocast(semantic):
        c = _full(semantic) @ F.normalize(_full(proxies)).T
        return 1 - (1 - c) * released_factor(semantic, proxies, uncertainty)
