"""Confidence of answers that are already there: of :func:`idml_zoo.search`, or of any other engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from idml_zoo.reliability.reliability import Reliability, default
from idml_zoo.reliability.risk import Limit
from idml_zoo.retrieval.answer_features import answer_features
from idml_zoo.types import Embedding, Neighbours


@dataclass(frozen=True)
class Judge:
    """What judges the answers of a search, checked before anything is searched.

    Attributes:
        reliability: whose estimators are used.
        gallery_labels: ``(M,)`` int64; None for the form that needs none.
        limit: on the confidence; None where every query is answered.
    """

    reliability: Reliability
    gallery_labels: Tensor | None
    limit: Limit | None

    @classmethod
    def of(
        cls, size: int, gallery_labels: Tensor | None, reliability: Reliability | None, max_risk: float | None
    ) -> Judge:
        """Checks the arguments of :func:`assess` for a gallery of ``size`` images."""
        labels = None if gallery_labels is None else _checked(gallery_labels, size)
        if reliability is not None and not isinstance(reliability, Reliability):
            raise TypeError(
                f"reliability must be a Reliability, got {type(reliability).__name__}; read a file with "
                "idml_zoo.Reliability.load"
            )
        used = reliability or default()
        return cls(used, labels, None if max_risk is None else used.limit(max_risk, labelled=labels is not None))

    def judge(self, queries: Embedding, gallery: Embedding, neighbours: Neighbours) -> Neighbours:
        """Returns the neighbours with confidence, unknown, limit, and the queries declined that it declines."""
        indices, labels = neighbours.indices, self.gallery_labels
        features = answer_features(queries, gallery, indices, labels, neighbours.excludes_self)
        form = self.reliability.form(labels is not None)
        confidence, unknown = map(torch.from_numpy, form.assess(features))
        declined = neighbours.declined
        if self.limit is not None:
            unsure = confidence < self.limit.threshold
            declined = unsure if declined is None else declined | unsure
        return replace(neighbours, confidence=confidence, unknown=unknown, declined=declined, limit=self.limit)


def assess(
    queries: Embedding,
    gallery: Embedding,
    neighbours: Neighbours,
    gallery_labels: Tensor | None = None,
    reliability: Reliability | None = None,
    max_risk: float | None = None,
) -> Neighbours:
    """Returns the same neighbours with a confidence for each query, and with those declined that are not sure enough.

    Args:
        queries, gallery: embeddings of N and M images; ‖u‖ counts where there is one.
        neighbours: of the queries, by any engine, nearest first; at least 50 for each, where the gallery has them, or
            the confidence is lower in quality.
        gallery_labels: ``(M,)`` integer classes of the gallery; None for the form that needs none.
        reliability: of :func:`idml_zoo.fit_reliability`; None for the default, which was fitted on other images.
        max_risk: share of the answers that may be wrong, in (0, 1), with 90 % confidence; needs a reliability that was
            calibrated. Queries below its limit are marked in ``declined``.

    Raises:
        ValueError: neighbours that are none of the gallery; labels of another number or kind, or of one class only.
        TypeError: a reliability that is none, such as the path of one.
        ReliabilityError: ``max_risk`` without a calibration, or out of range.
        RiskNotReachable: no query can be answered at that risk.
    """
    if len(neighbours) != len(queries):
        raise ValueError(f"{len(queries)} queries but neighbours of {len(neighbours)}")
    rows = neighbours.indices
    if rows.shape[1] == 0 or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(gallery)):
        raise ValueError(
            f"neighbours must be rows of the gallery, 0 to {len(gallery) - 1}, one for each query at least; an engine "
            "that fills up with −1 was asked for more than it has"
        )
    return Judge.of(len(gallery), gallery_labels, reliability, max_risk).judge(queries, gallery, neighbours)


def _checked(labels: Tensor, count: int) -> Tensor:
    """Returns the labels as an int64 tensor; raises ValueError where they are not those of a gallery."""
    labels = integer_labels(labels, "gallery_labels", count)
    if bool((labels == labels[:1]).all()):
        raise ValueError(
            "all of the gallery is of one class, so that every answer is of it and nothing can be judged by labels; "
            "leave out gallery_labels"
        )
    return labels


def integer_labels(labels: Any, name: str, count: int) -> Tensor:
    """Returns labels as ``(count,)`` int64; raises ValueError, with their name, where they are anything else."""
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be {count} integers, one for each image: {error}; number the classes") from error
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"{name} must be {count} integers, one for each image, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    return labels.long()
