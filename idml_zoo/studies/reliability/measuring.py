"""Measures confidence on every source, with coefficients that were never fitted on its set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from idml_zoo.evaluation.error_prediction import free_scores, open_set
from idml_zoo.metric_names import ERROR_SCORES
from idml_zoo.reliability.reliability import Reliability
from idml_zoo.retrieval.answer_features import LISTED, answer_features
from idml_zoo.retrieval.fit import EVERY_FEATURE, Outcomes, outcomes
from idml_zoo.retrieval.knn import search
from idml_zoo.studies.reliability.judging import (
    calibration,
    compare_scores,
    difference,
    fitted_elsewhere,
    promises,
    strongest,
    what_level_adds,
)
from idml_zoo.studies.reliability.sources import Embedded
from idml_zoo.types import RetrievalTask

# The free scores of each form, and its confidence; a form is compared with the strongest of them.
FORMS = {
    "labelled": ("confidence", ("top1_similarity", "margin", "posterior", "agreement", "spread", "level")),
    "label_free": ("confidence_label_free", ("top1_similarity", "spread", "level")),
}


def answers_of(data: Embedded) -> tuple[Outcomes, Outcomes]:
    """Returns the answers in a gallery with every class, and in one without half of them (the first split)."""
    task = RetrievalTask.of(data.embedding, data.labels)
    classes = np.unique(data.labels.numpy())
    return outcomes(task), outcomes(task, removed=np.random.RandomState(0).permutation(classes)[: len(classes) // 2])


def _scores(answers: Outcomes, elsewhere: Reliability, shipped: Reliability) -> dict[str, np.ndarray]:
    """Returns every score that may tell a wrong answer, ``(N,)``, larger = less sure."""
    features = answers.features
    scores = {"level": features["query_level"], "top1_similarity": features["distance"], "margin": -features["margin"]}
    scores |= free_scores(features)
    for ending, form in (("", "labelled"), ("_label_free", "label_free")):
        for name, reliability in (("confidence", elsewhere), ("shipped", shipped)):
            scores[name + ending] = -getattr(reliability, form).assess(features)[0]
        scores["fitted" + ending] = -fitted_elsewhere(answers, EVERY_FEATURE[form == "label_free"])
    return {n: s for n, s in scores.items() if np.ptp(s) > 0}


def measure_source(data: Embedded, elsewhere: Reliability, shipped: Reliability) -> dict[str, Any]:
    """Returns the figures of one source.

    Args:
        data: its embedding.
        elsewhere: coefficients fitted without its set.
        shipped: the default coefficients.
    """
    task = RetrievalTask.of(data.embedding, data.labels)
    answers = outcomes(task)
    scores = _scores(answers, elsewhere, shipped)
    figures = compare_scores(scores, answers)
    result: dict[str, Any] = {
        "queries": len(answers),
        "classes": len(np.unique(answers.classes)),
        "wrong": round(float((~answers.right).mean()), 5),
        "against_free": {},
        "calibration": {n: calibration(-scores[n], answers) for n in scores if n not in ERROR_SCORES or "conf" in n},
    }
    for form, (name, free) in FORMS.items():
        result["against_free"][form] = [difference(figures, name, n) for n in free if n in figures]
        result["against_free"][f"{form}_strongest"] = strongest(figures, free)
    if "level" in scores:
        result["level_adds"] = {form: what_level_adds(answers, EVERY_FEATURE[form == "label_free"]) for form in FORMS}
    result["scores"] = {n: {k: v for k, v in f.items() if k != "_draws"} for n, f in figures.items()}
    result["open_set"] = open_set(task, reliability=elsewhere)
    return result


def corrupted_answers(data: Embedded) -> Outcomes:
    """Returns the answers to queries that were made worse, in the clean gallery without their own clean image."""
    assert data.queries is not None
    gallery, labels = data.embedding, data.labels
    indices = search(data.queries, gallery, min(LISTED, len(labels) - 1), exclude_self=True).indices
    features = answer_features(data.queries, gallery, indices, labels, excludes_self=True)
    right = (labels[indices[:, 0]] == labels).numpy()
    counted = _has_positive(labels)
    answers = Outcomes(features, right, np.ones_like(right), labels.numpy())
    return answers[counted]


def _has_positive(labels: Tensor) -> np.ndarray:
    _, member, count = labels.unique(return_inverse=True, return_counts=True)
    return np.asarray((count[member] > 1).numpy())


def measure_promises(data: Embedded, worse: Mapping[str, Embedded], elsewhere: Reliability) -> dict[str, Any]:
    """Returns how often the limits of one source break their promise, under what is exchangeable and what is not.

    Args:
        data: its embedding.
        worse: the same with queries that were made worse, by corruption.
        elsewhere: coefficients fitted without its set.
    """
    answers = outcomes(RetrievalTask.of(data.embedding, data.labels))
    figures: dict[str, Any] = {}
    for form in FORMS:
        estimator = getattr(elsewhere, form)
        confidence = estimator.assess(answers.features)[0]
        cases = (("classes", "classes"), ("queries", "queries"), ("queries", "classes"))
        kept = {f"{unit}, halves of {halves}": promises(confidence, answers, unit, halves) for unit, halves in cases}
        for name, other in worse.items():
            later = corrupted_answers(other)
            pair = estimator.assess(later.features)[0], later.right
            kept[f"classes, later {name}"] = promises(confidence, answers, "classes", "classes", pair)
        figures[form] = kept
    return figures


def without_set(reliabilities: Mapping[str, Reliability], benchmark: str) -> Reliability:
    """Returns the coefficients that were fitted without a set; those of all sets for one that no fit has seen."""
    return reliabilities.get(benchmark, reliabilities[""])


def as_shipped(reliability: Reliability) -> Reliability:
    """Returns the coefficients alone, as they are shipped: without a calibration."""
    forms = {f: replace(getattr(reliability, f), risk=None) for f in FORMS}
    return replace(reliability, **forms, calibrated_on="")
