"""Features of answers against a slow twin: plain loops in float64, written from the docstring."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import needs_gpu

from idml_zoo.retrieval import answer_features as module
from idml_zoo.reliability.names import LABEL_FREE, LABELLED, UNCERTAINTY
from idml_zoo.retrieval.answer_features import LISTED, answer_features
from idml_zoo.retrieval.knn import search
from idml_zoo.types import Embedding


def log_odds(share):
    inside = 0.02 + 0.96 * share
    return math.log(inside / (1 - inside))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def distance(s):
    return max(1e-3, math.sqrt(max(0.0, 2 - 2 * s)))


def share_agreeing(places, agrees):
    return log_odds(sum(agrees[i] for i in places) / len(places))


def label_free_twin(s, kin, ordered):
    """``kin[i]``: similarity of g₁ and neighbour i, by places from 0; ``ordered``: places from 1 on, nearest first."""
    k, close = len(s), ordered[:10]
    spread = max(max(s) - min(s), 1e-6)
    twin = {
        "distance": distance(s[0]),
        "log_range": math.log(spread),
        "distance_ratio": distance(s[0]) / distance(s[-1]),
        "gap_10": s[0] - s[min(k, 10) - 1],
    }
    if k == 1:
        return twin | dict.fromkeys(("overlap", "kinship", "log_rank"), 0.0)
    return twin | {
        "overlap": log_odds(sum(place < 10 for place in close) / len(close)),
        "kinship": s[0] - kin[close[-1]],
        "log_rank": math.log(1 + sum(kin[i] > s[0] for i in ordered)),
    }


def labelled_twin(s, ordered, agrees, size):
    k, spread = len(s), max(max(s) - min(s), 1e-6)
    place = next((i for i in range(k) if not agrees[i]), k - 1)
    size = min(max(size, 1), k)
    twin = {
        "margin": s[0] - s[place],
        "relative_margin": (s[0] - s[place]) / spread,
        "log_first_other": math.log(max(place, 1)),
        "class_agreement": share_agreeing(range(size), agrees),
        "agreement_10": share_agreeing(range(min(k, 10)), agrees),
    }
    for name, temperature in (("posterior_40", 40), ("posterior_3", 3 / spread)):
        weights = [math.exp(temperature * (value - max(s))) for value in s]
        twin[name] = log_odds(sum(w for w, a in zip(weights, agrees, strict=True) if a) / sum(weights))
    return twin | {"purity": 0.0 if k == 1 else share_agreeing(ordered[:10], agrees)}


def slow_features(queries, gallery, indices, labels=None, excludes_self=False):
    """One query at a time; every list from the docstring of :func:`answer_features`."""
    vectors, levels = gallery.semantic.double().tolist(), gallery.level.double().tolist()
    names = LABEL_FREE + (LABELLED if labels is not None else ()) + UNCERTAINTY
    columns = {name: [] for name in names}
    for query, level, row in zip(
        queries.semantic.double().tolist(), queries.level.double().tolist(), indices.tolist(), strict=True
    ):
        row = row[:50]
        s = [dot(query, vectors[i]) for i in row]
        kin = [dot(vectors[row[0]], vectors[i]) for i in row]
        ordered = sorted(range(1, len(row)), key=lambda place, kin=kin: (-kin[place], place))
        twin = label_free_twin(s, kin, ordered)
        if labels is not None:
            agrees = [bool(labels[i] == labels[row[0]]) for i in row]
            size = int((labels == labels[row[0]]).sum()) - excludes_self
            twin |= labelled_twin(s, ordered, agrees, size)
        same = max(levels) == min(levels)
        for name, value in (("query_level", level), ("nearest_level", levels[row[0]])):
            twin[name] = 0.0 if same else sum(other < value for other in levels) / len(levels) - 0.5
        for name in names:
            columns[name].append(twin[name])
    return {name: np.array(values) for name, values in columns.items()}


def lattice(count, classes, seed=0, dim=16, dtype=torch.float32, level=1.0):
    """Vectors of ±1/4 around a centre per class: full of ties and duplicates, and exact in every dtype and order."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=g)
    centres = torch.randint(0, 2, (classes, dim), generator=g)
    flipped = (torch.rand(count, dim, generator=g) < 0.15).long()
    signs = ((centres[labels] + flipped) % 2) * 2.0 - 1
    u = torch.randint(-2, 3, (count, dim), generator=g) * level / 4
    return Embedding((signs / dim**0.5).to(dtype), u.to(dtype)), labels


def clustered(count, classes, seed=0, dim=24, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=g)
    x = F.normalize(torch.randn(classes, dim, generator=g)[labels] + 1.2 * torch.randn(count, dim, generator=g))
    u = torch.rand(count, 1, generator=g) * torch.randn(count, dim, generator=g)
    return Embedding(x.to(dtype), u.to(dtype)), labels


def assert_equal(features, expected, atol=2e-5):
    assert set(features) == set(expected)
    for name, values in features.items():
        assert values.dtype == np.float32 and values.shape == expected[name].shape and np.isfinite(values).all(), name
        np.testing.assert_allclose(values, expected[name], rtol=2e-5, atol=atol, err_msg=name)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("same_images", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3, 9, 10, 11, 12, 49, 50, 60])
def test_features_equal_the_slow_twin(k, same_images, labelled):
    for draw in (lattice, clustered):
        gallery, labels = draw(90, 7, seed=k)
        queries = gallery if same_images else draw(40, 7, seed=100 + k)[0]
        near = search(queries, gallery, k, exclude_self=same_images)
        given = labels if labelled else None
        features = answer_features(queries, gallery, near.indices, given, same_images)
        assert set(features) == set(LABEL_FREE + UNCERTAINTY + (LABELLED if labelled else ()))
        # a range of float32 similarities divides their rounding
        expected = slow_features(queries, gallery, near.indices, given, same_images)
        assert_equal(features, expected, atol=2e-5 if draw is lattice else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_give_the_features_of_their_own_values(dtype):
    gallery, labels = lattice(80, 5, dtype=dtype)
    near = search(gallery, gallery, 30, exclude_self=True)
    features = answer_features(gallery, gallery, near.indices, labels, True)
    assert_equal(features, slow_features(gallery, gallery, near.indices, labels, True))
    rough, labels = clustered(80, 5, dtype=dtype)  # norms off by the rounding of the dtype
    near = search(rough, rough, 30, exclude_self=True)
    features = answer_features(rough, rough, near.indices, labels, True)
    assert_equal(features, slow_features(rough, rough, near.indices, labels, True), atol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 55, 200])
def test_identical_images_are_no_division_by_nothing(count):
    one = torch.zeros(count, 4)
    one[:, 1] = 1
    gallery = Embedding(one, torch.zeros(count, 4))
    labels = torch.arange(count) % 3
    near = search(gallery, gallery, min(count, 50))
    features = answer_features(gallery, gallery, near.indices, labels)
    assert_equal(features, slow_features(gallery, gallery, near.indices, labels))
    assert (features["margin"] == 0).all() and (features["distance"] == np.float32(1e-3)).all()


@pytest.mark.parametrize("seed", range(6))
def test_a_list_of_another_order_gives_no_nan(seed):
    """By the introspective distance the first need not be the most similar: 3/r·(sᵢ − s₁) overflowed there."""
    gallery, labels = clustered(120, 6, seed=seed)
    for metric in ("introspective", "reversed"):
        near = search(gallery, gallery, 50, "cosine" if metric == "reversed" else metric, exclude_self=True)
        indices = near.indices.flip(1) if metric == "reversed" else near.indices
        features = answer_features(gallery, gallery, indices, labels, True)
        assert_equal(features, slow_features(gallery, gallery, indices, labels, True), atol=1e-3)


def test_a_level_counts_only_where_the_gallery_has_different_ones():
    queries, _ = lattice(20, 4, seed=1)
    for level in (0.0, 1.0):
        u = torch.zeros(60, 16)
        u[:, 0] = level
        gallery = Embedding(lattice(60, 4)[0].semantic, u)
        features = answer_features(queries, gallery, search(queries, gallery, 5).indices)
        assert not features["query_level"].any() and not features["nearest_level"].any()
    gallery, _ = lattice(60, 4)
    features = answer_features(queries, gallery, search(queries, gallery, 5).indices)
    assert features["query_level"].std() > 0.1 and features["nearest_level"].std() > 0.1
    assert np.abs(features["query_level"]).max() <= 0.5


@pytest.mark.parametrize(("held", "gathered"), [(1, 1), (50, 17), (170, 900)])
def test_blocks_change_nothing(monkeypatch, held, gathered):
    gallery, labels = lattice(130, 6)
    near = search(gallery, gallery, 50, exclude_self=True)
    whole = answer_features(gallery, gallery, near.indices, labels, True)
    monkeypatch.setattr(module, "_HELD", held)
    monkeypatch.setattr(module, "_GATHERED", {"cpu": gathered})
    parts = answer_features(gallery, gallery, near.indices, labels, True)
    for name, values in whole.items():
        assert np.array_equal(values, parts[name]), name


def test_no_other_query_of_the_batch_counts():
    for draw, atol in ((lattice, 0.0), (clustered, 1e-4)):
        gallery, labels = draw(150, 6)
        queries, _ = draw(30, 6, seed=1)
        near = search(queries, gallery, 50)
        together = answer_features(queries, gallery, near.indices, labels)
        for i in range(0, 30, 7):
            alone = answer_features(queries[i : i + 1], gallery, near.indices[i : i + 1], labels)
            for name, values in together.items():
                np.testing.assert_allclose(alone[name], values[i : i + 1], rtol=0, atol=atol, err_msg=name)


def test_names_of_classes_and_neighbours_beyond_fifty_do_not_count():
    gallery, labels = lattice(150, 6)
    near = search(gallery, gallery, 70, exclude_self=True)
    features = answer_features(gallery, gallery, near.indices, labels, True)
    renamed = torch.tensor([900, -3, 7, 10**12, 0, 55])[labels]
    other = answer_features(gallery, gallery, near.indices[:, :LISTED], renamed, True)
    for name, values in features.items():
        assert np.array_equal(values, other[name]), name


def test_no_queries_have_no_features():
    gallery, labels = lattice(20, 3)
    features = answer_features(gallery[:0], gallery, torch.empty(0, 5, dtype=torch.int64), labels)
    assert set(features) == set(LABEL_FREE + LABELLED + UNCERTAINTY)
    assert all(values.shape == (0,) and values.dtype == np.float32 for values in features.values())


def test_a_graph_is_not_kept_and_nothing_is_changed():
    x = F.normalize(torch.randn(40, 8)).requires_grad_()
    gallery = Embedding(x, torch.zeros(40, 8))
    before, indices = x.detach().clone(), search(gallery.detach(), gallery.detach(), 9).indices
    kept = indices.clone()
    answer_features(gallery, gallery, indices, torch.arange(40) % 4)
    assert torch.equal(x.detach(), before) and torch.equal(indices, kept)


@needs_gpu
def test_a_gpu_gives_the_same_features():
    gallery, labels = lattice(3000, 40)
    near = search(gallery, gallery, 50, exclude_self=True)
    expected = answer_features(gallery, gallery, near.indices, labels, True)
    features = answer_features(gallery.to("cuda"), gallery.to("cuda"), near.indices, labels, True)
    assert_equal(features, expected)
