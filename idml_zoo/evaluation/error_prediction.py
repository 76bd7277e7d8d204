"""Which scores tell a wrong nearest neighbour, and how well: the uncertainty level, free baselines, and confidence."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from idml_zoo.evaluation.uncertainty import (
    aurc,
    auroc,
    calibration_error,
    coverage_at,
    excess_aurc,
    probability_error,
)
from idml_zoo.metric import Metric
from idml_zoo.metric_names import COVERAGES, OPEN_SET
from idml_zoo.reliability.reliability import Reliability, default
from idml_zoo.retrieval.answer_features import answer_features, share_of
from idml_zoo.retrieval.fit import outcomes
from idml_zoo.retrieval.knn import class_margin
from idml_zoo.types import Neighbours, RetrievalTask

SPLITS = 5  # of the open set
_PROBABILITIES = ("confidence", "confidence_label_free")


def error_scores(
    task: RetrievalTask, neighbours: Neighbours, metric: Metric, backend: str = "auto"
) -> dict[str, np.ndarray]:
    """Returns the scores that may tell a wrong nearest neighbour, ``(Q,)`` float32 each, larger = less sure.

    Args:
        task: queries, gallery and their labels.
        neighbours: of the queries; at least 50 where the gallery has them.
        metric, backend: of the search that found them.

    Returns:
        ``level`` is ‖u‖. The others are minus something: ``top1_similarity`` the first score; ``margin``
        :func:`~idml_zoo.retrieval.knn.class_margin`; ``semantic_norm`` that, where it is there; ``posterior`` the share
        of exp(40·cosine) of the 50 nearest that is of the class of the first; ``agreement`` the share of the 10 nearest
        that is; ``spread`` how much nearer the first is than the 50th; ``confidence``, ``confidence_label_free`` the
        default estimator's probability that the first is right.
    """
    features = answer_features(
        task.queries, task.gallery, neighbours.indices, task.gallery_labels, neighbours.excludes_self
    )
    scores = {"level": task.queries.level, "top1_similarity": -neighbours.scores[:, 0]}
    scores["margin"] = -class_margin(task, neighbours, metric, backend)
    if task.queries.semantic_norm is not None:
        scores["semantic_norm"] = -task.queries.semantic_norm
    plain = {n: s.float().cpu().numpy() for n, s in scores.items()}
    return plain | free_scores(features) | _estimated(features, default())


def free_scores(features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns posterior, agreement and spread of :func:`error_scores` from the features of the answers."""
    return {
        "posterior": -share_of(features["posterior_40"]),
        "agreement": -share_of(features["agreement_10"]),
        "spread": -np.exp(features["log_range"]),
    }


def _estimated(features: Mapping[str, np.ndarray], reliability: Reliability) -> dict[str, np.ndarray]:
    """Returns minus the confidence of both forms."""
    forms = zip(_PROBABILITIES, (True, False), strict=True)
    return {name: -reliability.form(labelled).assess(features)[0] for name, labelled in forms}


def error_prediction(
    scores: Mapping[str, np.ndarray], wrong: np.ndarray, classes: np.ndarray
) -> dict[str, float | None]:
    """Returns how well each score tells a wrong nearest neighbour.

    Args:
        scores: of :func:`error_scores`, ``(N,)`` each.
        wrong: ``(N,)`` bool.
        classes: ``(N,)`` int, of the queries.

    Returns:
        ``auroc_*``, ``aurc_*``, ``eaurc_*``, ``ece_*``, ``coverage5_*`` and ``coverage10_*`` of each score, as
        fractions; see :mod:`idml_zoo.evaluation.uncertainty`. The ECE of a confidence is that of the probability as it
        is; any other score is made a probability on other classes first. None where a metric is not defined.
    """
    metrics: dict[str, float | None] = {}
    for name, score in scores.items():
        metrics[f"auroc_{name}"] = auroc(score, wrong)
        metrics[f"aurc_{name}"] = aurc(score, wrong)
        metrics[f"eaurc_{name}"] = excess_aurc(score, wrong)
        probability = name in _PROBABILITIES
        metrics[f"ece_{name}"] = (
            probability_error(-score.astype(np.float64), ~wrong)
            if probability
            else calibration_error(score, wrong, classes)
        )
        metrics |= {f"{coverage}_{name}": coverage_at(score, wrong, risk) for coverage, risk in COVERAGES.items()}
    return metrics


def open_set(
    task: RetrievalTask,
    metric: Metric | str = "cosine",
    splits: int = SPLITS,
    reliability: Reliability | None = None,
) -> dict[str, dict[str, float]]:
    """Measures queries whose class may not be in the gallery: half of the classes leave it, drawn by numpy's frozen
    ``RandomState(split)``.

    Args:
        task: queries, gallery and their labels, of at least four classes.
        metric: of the search.
        splits: number of such halves.
        reliability: of the confidence; None for the default.

    Returns:
        By score: AUROC for "the class is not in the gallery" (``unknown``) and for "the answer is wrong, for whatever
        reason" (``wrong``), each the mean over the splits, with ``unknown_std`` and ``wrong_std``. The scores are those
        of :func:`error_scores` but for ``semantic_norm``, and ``unknown``, ``unknown_label_free`` of the default
        estimators. Scores that are constant are left out.

    Raises:
        ValueError: fewer than four classes.
    """
    classes = np.unique(task.gallery_labels.cpu().numpy())
    if len(classes) < 4:
        raise ValueError(f"an open set needs at least four classes, so that two stay, got {len(classes)}")
    used = reliability or default()
    values: dict[str, list[tuple[float, float]]] = {}
    for split in range(splits):
        removed = np.random.RandomState(split).permutation(classes)[: len(classes) // 2]
        answers = outcomes(task, metric, removed)
        features = answers.features
        scores = {"level": features["query_level"], "top1_similarity": features["distance"]}
        scores |= {"margin": -features["margin"]} | free_scores(features) | _estimated(features, used)
        for name, labelled in (("unknown", True), ("unknown_label_free", False)):
            scores[name] = used.form(labelled).assess(features)[1]
        for name, score in scores.items():
            pair = auroc(score, ~answers.known), auroc(score, ~answers.right)
            if pair[0] is not None and pair[1] is not None:
                values.setdefault(name, []).append((pair[0], pair[1]))
    points = {}
    for name, pairs in values.items():
        mean, std = np.mean(pairs, axis=0), np.std(pairs, axis=0, ddof=1) if len(pairs) > 1 else np.zeros(2)
        numbers = (mean[0], std[0], mean[1], std[1])
        points[name] = dict(zip(OPEN_SET, map(float, numbers), strict=True))
    return points
