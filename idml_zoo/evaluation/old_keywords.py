"""The keywords that :func:`idml_zoo.evaluate` had in version 0.1, as the values of today. They go in version 0.4."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

from idml_zoo.evaluation.embed import MeasuredSplit
from idml_zoo.evaluation.provenance import training_record
from idml_zoo.metric import Metric
from idml_zoo.registry import benchmarks
from idml_zoo.results import TrainingRecord

P = ParamSpec("P")
R = TypeVar("R")

_TRAINING = {
    "variant": "variant",
    "pretrained": "pretrained",
    "checkpoint": "checkpoint",
    "training": "description",
    "train_seconds": "seconds",
    "recipe": "recipe",
    "weights_sha256": "weights_sha256",
    "statistics": "statistics",
    "trained": "trained",
}
_METRIC = ("similarity", "tau")
_SPLIT = ("split_name", "embedding", "embed_seconds")


def accepts_keywords_of_01(evaluate: Callable[P, R]) -> Callable[P, R]:
    """Translates keywords of version 0.1, with a deprecation warning that says what replaces them."""

    @functools.wraps(evaluate)
    def wrapped(model: Any, benchmark: Any, **given: Any) -> R:
        is_record = isinstance(given.get("training"), (TrainingRecord, type(None)))
        old = [
            k
            for k in given
            if k in {*_TRAINING, *_METRIC, *_SPLIT, "severities"} and (k != "training" or not is_record)
        ]
        if not old:
            return evaluate(model, benchmark, **given)
        warnings.warn(
            f"evaluate: {', '.join(old)} went into metric=Metric(…), training=TrainingRecord(…), "
            "split=MeasuredSplit(…) and corruptions={name: severities}; the old keywords go in version 0.4",
            DeprecationWarning,
            stacklevel=2,
        )
        taken = {k: given.pop(k) for k in old}
        if "similarity" in taken or "tau" in taken:
            tau = taken.get("tau")
            tau = getattr(model, "tau", None) if tau is None else tau
            given["metric"] = Metric(taken.get("similarity", "cosine"), **({} if tau is None else {"tau": tau}))
        record_fields = {new: taken[k] for k, new in _TRAINING.items() if taken.get(k) is not None}
        if record_fields:
            given["training"] = replace(training_record(model), **record_fields)
        if "severities" in taken:
            given["corruptions"] = dict.fromkeys(given.get("corruptions", ()), taken["severities"])
        if any(k in taken for k in _SPLIT):
            record = benchmarks[benchmark] if isinstance(benchmark, str) else benchmark
            split = given.get("split")
            split = record.splits(given.get("root", "data")).test if split is None else split
            given["split"] = MeasuredSplit(
                split, taken.get("split_name", "test"), taken.get("embedding"), taken.get("embed_seconds", 0.0)
            )
        return evaluate(model, benchmark, **given)

    return wrapped  # type: ignore[return-value]
