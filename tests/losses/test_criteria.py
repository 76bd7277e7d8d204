"""Every loss of the table: plain against pytorch-metric-learning, introspective against slow loops."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_embedding

from idml_zoo.losses import MarginLoss, PairLoss, create_criterion, pairs
from idml_zoo.registry import losses
from idml_zoo.types import Embedding

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of that library's own imports
    from pytorch_metric_learning import losses as pml
    from pytorch_metric_learning import miners

PAIRS = ("contrastive", "triplet", "margin", "fastap", "multi_similarity")
SEVEN = (*PAIRS, "proxy_nca", "proxy_anchor")
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 3, 0, 4, 1])


def batch(level=1.0, seed=0):
    return make_embedding(len(LABELS), 8, level, seed)


def euclidean(e):
    return (2 - 2 * e @ e.T).clamp(min=1e-8).sqrt()


def oracle(name):
    """(ours, theirs): functions of unit vectors."""
    triplets, similar = (
        miners.TripletMarginMiner(margin=0.1, type_of_triplets="semihard"),
        miners.MultiSimilarityMiner(0.1),
    )
    return {
        "contrastive": lambda e: pml.ContrastiveLoss(0, 0.5)(e, LABELS),
        "triplet": lambda e: pml.TripletMarginLoss(margin=0.1)(e, LABELS, triplets(e, LABELS)),
        "fastap": lambda e: pml.FastAPLoss(10)(e, LABELS),
        "multi_similarity": lambda e: pml.MultiSimilarityLoss(2, 50, 0.5)(e, LABELS, similar(e, LABELS)),
    }[name]


@pytest.mark.parametrize("name", ["contrastive", "triplet", "fastap", "multi_similarity"])
@pytest.mark.parametrize("seed", range(4))
def test_plain_losses_over_pairs_equal_pytorch_metric_learning(name, seed):
    vector = torch.randn(len(LABELS), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    criterion, found = create_criterion(name, 5, 8, "cosine"), []
    for function in (lambda e: criterion(Embedding(e, torch.zeros_like(e)), LABELS), oracle(name)):
        v = vector.clone().requires_grad_()
        value = function(F.normalize(v))
        value.backward()
        found.append((value.item(), v.grad))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-9) and found[0][0] > 0
    assert torch.allclose(found[0][1], found[1][1], atol=1e-7)


def test_plain_margin_equals_pytorch_metric_learning_on_the_same_triplets():
    e = batch().semantic
    drawn = []
    real = pairs._draw_negatives

    def spy(*arguments):
        drawn.append(real(*arguments))
        return drawn[-1]

    pairs._draw_negatives = spy
    try:
        s = e.clone().requires_grad_()
        criterion = MarginLoss(5, 8, "cosine").double()
        ours = criterion(Embedding(s, torch.zeros_like(s)), LABELS)
    finally:
        pairs._draw_negatives = real
    same = (LABELS[:, None] == LABELS) & ~torch.eye(len(LABELS), dtype=torch.bool)
    anchor, other = same.nonzero(as_tuple=True)
    t = e.clone().requires_grad_()
    theirs = pml.MarginLoss(margin=0.2, beta=1.2)(t, LABELS, (anchor, other, drawn[0]))
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    tangent = [x.grad - (x.grad * e).sum(1, keepdim=True) * e for x in (s, t)]
    assert torch.allclose(*tangent, atol=1e-6)
    assert criterion.boundary.grad is not None


def test_negatives_are_drawn_by_the_density_on_the_sphere():
    """Empirical frequencies against the weights written out, and the weights against q of Wu et al."""
    alpha = torch.tensor([[0.0, 0.3, 0.6, 0.9, 1.2, 1.5]], dtype=torch.float64).expand(6, 6)
    negative = torch.ones(6, 6, dtype=torch.bool)
    negative[:, 0] = False
    weights = pairs._negative_weights(alpha, negative, 16, 0.5, 1.4)[0]
    q = [max(a, 0.5) ** 14 * (1 - max(a, 0.5) ** 2 / 4) ** 6.5 for a in alpha[0].tolist()]
    expected = np.array([0, 1 / q[1], 1 / q[2], 1 / q[3], 1 / q[4], 0])  # itself no negative; the last beyond 1.4
    assert np.allclose(weights / weights.sum(), expected / expected.sum())
    anchor = torch.zeros(20_000, dtype=torch.int64)
    drawn = pairs._draw_negatives(alpha, negative, 5, 0.5, 1.4, anchor, torch.Generator().manual_seed(0))
    weights = pairs._negative_weights(alpha, negative, 5, 0.5, 1.4)[0]
    frequency = torch.bincount(drawn, minlength=6) / len(drawn)
    assert torch.allclose(frequency.double(), weights / weights.sum(), atol=0.02)


def test_plain_proxy_nca_equals_pytorch_metric_learning():
    e = batch().semantic
    theirs = pml.ProxyNCALoss(5, 8, softmax_scale=32).double()
    ours = create_criterion("proxy_nca", 5, 8, "cosine", scale=32).double()
    ours.proxies.data.copy_(theirs.proxies.data)
    s, t = e.clone().requires_grad_(), e.clone().requires_grad_()
    mine, other = ours(Embedding(s, torch.zeros_like(s)), LABELS), theirs(t, LABELS)
    mine.backward()
    other.backward()
    assert mine.item() == pytest.approx(other.item(), rel=1e-6)
    assert torch.allclose(ours.proxies.grad, theirs.proxies.grad, atol=1e-5)
    tangent = [x.grad - (x.grad * e).sum(1, keepdim=True) * e for x in (s, t)]
    assert torch.allclose(*tangent, atol=1e-5)


# introspective, against double loops


def slow_distance(s1, u1, s2, u2, tau=5.0):
    alpha = math.sqrt(sum((x - y) ** 2 for x, y in zip(s1, s2, strict=True)))
    beta = math.sqrt(sum((x + y) ** 2 for x, y in zip(u1, u2, strict=True)))
    return alpha * math.exp(-beta / (tau * max(alpha, 1e-4)))


def slow_similarity(s1, u1, s2, u2, tau=5.0):
    c = sum(x * y for x, y in zip(s1, s2, strict=True))
    alpha = math.sqrt(max(2 - 2 * c, 1e-8))
    beta = math.sqrt(sum((x + y) ** 2 for x, y in zip(u1, u2, strict=True)))
    return 1 - (1 - c) * math.exp(-beta / (tau * alpha))


def slow_pair_loss(name, e, y):
    n, s, u = len(y), e.semantic.tolist(), e.uncertainty.tolist()
    d = [[slow_distance(s[i], u[i], s[j], u[j]) for j in range(n)] for i in range(n)]
    positive = [(i, j) for i in range(n) for j in range(n) if i != j and y[i] == y[j]]
    negative = [(i, j) for i in range(n) for j in range(n) if y[i] != y[j]]

    def mean(terms):
        kept = [t for t in terms if t > 0]
        return sum(kept) / len(kept) if kept else 0.0

    if name == "contrastive":
        return mean(d[i][j] for i, j in positive) + mean(0.5 - d[i][j] for i, j in negative)
    if name == "triplet":
        return mean(
            d[a][p] - d[a][k] + 0.1
            for a, p in positive
            for k in range(n)
            if y[k] != y[a] and d[a][p] < d[a][k] <= d[a][p] + 0.1
        )
    if name == "fastap":
        total = []
        for i in range(n):
            own, every = np.zeros(11), np.zeros(11)
            for j in range(n):
                if j != i:
                    pulse = np.maximum(0, 1 - np.abs(d[i][j] ** 2 - np.arange(11) * 0.4) / 0.4)
                    every += pulse
                    own += pulse * (y[i] == y[j])
            if own.sum():
                cumulative = np.cumsum(every)
                ratio = np.divide(np.cumsum(own), cumulative, out=np.zeros(11), where=cumulative > 0)
                total.append(1 - float((own * ratio).sum() / sum(y[i] == y[j] for j in range(n) if j != i)))
        return sum(total) / len(total)
    sim = [[slow_similarity(s[i], u[i], s[j], u[j]) for j in range(n)] for i in range(n)]
    out = 0.0
    for i in range(n):
        mine = [sim[i][j] for j in range(n) if j != i and y[j] == y[i]]
        other = [sim[i][j] for j in range(n) if y[j] != y[i]]
        p = [v for v in mine if other and v - 0.1 < max(other)]
        q = [v for v in other if mine and v + 0.1 > min(mine)]
        out += math.log(1 + sum(math.exp(-2 * (v - 0.5)) for v in p)) / 2
        out += math.log(1 + sum(math.exp(50 * (v - 0.5)) for v in q)) / 50
    return out / n


@pytest.mark.parametrize("name", ["contrastive", "triplet", "fastap", "multi_similarity"])
@pytest.mark.parametrize("level", [0.1, 2.0])
def test_introspective_losses_over_pairs_equal_the_slow_loops(name, level):
    e = batch(level)
    found = create_criterion(name, 5, 8)(e, LABELS).item()
    assert found == pytest.approx(slow_pair_loss(name, e, LABELS.tolist()), rel=1e-7)


def test_introspective_margin_acts_on_d_and_draws_by_alpha(monkeypatch):
    e, seen = batch(2.0), {}
    real = pairs._draw_negatives

    def spy(semantic_distance, *rest):
        seen["alpha"], seen["drawn"] = semantic_distance, real(semantic_distance, *rest)
        return seen["drawn"]

    monkeypatch.setattr(pairs, "_draw_negatives", spy)
    found = create_criterion("margin", 5, 8).double()(e, LABELS).item()
    assert torch.allclose(seen["alpha"], euclidean(e.semantic))
    s, u, terms = e.semantic.tolist(), e.uncertainty.tolist(), []
    positive = [(i, j) for i in range(12) for j in range(12) if i != j and LABELS[i] == LABELS[j]]
    for (a, p), k in zip(positive, seen["drawn"].tolist(), strict=True):
        assert LABELS[k] != LABELS[a]
        terms.append(slow_distance(s[a], u[a], s[p], u[p]) - 1.2 + 0.2)
        terms.append(1.2 - slow_distance(s[a], u[a], s[k], u[k]) + 0.2)
    kept = [t for t in terms if t > 0]
    assert found == pytest.approx(sum(kept) / len(kept), rel=1e-6)


def test_introspective_proxy_nca_equals_the_slow_loop():
    e, loss = (
        batch(),
        create_criterion("proxy_nca", 5, 8, proxy_uncertainty="learned", scale=3.0).double().requires_grad_(False),
    )
    loss.uncertainty += 0.1 * torch.randn(5, 8, dtype=torch.float64)
    unit = F.normalize(loss.proxies).tolist()
    total = 0.0
    for i in range(12):
        d2 = [
            slow_distance(e.semantic[i].tolist(), e.uncertainty[i].tolist(), unit[p], loss.uncertainty[p].tolist()) ** 2
            for p in range(5)
        ]
        total += 3 * d2[LABELS[i]] + math.log(sum(math.exp(-3 * v) for v in d2))
    assert loss(e, LABELS).item() == pytest.approx(total / 12, rel=1e-8)


@pytest.mark.parametrize("name", SEVEN)
def test_infinite_temperature_is_the_plain_form(name):
    e = batch()
    values = []
    for similarity, tau in (("cosine", 5.0), ("introspective", 1e12)):
        torch.manual_seed(0)  # proxies, and what margin draws
        criterion = create_criterion(name, 5, 8, similarity, tau=tau).double()
        torch.manual_seed(1)
        values.append(criterion(e, LABELS).item())
    assert values[0] == pytest.approx(values[1], rel=1e-7)


@pytest.mark.parametrize("name", SEVEN)
def test_gradcheck(name):
    labels = torch.tensor([0, 0, 1, 1, 2])
    criterion = create_criterion(name, 3, 6, scale=4.0) if name == "proxy_anchor" else create_criterion(name, 3, 6)
    criterion = criterion.double()

    def value(vector, uncertainty):
        if name == "margin":
            criterion.draws.zero_()  # the same negatives each time
        return criterion(Embedding(F.normalize(vector), uncertainty), labels)

    torch.manual_seed(5)
    vector = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    uncertainty = (0.5 * torch.randn(5, 6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(value, (vector, uncertainty))


def test_margin_draws_on_where_it_was():
    """Others with each batch, the same on every process and after an interruption, whatever else draws."""
    e, first = batch(0.5), create_criterion("margin", 5, 8)
    torch.manual_seed(0)
    values = [first(e, LABELS).item() for _ in range(6)]
    assert len(set(values)) > 1
    again = create_criterion("margin", 5, 8)
    torch.manual_seed(1)
    assert [again(e, LABELS).item() for _ in range(3)] == values[:3]
    resumed = create_criterion("margin", 5, 8)
    resumed.load_state_dict(again.state_dict())
    assert [resumed(e, LABELS).item() for _ in range(3)] == values[3:]


@pytest.mark.parametrize("name", [n for n in SEVEN if n != "margin"])
@pytest.mark.parametrize("similarity", ["cosine", "introspective"])
def test_the_order_of_the_batch_does_not_matter(name, similarity):
    e, order = batch(), torch.randperm(len(LABELS))
    criterion = create_criterion(name, 5, 8, similarity).double()
    assert criterion(e[order], LABELS[order]).item() == pytest.approx(criterion(e, LABELS).item(), rel=1e-9)


@pytest.mark.parametrize("name", SEVEN)
@pytest.mark.parametrize("similarity", ["cosine", "introspective"])
def test_hopeless_batches_stay_finite(name, similarity):
    """One class only, all different, identical images, two images, huge uncertainty: finite loss and gradients."""
    same, different = torch.zeros(6, dtype=torch.int64), torch.arange(6)
    for labels in (same, different, torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1]), torch.tensor([0, 0])):
        for level, alike in ((0.1, False), (1e4, False), (0.1, True)):
            e = make_embedding(len(labels), 8, level, dtype=torch.float32)
            s = (e.semantic[:1].expand(len(labels), -1) if alike else e.semantic).clone().requires_grad_()
            u = e.uncertainty.clone().requires_grad_()
            value = create_criterion(name, 6, 8, similarity)(Embedding(s, u), labels)
            value.backward()
            assert torch.isfinite(value), (labels, level, alike)
            for gradient in (s.grad, u.grad):
                assert gradient is None or torch.isfinite(gradient).all()
            found = create_criterion(name, 6, 8, similarity).statistics(e, labels)
            assert all(torch.isfinite(v) for v in found.values()), (labels, found)
            assert s.grad is not None
            if name == "margin":
                criterion = create_criterion(name, 6, 8, similarity)
                criterion(e, labels).backward()
                assert criterion.boundary.grad is not None, "processes wait for each parameter's gradient"


def test_statistics_over_pairs():
    e = batch(2.0)
    found = create_criterion("triplet", 5, 8).statistics(e, LABELS)
    values = {True: [], False: []}
    for i in range(12):
        for j in range(12):
            if i != j:
                alpha = float((e.semantic[i] - e.semantic[j]).norm())
                beta = float((e.uncertainty[i] + e.uncertainty[j]).norm())
                values[bool(LABELS[i] == LABELS[j])].append(math.exp(-beta / (5 * alpha)))
    assert found["factor_positive"].item() == pytest.approx(np.mean(values[True]), rel=1e-6)
    assert found["factor_negative"].item() == pytest.approx(np.mean(values[False]), rel=1e-6)
    assert create_criterion("margin", 5, 8).statistics(e, LABELS)["boundary"].item() == pytest.approx(1.2)
    assert create_criterion("triplet", 5, 8, "cosine").statistics(e, LABELS)["factor_positive"].item() == 1


def test_the_weight_of_a_loss_that_has_one_can_be_set():
    assert create_criterion("loss_prediction", 4, 8, "cosine", weight=0.5).weight == 0.5
    with pytest.raises(ValueError, match="unknown setting of proxy_anchor 'weight'"):
        create_criterion("proxy_anchor", 4, 8, weight=0.5)


def test_autocast_is_full_precision():
    e = make_embedding(12, 8, dtype=torch.float32)
    for name in ("contrastive", "multi_similarity", "proxy_nca"):
        criterion = create_criterion(name, 5, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = criterion(e, LABELS)
        assert inside.dtype == torch.float32 and inside.item() == criterion(e, LABELS).item()


def test_the_table_is_complete_and_refuses_what_it_cannot_do():
    assert set(SEVEN) <= set(losses)
    assert all(losses[n].title for n in losses)
    with pytest.raises(ValueError, match="unknown similarity for triplet 'released'"):
        create_criterion("triplet", 5, 8, "released")
    with pytest.raises(ValueError, match="unknown setting of triplet 'marginn'; did you mean 'margin'"):
        create_criterion("triplet", 5, 8, marginn=1)
    for setting in ("generator", "dim"):
        with pytest.raises(ValueError, match=f"unknown setting of margin '{setting}'"):
            create_criterion("margin", 5, 8, **{setting: 1})
    with pytest.raises(ValueError, match="compares with proxies"):
        PairLoss("proxy_nca", 8)
    with pytest.raises(ValueError, match="a module of its own; use create_criterion"):
        PairLoss("margin", 8)
    with pytest.raises(ValueError, match=r"expected \(B, B\) and \(B,\)"):
        pairs.contrastive(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 3 dimensions"):
        pairs.margin_loss(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64), 2)
