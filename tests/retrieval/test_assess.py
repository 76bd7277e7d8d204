"""Confidence in a search and of answers that are already there: the same neighbours, the same numbers, clear errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import idml_zoo
from idml_zoo.reliability.errors import ReliabilityError, RiskNotReachable
from idml_zoo.reliability.reliability import default
from idml_zoo.reliability.risk import RiskTable
from idml_zoo.retrieval import answers
from idml_zoo.retrieval.answer_features import answer_features
from idml_zoo.types import Embedding, EmbeddingError, Neighbours


def clustered(count, classes, seed=0, noise=1.0, dim=24, level=0.0):
    """Images around a centre per class, with the classes themselves; some of each lie nearer to others."""
    centres = F.normalize(torch.randn(classes, dim, generator=torch.Generator().manual_seed(99)))
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=g)
    x = F.normalize(centres[labels] + noise * torch.randn(count, dim, generator=g) / dim**0.5 * 1.5)
    u = level * torch.rand(count, 1, generator=g) * torch.randn(count, dim, generator=g)
    return Embedding(x, u), labels


GALLERY, LABELS = clustered(600, 30)
QUERIES, TRUTH = clustered(250, 30, seed=1)
CALIBRATED = idml_zoo.fit_reliability(*clustered(900, 30, seed=2), unit="queries")


def same(first, second):
    assert torch.equal(first.indices, second.indices) and torch.equal(first.scores, second.scores)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("k", [1, 3, 50, 80])
def test_confidence_changes_no_answer_and_does_not_depend_on_k(k, labelled):
    labels = LABELS if labelled else None
    for queries, exclude_self in ((QUERIES, False), (GALLERY, True)):
        plain = idml_zoo.search(queries, GALLERY, k, exclude_self=exclude_self)
        near = idml_zoo.search(queries, GALLERY, k, exclude_self=exclude_self, confidence=True, gallery_labels=labels)
        same(plain, near)
        assert plain.confidence is None and plain.unknown is None and near.declined is None and near.limit is None
        assert near.k == k and near.excludes_self == exclude_self and near.indices.is_contiguous()
        fifty = idml_zoo.search(queries, GALLERY, 50, exclude_self=exclude_self, confidence=True, gallery_labels=labels)
        for name in ("confidence", "unknown"):
            value = getattr(near, name)
            assert torch.equal(value, getattr(fifty, name))
            assert value.shape == (len(queries),) and value.dtype == torch.float32
            assert (value >= 0).all() and (value <= 1).all() and value.std() > 0.01


def test_confidence_is_the_estimators_of_the_features():
    near = idml_zoo.search(QUERIES, GALLERY, 50, gallery_labels=LABELS)
    features = answer_features(QUERIES, GALLERY, near.indices, LABELS)
    for column, name in zip(default().labelled.assess(features), ("confidence", "unknown"), strict=True):
        np.testing.assert_array_equal(getattr(near, name).numpy(), column)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_default_tells_wrong_answers_from_right_ones(labelled):
    labels = LABELS if labelled else None
    near = idml_zoo.search(QUERIES, GALLERY, 1, confidence=True, gallery_labels=labels)
    right = LABELS[near.indices[:, 0]] == TRUTH
    assert 0.2 < right.float().mean() < 0.95

    def auroc(score):
        return float((score[right][:, None] > score[~right]).float().mean())

    assert auroc(near.confidence) > (0.75 if labelled else 0.6)
    assert not labelled or auroc(near.confidence) > auroc(near.scores[:, 0]) + 0.05


def test_each_argument_asks_for_the_confidence():
    label_free = idml_zoo.search(QUERIES, GALLERY, confidence=True)
    assert torch.equal(idml_zoo.search(QUERIES, GALLERY, reliability=default()).confidence, label_free.confidence)
    labelled = idml_zoo.search(QUERIES, GALLERY, gallery_labels=LABELS)
    assert labelled.confidence is not None and not torch.equal(labelled.confidence, label_free.confidence)
    limited = idml_zoo.search(QUERIES, GALLERY, reliability=CALIBRATED, max_risk=0.5)
    assert limited.confidence is not None and limited.limit == CALIBRATED.limit(0.5, labelled=False)


@pytest.mark.parametrize(("labelled", "max_risk"), [(True, 0.3), (False, 0.45)])
def test_declined_are_those_below_the_limit(labelled, max_risk):
    labels = LABELS if labelled else None
    near = idml_zoo.search(QUERIES, GALLERY, 5, gallery_labels=labels, reliability=CALIBRATED, max_risk=max_risk)
    assert near.limit == CALIBRATED.limit(max_risk, labelled=labelled)
    expected = [float(c) < near.limit.threshold for c in near.confidence]
    assert near.declined.dtype == torch.bool and near.declined.tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_a_query_at_the_threshold_is_answered():
    confidence = idml_zoo.search(QUERIES, GALLERY, 5, gallery_labels=LABELS).confidence
    table = RiskTable.of(confidence.numpy(), np.zeros(len(QUERIES), dtype=bool), TRUTH.numpy(), "queries")
    every = replace(default(), labelled=replace(default().labelled, risk=table))
    near = idml_zoo.search(QUERIES, GALLERY, 5, gallery_labels=LABELS, reliability=every, max_risk=0.2)
    assert near.limit.threshold == float(confidence.min()) and not near.declined.any()


def test_too_uncertain_and_too_risky_are_both_declined():
    queries, _ = clustered(250, 30, seed=1, level=1.0)
    gallery, _ = clustered(600, 30, level=1.0)
    middle = float(queries.level.median())
    near = idml_zoo.search(
        queries, gallery, 5, max_uncertainty=middle, gallery_labels=LABELS, reliability=CALIBRATED, max_risk=0.3
    )
    uncertain, unsure = queries.level > middle, near.confidence < near.limit.threshold
    assert torch.equal(near.declined, uncertain | unsure)
    assert (uncertain & ~unsure).any() and (unsure & ~uncertain).any()
    only = idml_zoo.search(queries, gallery, 5, max_uncertainty=middle, confidence=True)
    assert torch.equal(only.declined, uncertain) and only.limit is None


@pytest.mark.parametrize("labelled", [True, False])
def test_answers_of_another_engine_are_judged_alike(labelled):
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatIP(GALLERY.dim)
    index.add(GALLERY.semantic.numpy())
    scores, indices = index.search(QUERIES.semantic.numpy(), 50)
    product = (QUERIES.semantic.double() @ GALLERY.semantic.double().T).topk(50, dim=1)
    labels = LABELS if labelled else None
    ours = idml_zoo.search(QUERIES, GALLERY, 7, confidence=True, gallery_labels=labels)
    for near in (
        Neighbours(torch.from_numpy(indices), torch.from_numpy(scores)),
        Neighbours(product.indices, product.values.float()),
    ):
        judged = idml_zoo.assess(QUERIES, GALLERY, near, gallery_labels=labels)
        same(near, judged)
        torch.testing.assert_close(judged.confidence, ours.confidence, rtol=0, atol=1e-5)
        torch.testing.assert_close(judged.unknown, ours.unknown, rtol=0, atol=1e-5)


def test_assess_keeps_what_was_declined_and_looks_at_fewer_than_fifty():
    near = idml_zoo.search(QUERIES, GALLERY, 5, max_uncertainty=0.0)
    near = replace(near, declined=torch.arange(250) % 2 == 0)
    judged = idml_zoo.assess(QUERIES, GALLERY, near, LABELS, CALIBRATED, max_risk=0.3)
    assert torch.equal(judged.declined, (torch.arange(250) % 2 == 0) | (judged.confidence < judged.limit.threshold))
    assert ((judged.confidence >= 0) & (judged.confidence <= 1)).all()


@pytest.mark.parametrize("metric", ["introspective", idml_zoo.Metric("introspective", 0.5)])
def test_introspective_neighbours_are_judged_in_their_order(metric):
    queries, _ = clustered(100, 30, seed=1, level=1.0)
    gallery, labels = clustered(400, 30, level=1.0)
    near = idml_zoo.search(queries, gallery, 50, metric, gallery_labels=labels)
    same(near, idml_zoo.search(queries, gallery, 50, metric))
    assert torch.isfinite(near.confidence).all() and torch.isfinite(near.unknown).all()
    assert torch.equal(idml_zoo.assess(queries, gallery, near, labels).confidence, near.confidence)
    by_cosine = idml_zoo.search(queries, gallery, 50, gallery_labels=labels)
    assert not torch.equal(by_cosine.indices, near.indices)
    assert not torch.equal(by_cosine.confidence, near.confidence)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_have_a_confidence(dtype):
    queries, gallery = QUERIES.to(dtype), GALLERY.to(dtype)
    near = idml_zoo.search(queries, gallery, 5, gallery_labels=LABELS)
    assert near.confidence.dtype == torch.float32 and torch.isfinite(near.confidence).all()
    exact = idml_zoo.search(QUERIES, GALLERY, 5, gallery_labels=LABELS).confidence
    assert (near.confidence - exact).abs().mean() < 0.05


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_small_galleries(count):
    gallery, labels = GALLERY[:count], torch.arange(count)
    near = idml_zoo.search(QUERIES, gallery, 1, confidence=True)
    assert ((near.confidence >= 0) & (near.confidence <= 1)).all() and ((near.unknown >= 0) & (near.unknown <= 1)).all()
    if count == 1:
        with pytest.raises(ValueError, match="all of the gallery is of one class"):
            idml_zoo.search(QUERIES, gallery, 1, gallery_labels=labels)
        return
    for near in (
        idml_zoo.search(QUERIES, gallery, 1, gallery_labels=labels),
        idml_zoo.search(gallery, gallery, 1, exclude_self=True, gallery_labels=labels),
        idml_zoo.search(gallery, gallery, 1, exclude_self=True, confidence=True),
    ):
        assert ((near.confidence >= 0) & (near.confidence <= 1)).all()


def test_no_queries_have_no_confidence():
    near = idml_zoo.search(QUERIES[:0], GALLERY, 5, gallery_labels=LABELS, reliability=CALIBRATED, max_risk=0.3)
    assert near.confidence.shape == near.unknown.shape == near.declined.shape == (0,)


BAD_LABELS = {
    "too few": (LABELS[:-1], "gallery_labels must be 600 integers, one for each image, got torch.int64 of shape"),
    "too many": (torch.cat([LABELS, LABELS]), "must be 600 integers"),
    "a column": (LABELS[:, None], "must be 600 integers"),
    "float": (LABELS.float(), "got torch.float32"),
    "bool": (LABELS > 3, "got torch.bool"),
    "NaN": (torch.full((600,), torch.nan), "got torch.float32"),
    "complex": (LABELS.to(torch.complex64), "got torch.complex64"),
    "names": (["sparrow"] * 600, "number the classes"),
    "numpy names": (np.array(["sparrow"] * 600), "number the classes"),
    "one class": (torch.zeros(600, dtype=torch.int64), "all of the gallery is of one class.*leave out gallery_labels"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_are_none_of_the_gallery(case, monkeypatch):
    labels, message = BAD_LABELS[case]
    near = idml_zoo.search(QUERIES, GALLERY, 50)
    monkeypatch.setattr(answers, "answer_features", None)  # refused before anything is computed
    with pytest.raises(ValueError, match=message):
        idml_zoo.search(QUERIES, GALLERY, 5, gallery_labels=labels)
    with pytest.raises(ValueError, match=message):
        idml_zoo.assess(QUERIES, GALLERY, near, labels)


@pytest.mark.parametrize("labels", [LABELS.numpy(), LABELS.numpy().astype(np.uint8), LABELS.tolist(), LABELS.int()])
def test_labels_of_other_kinds_of_integers(labels):
    near = idml_zoo.search(QUERIES, GALLERY, 5, gallery_labels=labels)
    assert torch.equal(near.confidence, idml_zoo.search(QUERIES, GALLERY, 5, gallery_labels=LABELS).confidence)


def test_a_risk_needs_a_calibration_and_lies_between_nothing_and_all():
    for arguments in ({}, {"reliability": default()}, {"gallery_labels": LABELS}):
        with pytest.raises(ReliabilityError, match="no limit without a calibration: give a reliability that"):
            idml_zoo.search(QUERIES, GALLERY, 5, max_risk=0.1, **arguments)
    for max_risk in (0, 1, 0.0, 1.0, -0.2, 2, float("nan"), float("inf")):
        with pytest.raises(ReliabilityError, match="max_risk must lie between 0 and 1"):
            idml_zoo.search(QUERIES, GALLERY, 5, reliability=CALIBRATED, max_risk=max_risk)
    with pytest.raises(RiskNotReachable, match="a risk of 0.01 % is not reachable"):
        idml_zoo.search(QUERIES, GALLERY, 5, reliability=CALIBRATED, max_risk=0.0001)


def test_a_reliability_is_no_path():
    with pytest.raises(TypeError, match=r"got str; read a file with idml_zoo.Reliability.load"):
        idml_zoo.search(QUERIES, GALLERY, 5, reliability="mine.json")


def test_neighbours_that_are_none():
    near = idml_zoo.search(QUERIES, GALLERY, 5)
    with pytest.raises(ValueError, match="250 queries but neighbours of 249"):
        idml_zoo.assess(QUERIES, GALLERY, Neighbours(near.indices[1:], near.scores[1:]))
    for row in (-1, 600):
        indices = near.indices.clone()
        indices[3, 4] = row
        with pytest.raises(ValueError, match="neighbours must be rows of the gallery, 0 to 599"):
            idml_zoo.assess(QUERIES, GALLERY, replace(near, indices=indices))
    with pytest.raises(ValueError, match="one for each query at least"):
        idml_zoo.assess(QUERIES, GALLERY, Neighbours(near.indices[:, :0], near.scores[:, :0]))


def test_broken_embeddings_are_refused():
    with pytest.raises(EmbeddingError, match="NaN"):
        idml_zoo.search(Embedding(QUERIES.semantic * torch.nan, QUERIES.uncertainty), GALLERY, 5, confidence=True)
    with pytest.raises(ValueError, match="k must be in 1–600"):
        idml_zoo.search(QUERIES, GALLERY, 601, confidence=True)
