"""How alike two sets of images are: cosine, the introspective metric, and the authors' released form.

Each function takes ``B`` images and ``M`` others and returns a ``(B, M)`` matrix. They compute in float32 (float64
stays float64) also inside autocast, because the ratio β/(τα) overflows half precision.

Sources: [R] the paper's abstract and public README, [C] the authors' public code, [D] derived and checked by us.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from idml_zoo.metric import TAU, check_tau
from idml_zoo.types import Embedding

ALPHA_FLOOR = 1e-4  # α is clamped here, so that β/(τα) stays finite for identical embeddings [D]


def _no_autocast(x: Tensor) -> AbstractContextManager[None]:
    return torch.autocast(x.device.type, enabled=False)


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _norm_of_sum(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i + b_j‖₂ as ``(B, M)``, by one matrix product; the floor under the root keeps the gradient finite at 0."""
    squared = a.square().sum(1, keepdim=True) + b.square().sum(1) + 2 * a @ b.T
    return squared.clamp(min=1e-20).sqrt()


def _cosine_and_beta(a: Embedding, b: Embedding | Tensor) -> tuple[Tensor, Tensor]:
    """``(B, M)`` the cosine, and β: ``(B, M)``, or ``(B, 1)`` where b is certain and costs no second product."""
    u = _full(a.uncertainty)
    if isinstance(b, Tensor):
        return _full(a.semantic) @ _full(b).T, u.square().sum(1, keepdim=True).clamp(min=1e-20).sqrt()
    return _full(a.semantic) @ _full(b.semantic).T, _norm_of_sum(u, _full(b.uncertainty))


def _alpha_and_ratio(cos: Tensor, beta: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """α clamped at its floor, and x = β/(τα)."""
    alpha = (2 - 2 * cos).clamp_(min=ALPHA_FLOOR**2).sqrt_()
    return alpha, beta / (tau * alpha)


class _Introspective(torch.autograd.Function):
    """S or D from the cosine and β, with the gradients in closed form [D]: a third of the memory that autograd's take.

    With x = β/(τα) and f = e^(−x):  ∂S/∂c = f·(1 + x/2), ∂S/∂β = α·f/(2τ);  ∂D/∂α = f·(1 + x), so ∂D/∂c = −f·(1 + x)/α,
    and ∂D/∂β = −f/τ.
    """

    @staticmethod
    def forward(ctx: Any, cos: Tensor, beta: Tensor, tau: float, distance: bool) -> Tensor:
        alpha, x = _alpha_and_ratio(cos, beta, tau)
        ctx.save_for_backward(cos, beta)
        ctx.tau, ctx.distance = tau, distance
        factor = x.neg_().exp_()
        return factor.mul_(alpha) if distance else factor.mul_(cos - 1).add_(1)

    @staticmethod
    @once_differentiable  # no loss needs more, and in-place steps spare memory
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, beta = ctx.saved_tensors
        alpha, x = _alpha_and_ratio(cos, beta, ctx.tau)
        weighed = gradient * torch.exp(-x)
        if ctx.distance:
            of_beta = weighed / -ctx.tau
            # where α is at its floor it does not move with c: an image's distance to itself has no gradient
            of_cos = weighed.mul_(x.add_(1)).div_(alpha.neg_()).mul_(2 - 2 * cos > ALPHA_FLOOR**2)
        else:
            of_beta = weighed * alpha.div_(2 * ctx.tau)
            of_cos = weighed.mul_(x.div_(2).add_(1))
        return of_cos, of_beta.sum_to_size(beta.shape), None, None


def cosine(a: Embedding, b: Embedding | Tensor) -> Tensor:
    """``(B, M)`` cosine of the semantic embeddings, in [-1, 1] up to rounding; uncertainty is not looked at."""
    with _no_autocast(a.semantic):
        return _full(a.semantic) @ _full(b if isinstance(b, Tensor) else b.semantic).T


def introspective_factor(a: Embedding, b: Embedding | Tensor, tau: float = TAU) -> Tensor:
    """``(B, M)`` the weight exp(−β/(τα)) in (0, 1] that uncertainty puts on a semantic difference [R]; 1 = certain."""
    check_tau(tau)
    with _no_autocast(a.semantic):
        return torch.exp(-_alpha_and_ratio(*_cosine_and_beta(a, b), tau)[1])


def introspective_distance(a: Embedding, b: Embedding | Tensor, tau: float = TAU) -> Tensor:
    """``(B, M)`` introspective distance D = α·exp(−β/(τα)) [R], in [0, 2]; an α below 1e-4 counts as 1e-4.

    α = ‖ŝ₁ − ŝ₂‖₂ is the semantic distance and β = ‖u₁ + u₂‖₂ the uncertainty of the pair: an uncertain pair counts as
    more alike. ∂D/∂α = (1+x)·e^(−x) and ∂D/∂β = −e^(−x)/τ with x = β/(τα) [D].

    Args:
        a: embedding of B images.
        b: embedding of M images of the same width; or their semantic embeddings alone, ``(M, D)`` unit vectors, for
            images that are certain (u = 0): then β is ‖u₁‖, and the second matrix product is spared.
        tau: temperature τ > 0; D → α as τ → ∞.
    """
    check_tau(tau)
    with _no_autocast(a.semantic):
        return _Introspective.apply(*_cosine_and_beta(a, b), tau, True)


def introspective_similarity(a: Embedding, b: Embedding | Tensor, tau: float = TAU) -> Tensor:
    """``(B, M)`` introspective similarity S = 1 − (1 − c)·exp(−β/(τα)) [D], in [-1, 1]; c is the cosine.

    For losses that want a cosine: the factor multiplies 1 − c = α²/2 at the place where the released code has its own.
    Arguments as those of :func:`introspective_distance`.
    """
    check_tau(tau)
    with _no_autocast(a.semantic):
        return _Introspective.apply(*_cosine_and_beta(a, b), tau, False)


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
