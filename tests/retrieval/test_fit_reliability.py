"""Fitting to one's own images: which classes fit, which calibrate, and what is left out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import idml_zoo
from idml_zoo.registry import UnknownNameError
from idml_zoo.reliability.errors import ReliabilityError, RiskNotReachable
from idml_zoo.reliability.logistic import Logistic
from idml_zoo.reliability.reliability import Reliability, default
from idml_zoo.reliability.risk import RiskTable
from idml_zoo.retrieval import fit
from idml_zoo.retrieval.answer_features import answer_features
from idml_zoo.retrieval.fit import half_of, outcomes
from idml_zoo.types import Embedding, EmbeddingError, RetrievalTask


def clustered(classes, per_class, noise=1.4, seed=0, dim=16, singletons=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    labels = torch.cat([labels, 1000 + torch.arange(singletons)])
    centres = F.normalize(torch.randn(2000, dim, generator=g))
    x = F.normalize(centres[labels] + noise * torch.randn(len(labels), dim, generator=g) / dim**0.5)
    shuffled = torch.randperm(len(labels), generator=g)
    return Embedding(x, torch.rand(len(x), 1, generator=g) * x)[shuffled], labels[shuffled]


LARGE, LARGE_LABELS = clustered(50, 50)
SMALL, SMALL_LABELS = clustered(12, 20)


@pytest.fixture
def spied(monkeypatch):
    """The classes and targets that are fitted to, and those that calibrate, in the order of the calls."""
    calls = {"fit": [], "calibrate": [], "searched": []}
    table, real_outcomes, real_forms = RiskTable.of, fit.outcomes, fit.fit_forms

    def of(score, wrong, classes, unit="classes"):
        calls["calibrate"].append((set(classes.tolist()), len(score), unit))
        return table(score, wrong, classes, unit)

    def fit_forms(closed, opened, weights=None):
        calls["fit"].append((closed, opened))
        return real_forms(closed, opened, weights)

    def spied_outcomes(task, metric="cosine", removed=None):
        calls["searched"].append(removed)
        return real_outcomes(task, metric, removed)

    monkeypatch.setattr(RiskTable, "of", of)
    monkeypatch.setattr(fit, "fit_forms", fit_forms)
    monkeypatch.setattr(fit, "outcomes", spied_outcomes)
    return calls


def test_classes_that_fit_do_not_calibrate(spied):
    fitted = idml_zoo.fit_reliability(LARGE, LARGE_LABELS)
    ((closed, opened),) = spied["fit"]
    fitting, calibrating = set(closed.classes.tolist()), spied["calibrate"][0][0]
    assert len(fitting) == len(calibrating) == 25 and not fitting & calibrating
    assert fitting | calibrating == set(range(50))
    assert set(opened.classes.tolist()) == fitting
    assert spied["searched"][0] is None and set(spied["searched"][1].tolist()) < fitting
    assert 0.4 < opened.known.mean() < 0.6
    assert [c[1:] for c in spied["calibrate"]] == [(1250, "classes")] * 2
    assert fitted.labelled.confidence != default().labelled.confidence
    assert fitted.label_free.unknown != default().label_free.unknown
    assert fitted.fitted_on == "1250 queries of 25 classes" == fitted.calibrated_on
    assert fitted.limit(0.5).size == 25


def test_fitted_coefficients_are_those_of_the_fitting_half():
    fitted = idml_zoo.fit_reliability(LARGE, LARGE_LABELS)
    near = idml_zoo.search(LARGE, LARGE, 50, exclude_self=True)
    features = answer_features(LARGE, LARGE, near.indices, LARGE_LABELS, True)
    rows = np.isin(LARGE_LABELS.numpy(), half_of(LARGE_LABELS.numpy()))
    right = (LARGE_LABELS[near.indices[:, 0]] == LARGE_LABELS).numpy()
    expected = Logistic.fit({n: v[rows] for n, v in features.items()}, fitted.labelled.confidence.features, right[rows])
    assert fitted.labelled.confidence == expected
    confidence = fitted.labelled.assess(features)[0]
    table = RiskTable.of(confidence[~rows], ~right[~rows], LARGE_LABELS.numpy()[~rows])
    assert fitted.labelled.risk == table


def test_a_fit_helps_where_images_are_unlike_those_of_the_default():
    """Probabilities on classes that neither fitted nor calibrated: a lower log loss than the default's."""
    fitted = idml_zoo.fit_reliability(LARGE, LARGE_LABELS)
    images, labels = clustered(50, 50, seed=7)
    losses = []
    for reliability in (fitted, default()):
        near = idml_zoo.search(images, images, 1, exclude_self=True, gallery_labels=labels, reliability=reliability)
        right = labels[near.indices[:, 0]] == labels
        losses.append(float(F.binary_cross_entropy(near.confidence.clamp(1e-6, 1 - 1e-6), right.float())))
    assert losses[0] < losses[1]


def test_default_coefficients_where_there_is_too_little_or_by_choice(spied):
    for reliability, images in (
        (idml_zoo.fit_reliability(SMALL, SMALL_LABELS), 240),
        (idml_zoo.fit_reliability(LARGE, LARGE_LABELS, coefficients="default"), 2500),
    ):
        assert reliability.labelled.confidence == default().labelled.confidence
        assert reliability.label_free.unknown == default().label_free.unknown
        assert reliability.fitted_on == default().fitted_on
        assert reliability.labelled.risk.queries == reliability.label_free.risk.queries == images  # all of them
    assert not spied["fit"]
    assert idml_zoo.fit_reliability(SMALL, SMALL_LABELS, coefficients="fitted").fitted_on == "120 queries of 6 classes"


def test_all_right_keeps_the_default_and_gives_a_limit():
    images, labels = clustered(50, 50, noise=0.05)
    reliability = idml_zoo.fit_reliability(images, labels)
    assert reliability.labelled.confidence == default().labelled.confidence
    for labelled in (True, False):
        limit = reliability.limit(0.05, labelled=labelled)
        assert (limit.coverage, limit.risk, limit.size) == (1, 0, 50)
    near = idml_zoo.search(images, images, 5, exclude_self=True, reliability=reliability, max_risk=0.05)
    assert not near.declined.any()
    with pytest.raises(ReliabilityError, match=r"all 1250 queries have the same outcome \(right\)"):
        idml_zoo.fit_reliability(images, labels, coefficients="fitted")


def test_the_unit_and_the_note_are_kept():
    for unit, size in (("queries", 240), ("classes", 12)):
        reliability = idml_zoo.fit_reliability(SMALL, SMALL_LABELS, unit=unit, note="my birds")
        limit = reliability.limit(0.6)
        assert (limit.unit, limit.size, reliability.calibrated_on) == (unit, size, "my birds")
    assert idml_zoo.fit_reliability(SMALL, SMALL_LABELS).calibrated_on == "240 queries of 12 classes"
    fitted = idml_zoo.fit_reliability(LARGE, LARGE_LABELS, note="x" * 200)
    assert Reliability.from_dict(fitted.to_dict()) == fitted
    with pytest.raises(ValueError, match="note must have at most 200 characters, got 201"):
        idml_zoo.fit_reliability(SMALL, SMALL_LABELS, note="x" * 201)


def test_the_order_of_images_does_not_count():
    shuffled = torch.randperm(len(LARGE), generator=torch.Generator().manual_seed(3))
    one = idml_zoo.fit_reliability(LARGE, LARGE_LABELS)
    other = idml_zoo.fit_reliability(LARGE[shuffled], LARGE_LABELS[shuffled])
    assert one.fitted_on == other.fitted_on
    for labelled in (True, False):
        first, second = one.form(labelled), other.form(labelled)
        np.testing.assert_allclose(first.confidence.weights, second.confidence.weights, atol=1e-3)
        np.testing.assert_allclose(first.unknown.weights, second.unknown.weights, atol=1e-3)
        for a, b in zip(first.risk.shares, second.risk.shares, strict=True):
            assert a.answered == b.answered and abs(a.wrong - b.wrong) <= 2 and abs(a.threshold - b.threshold) < 1e-3


def test_a_task_and_an_embedding_agree():
    task = RetrievalTask.of(SMALL, SMALL_LABELS)
    one = idml_zoo.fit_reliability(task)
    assert one == idml_zoo.fit_reliability(SMALL, SMALL_LABELS)
    assert one == idml_zoo.fit_reliability(SMALL, SMALL_LABELS.numpy())
    assert one == idml_zoo.fit_reliability(SMALL, SMALL_LABELS.tolist())


def test_queries_apart_from_the_gallery():
    is_query = torch.arange(len(LARGE)) % 2 == 0
    task = RetrievalTask.of(LARGE, LARGE_LABELS, is_query)
    fitted = idml_zoo.fit_reliability(task, coefficients="fitted")
    near = idml_zoo.search(task.queries, task.gallery, 50, gallery_labels=task.gallery_labels, reliability=fitted)
    right = task.gallery_labels[near.indices[:, 0]] == task.query_labels
    calibrating = ~torch.isin(task.query_labels, torch.as_tensor(half_of(LARGE_LABELS.numpy())))
    assert fitted.labelled.risk.queries == int(calibrating.sum())
    assert fitted.labelled.risk.shares[-1].wrong == int((~right & calibrating).sum())
    assert right[near.confidence > 0.8].float().mean() > right.float().mean() + 0.1


def test_the_promise_is_about_the_share_of_all_answers():
    """The limit's own numbers, recounted from a search in the calibration set."""
    reliability = idml_zoo.fit_reliability(SMALL, SMALL_LABELS, unit="queries")
    for max_risk in (0.3, 0.5):
        near = idml_zoo.search(
            SMALL, SMALL, 1, exclude_self=True, gallery_labels=SMALL_LABELS, reliability=reliability, max_risk=max_risk
        )
        wrong = SMALL_LABELS[near.indices[:, 0]] != SMALL_LABELS
        assert near.limit.coverage == pytest.approx(float((~near.declined).float().mean()))
        assert near.limit.risk == pytest.approx(float(wrong[~near.declined].float().mean()))
        assert near.limit.risk <= max_risk


def slow_outcomes(task, removed=()):
    """One query at a time in a gallery without the removed classes and without itself; lists of one length."""
    rows = []
    most = sum(label not in removed for label in task.gallery_labels.tolist()) - task.same_images
    for i, label in enumerate(task.query_labels.tolist()):
        if task.same_images:
            counted = sum(other == label for other in task.gallery_labels.tolist()) > 1
        else:
            counted = label in task.gallery_labels.tolist()
        if not counted:
            continue
        others = [
            j
            for j, other in enumerate(task.gallery_labels.tolist())
            if other not in removed and not (task.same_images and i == j)
        ]
        scores = (task.gallery.semantic[others].double() @ task.queries.semantic[i].double()).float()
        listed = torch.as_tensor(others)[scores.argsort(descending=True, stable=True)[: min(50, most)]]
        right = bool(task.gallery_labels[listed[0]] == label)
        kept = {c for c in task.gallery_labels.tolist() if c not in removed}
        rows.append((label, right, label in kept, listed))
    return rows


@pytest.mark.parametrize("same_images", [True, False])
@pytest.mark.parametrize("removal", ["none", "half", "all but two", "nothing"])
@pytest.mark.parametrize("seed", range(3))
def test_outcomes_equal_the_slow_twin(seed, removal, same_images):
    images, labels = clustered(8, (2, 9, 30)[seed], seed=seed, singletons=3)
    images = Embedding(images.semantic[torch.arange(len(labels)) // 2 * 2], images.uncertainty)  # duplicates
    task = RetrievalTask.of(images, labels, None if same_images else torch.arange(len(labels)) % 3 == 0)
    removed = {"none": None, "half": [1, 3, 4, 6, 1001], "all but two": list(range(2, 8)), "nothing": []}[removal]
    answers = outcomes(task, removed=None if removed is None else np.array(removed, dtype=np.int64))
    expected = slow_outcomes(task, removed or ())
    assert len(answers) == len(expected) > 0
    assert answers.classes.tolist() == [row[0] for row in expected]
    assert answers.right.tolist() == [row[1] for row in expected]
    assert answers.known.tolist() == [row[2] for row in expected]
    assert not (answers.right & ~answers.known).any()
    if removed is None:
        assert answers.known.all()
    # the features are those of the slow lists, in a gallery that has neither the removed classes nor the query
    kept = ~torch.isin(task.gallery_labels, torch.tensor(removed or [], dtype=torch.int64))
    rows = [i for i, c in enumerate(task.query_labels.tolist()) if c in {r[0] for r in expected}]
    place = kept.cumsum(0) - 1
    lists = torch.stack([place[row[3]] for row in expected])
    gallery = task.gallery[kept]
    features = answer_features(task.queries[torch.tensor(rows)], gallery, lists, task.gallery_labels[kept], same_images)
    for name, values in features.items():
        np.testing.assert_allclose(answers.features[name], values, atol=1e-4, rtol=1e-4, err_msg=name)


def test_an_image_that_is_alone_in_its_class_is_no_query_but_can_be_an_answer():
    images, labels = clustered(12, 20, singletons=5)
    answers = outcomes(RetrievalTask.of(images, labels))
    assert len(answers) == 240 and answers.classes.max() == 11
    reliability = idml_zoo.fit_reliability(images, labels)
    assert reliability.labelled.risk.queries == 240 and reliability.labelled.risk.classes == 12
    lonely, mates = torch.eye(4)[[0, 0, 1, 1]], torch.tensor([0, 1, 2, 2])
    answers = outcomes(RetrievalTask.of(Embedding(lonely, torch.zeros(4, 4)), mates))
    assert answers.classes.tolist() == [2, 2] and answers.right.all()


def test_halves_of_classes():
    classes = np.array([5, 5, 3, 9, 1, 1, 7, 2, 2])
    half = half_of(classes)
    assert half.dtype == np.int64 and len(half) == 3 and set(half) < set(classes.tolist())
    assert np.array_equal(half, half_of(classes[::-1])) and np.array_equal(half, half_of(np.unique(classes)))
    assert {tuple(sorted(half_of(np.arange(10), seed))) for seed in range(20)} != {
        tuple(sorted(half_of(np.arange(10))))
    }
    assert half_of(np.arange(4)).tolist() == [3, 1]  # another half would be another calibration of the same images
    assert len(half_of(np.array([3]))) == 0


def test_sets_that_nothing_can_be_fitted_to():
    with pytest.raises(ReliabilityError, match="the gallery has 20 images of 1 classes; at least two of each"):
        idml_zoo.fit_reliability(SMALL[:20], torch.zeros(20, dtype=torch.int64))
    with pytest.raises(ReliabilityError, match="the gallery has 1 images of 1 classes"):
        idml_zoo.fit_reliability(SMALL[:1], torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ReliabilityError, match="no query has another image of its class"):
        idml_zoo.fit_reliability(SMALL[:20], torch.arange(20))
    apart = RetrievalTask(SMALL[:20], SMALL[20:], torch.full((20,), 77), SMALL_LABELS[20:], False)
    with pytest.raises(ReliabilityError, match="no query has another image of its class"):
        idml_zoo.fit_reliability(apart)
    for classes in (2, 3):
        with pytest.raises(ReliabilityError, match=rf"at least 4 classes .* got {classes}; leave out coefficients"):
            idml_zoo.fit_reliability(SMALL, torch.arange(240) % classes, coefficients="fitted")
        assert idml_zoo.fit_reliability(SMALL, torch.arange(240) % classes).labelled.risk.classes == classes


def test_two_images_of_a_class_and_one_of_another():
    images = Embedding(torch.eye(3), torch.zeros(3, 3))
    reliability = idml_zoo.fit_reliability(images, torch.tensor([0, 0, 1]))
    assert reliability.labelled.risk.queries == 2
    with pytest.raises(RiskNotReachable):
        reliability.limit(0.1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels are needed"),
        (SMALL_LABELS[:-1], "labels must be 240 integers"),
        (SMALL_LABELS.float(), "got torch.float32"),
        (SMALL_LABELS > 3, "got torch.bool"),
        (SMALL_LABELS[:, None], "labels must be 240 integers"),
        (["robin"] * 240, "number the classes"),
    ],
)
def test_labels_that_are_none(labels, message):
    with pytest.raises(ValueError, match=message):
        idml_zoo.fit_reliability(SMALL, labels)


def test_other_bad_input():
    with pytest.raises(ValueError, match="a RetrievalTask has its labels"):
        idml_zoo.fit_reliability(RetrievalTask.of(SMALL, SMALL_LABELS), SMALL_LABELS)
    with pytest.raises(UnknownNameError, match="coefficients"):
        idml_zoo.fit_reliability(SMALL, SMALL_LABELS, coefficients="best")
    with pytest.raises(UnknownNameError, match="unit"):
        idml_zoo.fit_reliability(SMALL, SMALL_LABELS, unit="class")
    with pytest.raises(UnknownNameError):
        idml_zoo.fit_reliability(SMALL, SMALL_LABELS, metric="euclidean")
    with pytest.raises(EmbeddingError, match="NaN"):
        idml_zoo.fit_reliability(Embedding(SMALL.semantic * torch.nan, SMALL.uncertainty), SMALL_LABELS)


def test_another_metric_is_searched_by():
    images, labels = clustered(12, 20)
    images = Embedding(images.semantic, 2 * torch.rand(240, 1) * images.semantic.roll(1, 0))
    by_cosine, by_distance = (idml_zoo.fit_reliability(images, labels, metric=m) for m in ("cosine", "introspective"))
    assert by_cosine.labelled.risk != by_distance.labelled.risk
    near = idml_zoo.search(images, images, 1, "introspective", exclude_self=True)
    wrong = int((labels[near.indices[:, 0]] != labels).sum())
    assert by_distance.labelled.risk.shares[-1].wrong == wrong
