"""What a score knows of mistakes, against slow twins."""

import numpy as np
import pytest
import torch
from conftest import make_embedding

from idml_zoo.evaluation.measure import measure
from idml_zoo.evaluation.uncertainty import aurc, auroc, calibration_error, excess_aurc, spearman
from idml_zoo.metric import Metric
from idml_zoo.retrieval.knn import search
from idml_zoo.types import RetrievalTask


def test_auroc_and_spearman():
    wrong = np.array([False, False, True, True])
    assert auroc(np.array([0.1, 0.4, 0.35, 0.8]), wrong) == pytest.approx(0.75)
    assert auroc(np.ones(4), wrong) is None and auroc(np.arange(4), np.zeros(4, bool)) is None
    assert spearman(np.arange(5), np.arange(5) ** 3) == pytest.approx(1) and spearman(np.ones(5), np.arange(5)) is None


def test_uncertainty_columns_come_from_the_same_neighbours():
    e, labels = make_embedding(40, dtype=torch.float32), torch.arange(4).repeat(10)
    found = measure(RetrievalTask.of(e, labels), Metric(), severity=e.level.numpy())
    top1 = search(e, e, 1, exclude_self=True)
    wrong = (labels[top1.indices[:, 0]] != labels).numpy()
    assert found.metrics["auroc_level"] == pytest.approx(auroc(e.level.numpy(), wrong))
    assert found.metrics["auroc_top1_similarity"] == pytest.approx(auroc(-top1.scores[:, 0].numpy(), wrong))
    assert found.metrics["auroc_semantic_norm"] is None, "a constant norm says nothing"
    assert found.metrics["spearman_severity"] == pytest.approx(1)
    assert np.array_equal(found.per_query["top1"], ~wrong)


def slow_calibration_error(score, wrong, labels, bins):
    """Pool adjacent violators by hand, one half of the classes for the other; then bins of equally many."""
    half = np.array([sorted(set(labels)).index(y) % 2 for y in labels])
    probability = np.empty(len(score))
    for part in (0, 1):
        order = np.argsort(score[half != part], kind="stable")
        x, y = score[half != part][order], (~wrong[half != part][order]).astype(float)
        blocks = [[v, [t], 1] for t, v in zip(x, y, strict=True)]
        i = 0
        while i < len(blocks) - 1:
            if blocks[i][0] < blocks[i + 1][0]:  # must fall
                n = blocks[i][2] + blocks[i + 1][2]
                mean = (blocks[i][0] * blocks[i][2] + blocks[i + 1][0] * blocks[i + 1][2]) / n
                blocks[i : i + 2] = [[mean, blocks[i][1] + blocks[i + 1][1], n]]
                i = max(0, i - 1)
            else:
                i += 1
        steps_x = [t for b in blocks for t in b[1]]
        steps_y = [b[0] for b in blocks for _ in b[1]]
        probability[half == part] = np.interp(score[half == part], steps_x, steps_y)
    right = np.array([(~wrong)[probability == p].mean() for p in probability])  # of one probability: in expectation
    groups = np.array_split(np.argsort(probability, kind="stable"), bins)
    return sum(len(g) / len(score) * abs(right[g].mean() - probability[g].mean()) for g in groups)


def test_calibration_error_equals_the_slow_one():
    rng = np.random.default_rng(0)
    for count, bins in ((40, 4), (200, 15), (1000, 15)):
        score, labels = rng.normal(size=count), rng.integers(0, 9, count)
        wrong = rng.random(count) < 1 / (1 + np.exp(-3 * score))
        expected = slow_calibration_error(score, wrong, labels, bins)
        assert calibration_error(score, wrong, labels, bins) == pytest.approx(expected, abs=1e-9)
    assert calibration_error(score, wrong, labels) < 0.06, "a score that knows is well calibrated on other classes"
    assert calibration_error(np.ones(5), wrong[:5], labels[:5]) is None
    assert calibration_error(score, wrong, np.zeros(count)) is None, "there are no other classes"


def test_the_excess_is_zero_for_a_score_that_knows():
    wrong = np.random.default_rng(0).random(50) < 0.3
    assert excess_aurc(wrong + np.linspace(0, 0.5, 50), wrong) == pytest.approx(0)
    assert excess_aurc(np.linspace(0, 1, 50), wrong) > 0.05 and excess_aurc(np.ones(50), wrong) is None


def slow_aurc(score, wrong):
    """The expectation over orders of equal scores, by trying very many of them."""
    rng, found = np.random.default_rng(0), []
    for _ in range(3000):
        order = np.lexsort([rng.random(len(score)), score])
        found.append(np.mean(np.cumsum(wrong[order]) / np.arange(1, len(score) + 1)))
    return np.mean(found)


def test_aurc():
    wrong = np.array([0, 0, 1, 0, 1, 1], bool)
    score = np.arange(6.0)
    assert aurc(score, wrong) == pytest.approx(np.mean([0, 0, 1 / 3, 1 / 4, 2 / 5, 3 / 6]))
    assert aurc(score, wrong) < aurc(-score, wrong)
    tied = np.array([0.0, 1, 1, 1, 2, 2])
    assert aurc(tied, wrong) == pytest.approx(slow_aurc(tied, wrong), abs=2e-3)
    assert aurc(np.zeros(6), wrong) is None and aurc(np.array([]), np.array([], bool)) is None
