"""fit_reliability: how far the answers of one's own model, on one's own kind of images, are to be believed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from idml_zoo.metric import Metric, as_metric
from idml_zoo.registry import unknown_name
from idml_zoo.reliability.errors import ReliabilityError
from idml_zoo.reliability.logistic import Logistic
from idml_zoo.reliability.names import LABEL_FREE, LABELLED, UNCERTAINTY
from idml_zoo.reliability.reliability import LONGEST_NOTE, Form, Reliability, default
from idml_zoo.reliability.risk import UNITS, RiskTable
from idml_zoo.retrieval.answer_features import LISTED, answer_features
from idml_zoo.retrieval.answers import integer_labels
from idml_zoo.retrieval.knn import search
from idml_zoo.types import Embedding, RetrievalTask

COEFFICIENTS = ("auto", "fitted", "default")
EVERY_FEATURE = (LABEL_FREE + LABELLED + UNCERTAINTY, LABEL_FREE + UNCERTAINTY)
_ENOUGH_QUERIES, _ENOUGH_CLASSES = 1000, 20  # of the half that coefficients are fitted on


@dataclass(frozen=True)
class Outcomes:
    """Answers whose truth is known.

    Attributes:
        features: ``(N,)`` float32 each, by name, of :func:`~idml_zoo.retrieval.answer_features.answer_features`.
        right: ``(N,)`` bool, whether the nearest neighbour is of the query's class.
        known: ``(N,)`` bool, whether that class is in the gallery at all.
        classes: ``(N,)`` int64 class of each query.
    """

    features: Mapping[str, np.ndarray]
    right: np.ndarray
    known: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.right)

    def __getitem__(self, kept: np.ndarray) -> Outcomes:
        features = {n: v[kept] for n, v in self.features.items()}
        return Outcomes(features, self.right[kept], self.known[kept], self.classes[kept])


def outcomes(task: RetrievalTask, metric: Metric | str = "cosine", removed: np.ndarray | None = None) -> Outcomes:
    """Returns the answers to all queries, with their features in both forms and their truth.

    Args:
        task: queries, gallery and their labels.
        metric: of the search.
        removed: classes whose images leave the gallery: their queries are then unknown. None: none leave, and queries
            whose class is not in the gallery are left out.

    Raises:
        ReliabilityError: fewer than two images in the gallery, or one class only.
        ValueError: NaN or inf.
    """
    query_labels, gallery_labels = task.query_labels.cpu(), task.gallery_labels.cpu()
    kept = torch.ones(len(gallery_labels), dtype=torch.bool)
    if removed is not None:
        kept = ~torch.isin(gallery_labels, torch.as_tensor(removed))
    labels = gallery_labels[kept]
    if len(labels.unique()) < 2 or len(labels) < 2:
        raise ReliabilityError(
            f"the gallery has {len(labels)} images of {len(labels.unique())} classes; at least two of each are needed"
        )
    gallery = task.gallery if removed is None else task.gallery[kept.nonzero().squeeze(1).to(task.gallery.device)]
    whole = task.same_images and removed is None
    among = task.same_images and removed is not None  # a query whose class stays must not find itself
    most = len(labels) - task.same_images
    indices = search(task.queries, gallery, min(LISTED, most) + among, metric, exclude_self=whole).indices
    if among:
        row = torch.where(kept, kept.cumsum(0) - 1, -1)
        itself = indices == row[:, None]
        itself[~itself.any(1), -1] = True  # those that are not in the gallery leave out the last
        indices = indices[~itself].view(len(indices), -1)
    features = answer_features(task.queries, gallery, indices, labels, task.same_images)
    right = labels[indices[:, 0]] == query_labels
    known = torch.isin(query_labels, labels)
    # an image that is alone in its class has nothing to find, and is not what "unknown" means either
    _, member, count = gallery_labels.unique(return_inverse=True, return_counts=True)
    counted = count[member] > 1 if task.same_images else torch.isin(query_labels, gallery_labels)
    truth = Outcomes(features, right.numpy(), known.numpy(), query_labels.numpy())
    return truth[counted.numpy()]


def half_of(classes: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns half of the distinct classes, drawn by sha256, which no new version of a generator can change."""
    distinct = np.unique(classes)
    order = sorted(distinct, key=lambda c: hashlib.sha256(f"idml_zoo/half/{seed}/{int(c)}".encode()).digest())
    return np.array(order[: len(order) // 2], dtype=np.int64)


def fit_forms(
    closed: Outcomes,
    opened: Outcomes,
    weights: tuple[np.ndarray, np.ndarray] | None = None,
    confidence: tuple[Sequence[str], Sequence[str]] = EVERY_FEATURE,
    unknown: tuple[Sequence[str], Sequence[str]] = EVERY_FEATURE,
) -> Reliability:
    """Fits the estimators of both forms.

    Args:
        closed: answers in a gallery that has every query's class.
        opened: answers in one that lacks half of them.
        weights: ``(N,)`` of the queries of each; None: all 1.
        confidence, unknown: the features of each estimator, in the form with labels and in that without.
    """
    on_closed, on_opened = weights or (None, None)
    forms = []
    for of_confidence, of_unknown in zip(confidence, unknown, strict=True):
        right = Logistic.fit(closed.features, of_confidence, closed.right, on_closed)
        forms.append(Form(right, Logistic.fit(opened.features, of_unknown, ~opened.known, on_opened)))
    return Reliability(labelled=forms[0], label_free=forms[1])


def calibrated(reliability: Reliability, answers: Outcomes, unit: str, note: str = "") -> Reliability:
    """Returns the reliability with limits that hold for answers like these, in both forms."""
    forms = []
    for labelled in (True, False):
        form = reliability.form(labelled)
        confidence, _ = form.assess(answers.features)
        forms.append(replace(form, risk=RiskTable.of(confidence, ~answers.right, answers.classes, unit)))
    note = note or f"{len(answers)} queries of {len(np.unique(answers.classes))} classes"
    return replace(reliability, labelled=forms[0], label_free=forms[1], calibrated_on=note)


def fit_reliability(
    images: Embedding | RetrievalTask,
    labels: Any = None,
    *,
    metric: Metric | str = "cosine",
    coefficients: str = "auto",
    unit: str = "classes",
    note: str = "",
) -> Reliability:
    """Returns confidence and limits for one's own embedding, from labelled images that it was not trained on.

    Half of the classes, drawn by their numbers, fit the coefficients; the other half calibrates the limits, so that
    these are not judged on what they were fitted to. Where that leaves too little, the default coefficients stay and
    all classes calibrate.

    Args:
        images: embedding of N images, each of which queries the others; or a :class:`~idml_zoo.RetrievalTask` of
            queries and a gallery. Of classes that the model was not trained on, or its confidence will be too high.
        labels: ``(N,)`` integer classes of an embedding; None with a task.
        metric: of the searches that it will be used for.
        coefficients: "fitted", "default", or "auto": fitted where half of the classes are at least 20 with 1,000
            queries, some right and some wrong.
        unit: what counts as one draw. "classes": the limits hold for new classes; "queries": for new images of these
            classes, with the exact binomial test.
        note: what the calibration set is, in words of yours, at most 200 characters.

    Raises:
        ValueError: labels of another number or kind; NaN or inf; a note that is too long.
        ReliabilityError: one class only, or no two images of any; "fitted" with fewer than four classes, or with
            nothing but right or wrong answers.
        UnknownNameError: other coefficients or another unit.
    """
    for kind, value, names in (("coefficients", coefficients, COEFFICIENTS), ("unit", unit, UNITS)):
        if value not in names:
            raise unknown_name(kind, value, names)
    if len(note) > LONGEST_NOTE:
        raise ValueError(f"note must have at most {LONGEST_NOTE} characters, got {len(note)}")
    task, metric = _task(images, labels), as_metric(metric)
    answers = outcomes(task, metric)
    if not len(answers):
        raise ReliabilityError("no query has another image of its class in the gallery: nothing can be right")
    fits = half_of(answers.classes)
    fitting = np.isin(answers.classes, fits)
    enough = fitting.sum() >= _ENOUGH_QUERIES and len(fits) >= _ENOUGH_CLASSES
    varied = answers.right[fitting].any() and not answers.right[fitting].all()
    if coefficients == "default" or (coefficients == "auto" and not (enough and varied)):
        return calibrated(default(), answers, unit, note)
    if len(fits) < 2:
        raise ReliabilityError(
            f"coefficients need at least 4 classes with two images each, got {len(np.unique(answers.classes))}; leave "
            'out coefficients="fitted" for the default ones'
        )
    opened = outcomes(task, metric, removed=half_of(fits, seed=1))
    fitted = fit_forms(answers[fitting], opened[np.isin(opened.classes, fits)])
    words = f"{fitting.sum()} queries of {len(fits)} classes" + (f" of {note}" if note else "")
    return calibrated(replace(fitted, fitted_on=words[:LONGEST_NOTE]), answers[~fitting], unit, note)


def _task(images: Embedding | RetrievalTask, labels: Any) -> RetrievalTask:
    """Returns the task of the arguments of :func:`fit_reliability`."""
    if isinstance(images, RetrievalTask):
        if labels is not None:
            raise ValueError("a RetrievalTask has its labels: leave out the argument labels")
        return images
    if labels is None:
        raise ValueError("labels are needed: one class for each image, to know which answers are right")
    return RetrievalTask.of(images, integer_labels(labels, "labels", len(images)))
