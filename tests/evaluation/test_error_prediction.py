import numpy as np
import pytest
import torch
import torch.nn.functional as F

import idml_zoo
from idml_zoo.evaluation.error_prediction import error_prediction, error_scores, open_set
from idml_zoo.evaluation.measure import measure
from idml_zoo.evaluation.uncertainty import coverage_at, probability_error
from idml_zoo.metric import Metric
from idml_zoo.reliability.reliability import default
from idml_zoo.types import Embedding, RetrievalTask


def clustered(count=240, classes=12, dim=16, noise=0.5, seed=0):
    random = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(classes, dim, generator=random))
    labels = torch.arange(count) % classes
    semantic = F.normalize(centres[labels] + noise * torch.randn(count, dim, generator=random) / dim**0.5 * 2)
    return Embedding(semantic, 0.3 * torch.randn(count, dim, generator=random), torch.rand(count) + 1), labels


def slow_coverage(score, wrong, risk):
    """By hand, for scores without ties: the largest part, surest first, with so few wrong ones."""
    order, best = np.argsort(score), 0
    for n in range(1, len(score) + 1):
        if wrong[order[:n]].mean() <= risk:
            best = n
    return best / len(score)


@pytest.mark.parametrize("risk", [0.0, 0.05, 0.1, 0.5, 1.0])
def test_coverage_at_a_risk_is_the_largest_part_that_keeps_it(risk):
    random = np.random.RandomState(0)
    score, wrong = random.rand(200), random.rand(200) < 0.3
    assert coverage_at(score, wrong, risk) == slow_coverage(score, wrong, risk)


def test_coverage_of_a_perfect_score_is_the_right_answers_and_what_the_risk_allows():
    wrong = np.arange(100) >= 60
    assert coverage_at(np.arange(100.0), wrong, 0.0) == 0.6
    assert coverage_at(np.arange(100.0), wrong, 0.1) == 0.66  # 6 of 66
    assert coverage_at(-np.arange(100.0), wrong, 0.1) == 0.0
    assert coverage_at(np.zeros(100), wrong, 0.1) is None


def test_the_error_of_a_probability_needs_no_order_of_equal_ones():
    random = np.random.RandomState(0)
    probability = random.rand(4000)
    right = random.rand(4000) < probability
    assert probability_error(probability, right) < 0.03  # it is what it says
    assert probability_error(np.full(4000, 0.9), right) == pytest.approx(0.9 - right.mean())
    assert probability_error(np.full(10, 0.5), np.arange(10) < 5) == pytest.approx(0)
    again = random.permutation(4000)
    assert probability_error(probability[again], right[again]) == pytest.approx(probability_error(probability, right))


def test_scores_of_errors_are_what_their_names_say():
    embedding, labels = clustered()
    task = RetrievalTask.of(embedding, labels)
    near = idml_zoo.search(embedding, embedding, 50, exclude_self=True)
    scores = error_scores(task, near, Metric())
    similarity = (embedding.semantic.double() @ embedding.semantic.double().T).numpy()
    np.fill_diagonal(similarity, -np.inf)
    for i in range(0, len(labels), 17):
        order = np.argsort(-similarity[i], kind="stable")[:50]
        agrees = (labels[order] == labels[order[0]]).numpy()
        weights = np.exp(40 * (similarity[i][order] - similarity[i][order[0]]))
        assert scores["level"][i] == pytest.approx(float(embedding.uncertainty[i].norm()), rel=1e-5)
        assert -scores["top1_similarity"][i] == pytest.approx(similarity[i][order[0]], abs=1e-6)
        assert -scores["posterior"][i] == pytest.approx((weights * agrees).sum() / weights.sum(), abs=1e-4)
        assert -scores["agreement"][i] == pytest.approx(agrees[:10].mean(), abs=1e-5)
        assert -scores["spread"][i] == pytest.approx(similarity[i][order[0]] - similarity[i][order[-1]], abs=1e-5)
    for name, gallery_labels in (("confidence", labels), ("confidence_label_free", None)):
        near = idml_zoo.search(
            embedding, embedding, 1, exclude_self=True, confidence=True, gallery_labels=gallery_labels
        )
        np.testing.assert_allclose(-scores[name], near.confidence, atol=1e-6)


def test_measures_of_errors_hold_every_score_and_a_confidence_counts_as_it_is():
    embedding, labels = clustered()
    measured = measure(RetrievalTask.of(embedding, labels), Metric())
    wrong = ~measured.per_query["top1"]
    for name in ("level", "top1_similarity", "margin", "semantic_norm", "posterior", "agreement", "spread"):
        assert measured.metrics[f"auroc_{name}"] is not None
    for name in ("confidence", "confidence_label_free"):
        probability = -measured.per_query[name].astype(float)
        assert measured.metrics[f"ece_{name}"] == pytest.approx(probability_error(probability, ~wrong))
        assert measured.metrics[f"coverage10_{name}"] == pytest.approx(coverage_at(-probability, wrong, 0.1))
    assert measured.metrics["auroc_confidence"] > measured.metrics["auroc_level"]
    same = error_prediction({"level": np.zeros(len(wrong))}, wrong, labels.numpy())
    assert same["auroc_level"] is same["coverage5_level"] is None


def test_the_open_set_is_what_half_of_the_classes_make_of_it():
    embedding, labels = clustered(noise=0.8)
    points = open_set(RetrievalTask.of(embedding, labels), splits=2)
    from sklearn.metrics import roc_auc_score

    expected = {"unknown": [], "wrong": []}
    similarity = (embedding.semantic.double() @ embedding.semantic.double().T).numpy()
    np.fill_diagonal(similarity, -np.inf)
    for split in range(2):
        removed = np.random.RandomState(split).permutation(12)[:6]
        kept = ~np.isin(labels, removed)
        nearest = np.flatnonzero(kept)[similarity[:, kept].argmax(1)]
        score, wrong = -similarity[np.arange(len(labels)), nearest], labels.numpy()[nearest] != labels.numpy()
        expected["unknown"].append(roc_auc_score(~kept, score))
        expected["wrong"].append(roc_auc_score(wrong, score))
        assert wrong[~kept].all()
    for name, values in expected.items():
        assert points["top1_similarity"][name] == pytest.approx(np.mean(values), abs=1e-6)
        assert points["top1_similarity"][f"{name}_std"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert {"confidence", "unknown", "confidence_label_free", "unknown_label_free", "level"} <= set(points)


def test_an_open_set_needs_classes_that_stay():
    embedding, labels = clustered(classes=3)
    with pytest.raises(ValueError, match="at least four classes"):
        open_set(RetrievalTask.of(embedding, labels))


def test_the_default_was_fitted_on_training_classes_and_promises_nothing():
    assert default().labelled.risk is None
    assert default().label_free.risk is None
    assert "training classes" in default().fitted_on


def test_eval_measures_the_open_set_and_its_row_is_not_replaced_without(tmp_path, capsys):
    from idml_zoo.cli.main import main
    from idml_zoo.results import read_results

    words = ["eval", "features", "glyphs_subset", "--backbone", "test_resnet", "--leaderboard", str(tmp_path)]
    assert main([*words, "--open-set"]) == 0
    (result,) = read_results(tmp_path / "results")
    assert result.schema == 3 and set(result.open_set["confidence"]) == {
        "unknown", "unknown_std", "wrong", "wrong_std",
    }  # fmt: skip
    capsys.readouterr()
    assert main(words) != 0
    assert "add --open-set, or --force" in capsys.readouterr().err
