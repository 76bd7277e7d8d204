import math
import warnings

import pytest
import torch
from conftest import make_embedding

from idml_zoo.losses import ProxyLoss, mixup, proxy_anchor
from idml_zoo.models.heads import IDMLHead
from idml_zoo.registry import UnknownNameError
from idml_zoo.types import Embedding


def slow_proxy_anchor(similarity, labels, scale, margin):
    classes = similarity.shape[1]
    with_positive = sorted(set(labels.tolist()))
    pull = push = 0.0
    for p in range(classes):
        positive = sum(
            math.exp(-scale * (similarity[i, p].item() - margin)) for i in range(len(labels)) if labels[i] == p
        )
        negative = sum(
            math.exp(scale * (similarity[i, p].item() + margin)) for i in range(len(labels)) if labels[i] != p
        )
        pull += math.log(1 + positive) if p in with_positive else 0.0
        push += math.log(1 + negative)
    return pull / len(with_positive) + push / classes


def test_proxy_anchor_equals_the_slow_loop():
    similarity = 2 * torch.rand(7, 5, dtype=torch.float64) - 1
    labels = torch.tensor([0, 0, 1, 3, 3, 3, 1])
    for scale, margin in [(32.0, 0.1), (8.0, 0.0)]:
        got = proxy_anchor(similarity, labels, scale, margin).item()
        assert got == pytest.approx(slow_proxy_anchor(similarity, labels, scale, margin), rel=1e-10)


def test_proxy_anchor_equals_pytorch_metric_learning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of that library's own imports
        from pytorch_metric_learning.losses import ProxyAnchorLoss

    e, labels = make_embedding(12, 16), torch.randint(0, 6, (12,))
    oracle = ProxyAnchorLoss(num_classes=6, embedding_size=16, margin=0.1, alpha=32).double()
    ours = ProxyLoss(6, 16, "cosine").double()
    ours.proxies.data.copy_(oracle.proxies.data)
    s1, s2 = e.semantic.clone().requires_grad_(), e.semantic.clone().requires_grad_()
    theirs, mine = oracle(s1, labels), ours(Embedding(s2, e.uncertainty), labels)
    theirs.backward()
    mine.backward()
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(
        s1.grad - (s1.grad * s1).sum(1, keepdim=True) * s1,
        s2.grad - (s2.grad * s2).sum(1, keepdim=True) * s2,
        atol=1e-5,
    )
    assert torch.allclose(oracle.proxies.grad, ours.proxies.grad, atol=1e-5)


def test_gradcheck_of_the_introspective_loss():
    labels = torch.tensor([0, 1, 1, 2])
    loss = ProxyLoss(3, 5, "introspective").double()

    def value(vector, uncertainty):
        return loss(Embedding(torch.nn.functional.normalize(vector), uncertainty), labels)

    vector = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    uncertainty = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (vector, uncertainty))


def test_released_loss_tends_to_plain_proxy_anchor_for_long_proxies():
    e, labels = make_embedding(10, 16), torch.randint(0, 6, (10,))
    plain, released = ProxyLoss(6, 16, "cosine").double(), ProxyLoss(6, 16, "released").double()
    gaps = []
    for rho in (10.0, 100.0, 1e4):
        released.proxies.data = rho * torch.nn.functional.normalize(plain.proxies.data)
        gaps.append(abs(released(e, labels).item() - plain(e, labels).item()))
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-6


def test_infinite_temperature_is_plain_proxy_anchor():
    e, labels = make_embedding(10, 16), torch.randint(0, 6, (10,))
    plain, far = ProxyLoss(6, 16, "cosine").double(), ProxyLoss(6, 16, "introspective", tau=1e12).double()
    far.proxies.data.copy_(plain.proxies.data)
    assert far(e, labels).item() == pytest.approx(plain(e, labels).item(), rel=1e-9)


def _uncertainty_gradients(similarity: str) -> tuple[float, float]:
    head, loss = IDMLHead(32, 16), ProxyLoss(6, 16, similarity)
    loss(head(torch.randn(24, 32)), torch.randint(0, 6, (24,))).backward()
    return float(head.uncertainty.weight.grad.norm()), float(head.semantic.weight.grad.norm())


def test_the_uncertainty_head_of_idml_learns_from_the_first_step():
    uncertainty, semantic = _uncertainty_gradients("introspective")
    assert uncertainty > 1e-3 and semantic > 1e-3


def test_the_uncertainty_head_of_idml_released_gets_no_gradient():
    """What the released code does: u is normalised, so its squared norm is the constant 1; only rounding is left."""
    uncertainty, semantic = _uncertainty_gradients("released")
    assert semantic > 1e-3 and uncertainty < 1e-6 * semantic


def test_order_of_the_batch_does_not_matter_and_autocast_is_full_precision():
    e, labels = make_embedding(10, 16, dtype=torch.float32), torch.randint(0, 6, (10,))
    loss, order = ProxyLoss(6, 16), torch.randperm(10)
    assert loss(e[order], labels[order]).item() == pytest.approx(loss(e, labels).item(), rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(e, labels).item() == loss.float()(e, labels).item()


def test_statistics_are_what_their_names_say():
    e, labels = make_embedding(8, 16, dtype=torch.float32), torch.randint(0, 5, (8,))
    loss = ProxyLoss(5, 16)
    found = loss.statistics(e, labels)
    assert found["level"].item() == pytest.approx(e.level.mean().item())
    assert found["proxy_norm"].item() == pytest.approx(loss.proxies.norm(dim=1).mean().item())
    pairs = {True: [], False: []}
    for i in range(8):
        for p in range(5):
            unit = loss.proxies[p] / loss.proxies[p].norm()
            alpha = (e.semantic[i] - unit).norm()
            pairs[bool(labels[i] == p)].append(torch.exp(-e.uncertainty[i].norm() / (5 * alpha)).item())
    assert found["factor_positive"].item() == pytest.approx(sum(pairs[True]) / len(pairs[True]), rel=1e-4)
    assert found["factor_negative"].item() == pytest.approx(sum(pairs[False]) / len(pairs[False]), rel=1e-4)
    plain = ProxyLoss(5, 16, "cosine").statistics(e, labels)
    assert plain["factor_positive"] == plain["factor_negative"] == 1


def test_bad_settings_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'introspective'"):
        ProxyLoss(3, 4, "introspectiv")
    with pytest.raises(ValueError, match="at least 2 classes"):
        ProxyLoss(1, 4)
    with pytest.raises(ValueError, match="'learned' or 'zero'"):
        ProxyLoss(3, 4, proxy_uncertainty="no")
    with pytest.raises(ValueError, match=r"expected \(B, C\) and \(B,\)"):
        proxy_anchor(torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64))


def test_mixup_mixes_with_a_permutation_and_weights_sum_to_two():
    images = torch.rand(6, 3, 4, 4)
    mixed = mixup(images, torch.Generator().manual_seed(1))
    assert sorted(mixed.permutation.tolist()) == list(range(6)) and 0 <= mixed.weight <= 1
    expected = mixed.weight * images + (1 - mixed.weight) * images[mixed.permutation]
    assert torch.allclose(mixed.images, expected, atol=1e-6)


def test_mixed_labels_are_weighed_over_one_matrix():
    e, loss = make_embedding(6, 16), ProxyLoss(5, 16).double()
    y, partners = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([4, 3, 2, 1, 0, 0])
    expected = 0.3 * loss(e, y) + 0.7 * loss(e, partners)
    assert loss(e, y, partners, 0.3).item() == pytest.approx(expected.item(), rel=1e-12)
    calls = []
    real = ProxyLoss.matrix
    loss.matrix = lambda embedding, *rows: calls.append(1) or real(loss, embedding)
    loss(e, y, partners, 0.3)
    assert len(calls) == 1
