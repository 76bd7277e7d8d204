"""Against closed forms written as slow float64 loops from the definitions."""

import math

import pytest
import torch
from conftest import make_embedding
from hypothesis import given, settings
from hypothesis import strategies as st

from idml_zoo.similarity import (
    cosine,
    introspective_distance,
    introspective_factor,
    introspective_similarity,
    released_similarity,
)
from idml_zoo.types import Embedding


def slow_pair(s1, u1, s2, u2, tau):
    alpha = math.sqrt(sum((x - y) ** 2 for x, y in zip(s1, s2, strict=True)))
    beta = math.sqrt(sum((x + y) ** 2 for x, y in zip(u1, u2, strict=True)))
    return alpha, beta, alpha * math.exp(-beta / (tau * alpha))


@pytest.mark.parametrize("level", [0.01, 1.0, 30.0])
def test_distance_and_similarity_equal_the_slow_loop(level):
    a, b, tau = make_embedding(5, level=level), make_embedding(7, level=level, seed=1), 3.0
    d, s, c = introspective_distance(a, b, tau), introspective_similarity(a, b, tau), cosine(a, b)
    for i in range(5):
        for j in range(7):
            parts = (t.tolist() for t in (a.semantic[i], a.uncertainty[i], b.semantic[j], b.uncertainty[j]))
            alpha, beta, expected = slow_pair(*parts, tau)
            assert d[i, j].item() == pytest.approx(expected, abs=1e-12)
            cos = 1 - alpha**2 / 2
            assert c[i, j].item() == pytest.approx(cos, abs=1e-12)
            assert s[i, j].item() == pytest.approx(1 - (1 - cos) * math.exp(-beta / (tau * alpha)), abs=1e-12)


def test_both_gradients_equal_the_closed_forms():
    """∂D/∂α = (1+x)e^(−x) and ∂D/∂β = −e^(−x)/τ, reached through two vectors whose α and β are free."""
    tau = 5.0
    for alpha, beta in [(0.3, 0.01), (1.0, 1.0), (1.9, 20.0), (0.05, 3.0)]:
        # chord of length α on the unit circle; u of length β
        a_ = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
        b_ = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
        angle = 2 * torch.asin(a_ / 2)
        zero, one = torch.zeros_like(a_), torch.ones_like(a_)
        first = Embedding(torch.stack([one, zero])[None], torch.stack([b_, zero])[None])
        second = Embedding(torch.stack([angle.cos(), angle.sin()])[None], torch.stack([zero, zero])[None])
        d = introspective_distance(first, second, tau)
        x = beta / (tau * alpha)
        got = torch.autograd.grad(d.sum(), [a_, b_])
        assert got[0].item() == pytest.approx((1 + x) * math.exp(-x), rel=1e-8)
        assert got[1].item() == pytest.approx(-math.exp(-x) / tau, rel=1e-8)


def test_no_uncertainty_or_infinite_temperature_is_the_plain_form():
    a, b = make_embedding(6), make_embedding(6, seed=1)
    alpha = torch.cdist(a.semantic, b.semantic)
    sure_a, sure_b = (Embedding(e.semantic, torch.zeros_like(e.uncertainty)) for e in (a, b))
    assert torch.allclose(introspective_distance(sure_a, sure_b), alpha, atol=1e-9)
    assert torch.allclose(introspective_similarity(sure_a, sure_b), cosine(a, b), atol=1e-9)
    assert torch.allclose(introspective_distance(a, b, tau=1e12), alpha, atol=1e-9)
    assert torch.allclose(introspective_similarity(a, b, tau=1e12), cosine(a, b), atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e4), st.floats(0.1, 50))
def test_properties(seed, level, tau):
    a, b = make_embedding(4, level=level, seed=seed), make_embedding(5, level=level, seed=seed + 1)
    d = introspective_distance(a, b, tau)
    assert bool((d <= torch.cdist(a.semantic, b.semantic) + 1e-9).all()) and bool((d >= 0).all())
    assert torch.allclose(d, introspective_distance(b, a, tau).T)
    more = Embedding(a.semantic, 2 * a.uncertainty)
    none = Embedding(b.semantic, torch.zeros_like(b.uncertainty))
    assert bool((introspective_distance(more, none, tau) <= introspective_distance(a, none, tau) + 1e-12).all())


def test_identical_images_and_huge_uncertainty_stay_finite_with_gradient():
    for level in (1e-6, 1.0, 1e4):
        e = make_embedding(4, dtype=torch.float32)
        u = (level * torch.ones(4, 8)).requires_grad_()
        s = e.semantic.clone().requires_grad_()
        e = Embedding(s, u)
        total = introspective_distance(e, e).sum() + introspective_similarity(e, e).sum()
        total.backward()
        assert torch.isfinite(total) and torch.isfinite(u.grad).all() and torch.isfinite(s.grad).all()


def test_float32_inside_autocast():
    a = make_embedding(6, 64, dtype=torch.float32)
    plain = introspective_similarity(a, a), released_similarity(a.semantic, 3 * a.semantic), cosine(a, a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = introspective_similarity(a, a), released_similarity(a.semantic, 3 * a.semantic), cosine(a, a)
    for p, i in zip(plain, inside, strict=True):
        assert i.dtype == torch.float32 and torch.equal(p, i)


def test_released_similarity_equals_its_derivation():
    s = make_embedding(5).semantic
    p = 1.7 * make_embedding(4, seed=3).semantic
    u = make_embedding(5, level=12.0, seed=4).uncertainty
    for i in range(5):
        for j in range(4):
            rho = float(p[j].norm())
            c = float(s[i] @ p[j]) / rho
            d2 = 1 + rho**2 - 2 * rho * c
            expected = 1 - (1 - c) * math.exp(-1 / d2)
            assert released_similarity(s, p)[i, j].item() == pytest.approx(expected, abs=1e-12)
            assert released_similarity(s, p, u)[i, j].item() == pytest.approx(expected, abs=1e-12), "constant in u"


def test_released_similarity_tends_to_the_cosine_for_long_proxies():
    s, p = make_embedding(5).semantic, make_embedding(4, seed=3).semantic
    gaps = [float((released_similarity(s, rho * p) - s @ p.T).abs().max()) for rho in (3, 30, 300, 3000)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-6


def test_factor_lies_between_0_and_1_and_bad_tau_is_refused():
    a = make_embedding(4)
    factor = introspective_factor(a, a)
    assert bool((factor >= 0).all()) and bool((factor <= 1).all())
    for bad in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"tau must be positive and finite, got {bad}"):
            introspective_distance(a, a, tau=bad)


@pytest.mark.parametrize("function", [introspective_distance, introspective_similarity])
@pytest.mark.parametrize("certain", [False, True])
def test_closed_form_gradients_equal_autograd_and_certain_images_need_no_uncertainty(function, certain):
    """Against the definition written with plain torch operations, in float64."""

    def definition(s, u, t, v, tau):
        c = s @ t.T
        alpha = (2 - 2 * c).sqrt()
        beta = (u[:, None] + v[None]).norm(dim=2)
        factor = torch.exp(-beta / (tau * alpha))
        return alpha * factor if function is introspective_distance else 1 - (1 - c) * factor

    a, b, tau = make_embedding(5, level=2.0), make_embedding(6, level=2.0, seed=1), 1.7
    weights = torch.randn(5, 6, dtype=torch.float64)
    gradients = []
    for ours in (True, False):
        s, u, t = (x.clone().requires_grad_() for x in (a.semantic, a.uncertainty, b.semantic))
        v = (torch.zeros_like(b.uncertainty) if certain else b.uncertainty.clone()).requires_grad_(not certain)
        if ours:
            other = t if certain else Embedding(t, v)
            value = function(Embedding(s, u), other, tau)
        else:
            value = definition(s, u, t, v, tau)
        (value * weights).sum().backward()
        gradients.append([value.detach(), *(x.grad for x in (s, u, t, v) if x.grad is not None)])
    assert len(gradients[0]) == len(gradients[1]) == (4 if certain else 5)
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)


def test_an_image_pulls_not_at_itself():
    """α at its floor: the distance to oneself has no gradient, where autograd's slope would be ten thousand."""
    s = make_embedding(3).semantic.clone().requires_grad_()
    introspective_distance(Embedding(s, torch.zeros_like(s)), s).diagonal().sum().backward()
    assert s.grad.abs().max() == 0
