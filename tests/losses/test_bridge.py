"""pytorch-metric-learning with the introspective metric, against the metric itself and slow loops over it."""

import importlib.util
import math
import pickle
import sys
import warnings

import pytest
import torch
from conftest import make_embedding

from idml_zoo.losses import bridge
from idml_zoo.losses.bridge import pack, unpack
from idml_zoo.similarity import introspective_distance, introspective_similarity
from idml_zoo.types import Embedding

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 0, 1])


@pytest.fixture(scope="module")
def pml():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of that library's own imports
        from pytorch_metric_learning import distances, losses, miners

        assert bridge.IntrospectiveDistance is bridge.IntrospectiveDistance
    return type("PML", (), {"losses": losses, "miners": miners, "distances": distances})


def leaves(level=1.0, seed=0, dtype=torch.float64):
    e = make_embedding(len(LABELS), level=level, seed=seed, dtype=dtype)
    return e.semantic.clone().requires_grad_(), e.uncertainty.clone().requires_grad_()


def test_pack_and_unpack_are_inverse_and_check_the_shape():
    e = make_embedding(5, 8, dtype=torch.float32)
    again = unpack(pack(e))
    assert pack(e).shape == (5, 16)
    assert torch.equal(again.semantic, e.semantic) and torch.equal(again.uncertainty, e.uncertainty)
    with pytest.raises(ValueError, match=r"expected \(B, 2D\).*got \(5, 15\).*pack"):
        unpack(pack(e)[:, 1:])


@pytest.mark.parametrize("tau", [0.5, 5.0])
def test_matrix_and_rows_equal_the_metric(pml, tau):
    a, b = make_embedding(6, level=2.0), make_embedding(6, level=2.0, seed=1)
    for distance, function in [
        (bridge.IntrospectiveDistance(tau), introspective_distance),
        (bridge.IntrospectiveSimilarity(tau), introspective_similarity),
    ]:
        expected = function(a, b, tau)
        assert torch.allclose(distance(pack(a), pack(b)), expected, atol=1e-12)
        assert torch.allclose(distance.pairwise_distance(pack(a), pack(b)), expected.diagonal(), atol=1e-12)
        assert torch.equal(distance(pack(a)), distance(pack(a), pack(a)))
        assert distance(pack(a), pack(b)[:4]).shape == (6, 4)


def test_to_pml_one_is_a_distance_and_the_other_a_similarity(pml):
    d, s = bridge.IntrospectiveDistance(), bridge.IntrospectiveSimilarity()
    assert (d.tau, d.p, d.power, d.is_inverted, d.normalize_embeddings) == (5.0, 1, 1, False, False)
    assert s.is_inverted and isinstance(s, pml.distances.CosineSimilarity)
    assert pickle.loads(pickle.dumps(d)).tau == 5.0
    with pytest.raises(ValueError, match="tau must be positive and finite, got 0"):
        bridge.IntrospectiveDistance(tau=0)
    with pytest.raises(TypeError, match="power cannot be chosen"):
        bridge.IntrospectiveDistance(power=2)


def test_rows_need_no_matrix(pml):
    """100,000 rows: their matrix would take 40 GB."""
    e = make_embedding(100_000, 4, dtype=torch.float32)
    assert bridge.IntrospectiveDistance().pairwise_distance(pack(e), pack(e[torch.arange(99_999, -1, -1)])).shape == (
        100_000,
    )


def test_rows_of_one_image_with_itself_have_finite_gradients(pml):
    s, u = leaves()
    packed = pack(Embedding(s, u))
    for distance in (bridge.IntrospectiveDistance(), bridge.IntrospectiveSimilarity()):
        distance.pairwise_distance(packed, packed).sum().backward(retain_graph=True)
    assert torch.isfinite(s.grad).all() and torch.isfinite(u.grad).all()


def _loss(pml, name, tau):
    distance, similarity = bridge.IntrospectiveDistance(tau), bridge.IntrospectiveSimilarity(tau)
    losses, miners = pml.losses, pml.miners
    return {
        "triplet": lambda: (losses.TripletMarginLoss(margin=0.1, distance=distance), None),
        "contrastive": lambda: (losses.ContrastiveLoss(neg_margin=0.9, distance=distance), None),
        "multi_similarity": lambda: (losses.MultiSimilarityLoss(2, 50, 0.5, distance=similarity), None),
        "nt_xent": lambda: (losses.NTXentLoss(distance=similarity), None),
        "nt_xent_distance": lambda: (losses.NTXentLoss(distance=distance), None),
        "circle": lambda: (losses.CircleLoss(distance=similarity), None),
        "triplet_mined": lambda: (
            losses.TripletMarginLoss(margin=0.1, distance=distance),
            miners.TripletMarginMiner(margin=0.1, type_of_triplets="semihard", distance=distance),
        ),
        "multi_similarity_mined": lambda: (
            losses.MultiSimilarityLoss(2, 50, 0.5, distance=similarity),
            miners.MultiSimilarityMiner(epsilon=0.1, distance=similarity),
        ),
        "proxy_anchor": lambda: (losses.ProxyAnchorLoss(4, 16, distance=similarity), None),
    }[name]()


@pytest.mark.parametrize(
    "name",
    [
        *("triplet", "contrastive", "multi_similarity", "nt_xent", "nt_xent_distance", "circle"),
        *("triplet_mined", "multi_similarity_mined", "proxy_anchor"),
    ],
)
def test_losses_and_miners_run_and_both_halves_learn(pml, name):
    loss, miner = _loss(pml, name, 5.0)
    s, u = leaves(dtype=torch.float32)
    packed = pack(Embedding(s, u))
    pairs = None if miner is None else miner(packed, LABELS)
    assert pairs is None or all(len(i) > 0 for i in pairs)
    value = loss(packed, LABELS, pairs)
    value.backward()
    assert value.item() > 0
    for gradient in (s.grad, u.grad):
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 1e-3


def test_values_equal_slow_loops_over_the_distance(pml):
    e = make_embedding(len(LABELS))
    d, count = introspective_distance(e, e).tolist(), len(LABELS)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    same = {(i, j): bool(LABELS[i] == LABELS[j]) for i, j in pairs}
    positive = [d[i][j] for i, j in pairs if same[i, j] and d[i][j] > 0]
    negative = [0.9 - d[i][j] for i, j in pairs if not same[i, j] and d[i][j] < 0.9]
    expected = sum(positive) / len(positive) + sum(negative) / len(negative)
    assert _loss(pml, "contrastive", 5.0)[0](pack(e), LABELS).item() == pytest.approx(expected, rel=1e-9)

    hinges = [
        d[a][p] - d[a][n] + 0.1 for a, p in pairs for n in range(count) if same[a, p] and not same.get((a, n), True)
    ]
    active = [h for h in hinges if h > 0]
    expected = sum(active) / len(active)  # PML averages over those that are not zero
    assert _loss(pml, "triplet", 5.0)[0](pack(e), LABELS).item() == pytest.approx(expected, rel=1e-9)

    s, total = introspective_similarity(e, e).tolist(), 0.0
    for i in range(count):
        pull = sum(math.exp(-2 * (s[i][j] - 0.5)) for j in range(count) if same.get((i, j), False))
        push = sum(math.exp(50 * (s[i][j] - 0.5)) for j in range(count) if not same.get((i, j), True))
        total += math.log(1 + pull) / 2 + math.log(1 + push) / 50
    assert _loss(pml, "multi_similarity", 5.0)[0](pack(e), LABELS).item() == pytest.approx(total / count, rel=1e-9)


@pytest.mark.parametrize("name", ["TripletMarginLoss", "ContrastiveLoss", "MultiSimilarityLoss", "NTXentLoss"])
def test_infinite_temperature_is_pmls_own_loss(pml, name):
    e, loss = make_embedding(len(LABELS)), getattr(pml.losses, name)
    if name in ("TripletMarginLoss", "ContrastiveLoss"):
        far, plain = bridge.IntrospectiveDistance(tau=1e12), pml.distances.LpDistance()
    else:
        far, plain = bridge.IntrospectiveSimilarity(tau=1e12), pml.distances.CosineSimilarity()
    expected = loss(distance=plain)(e.semantic, LABELS).item()
    assert loss(distance=far)(pack(e), LABELS).item() == pytest.approx(expected, abs=1e-6)


def test_float32_inside_autocast(pml):
    e = make_embedding(6, 64, dtype=torch.float32)
    for distance in (bridge.IntrospectiveDistance(), bridge.IntrospectiveSimilarity()):
        outside = distance(pack(e)), distance.pairwise_distance(pack(e), pack(e).flip(0))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = distance(pack(e)), distance.pairwise_distance(pack(e), pack(e).flip(0))
            half = distance(pack(e).bfloat16())
        assert all(torch.equal(o, i) for o, i in zip(outside, inside, strict=True))
        assert half.dtype == torch.float32 and torch.allclose(half, outside[0], atol=0.05)


def test_without_pml_the_error_says_what_to_install(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "pytorch_metric_learning"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    spec = importlib.util.find_spec("idml_zoo.losses.bridge")
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert fresh.pack(make_embedding(2)).shape == (2, 16)
    with pytest.raises(ImportError, match="pip install pytorch-metric-learning"):
        _ = fresh.IntrospectiveSimilarity
    with pytest.raises(AttributeError, match="has no attribute 'Introspective'"):
        _ = fresh.Introspective
