"""Upgrades results of protocol version 2 to version 3, from the values of every query that are stored beside them.

Version 3 differs from version 2 in two metrics. The calibration error follows from these values and the classes, so
that it is computed anew. The margin of benchmarks with fixed queries does not, so that their results must be measured
again. Nor does version 4 follow: confidence needs the neighbours of every query.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from idml_zoo.data.split import Split
from idml_zoo.evaluation.provenance import code_state
from idml_zoo.evaluation.uncertainty import auroc, calibration_error
from idml_zoo.files import utc_now
from idml_zoo.registry import benchmarks
from idml_zoo.reports.bootstrap import load_queries
from idml_zoo.results import Result, ResultError

SCORES = ("level", "top1_similarity", "margin", "semantic_norm")  # of version 2


@cache
def _test_split(benchmark: str, root: str) -> tuple[Split, str]:
    """Returns a benchmark's test split and its fingerprint, read once for all its results."""
    split = benchmarks[benchmark].splits(root).test
    return split, split.fingerprint()


def upgrade(result: Result, results: str | Path, root: str | Path = "data") -> Result:
    """Returns the same result under protocol version 3; writes nothing.

    Args:
        result: of version 2, on the test classes of a registered benchmark.
        results: the results folder that it was read from.
        root: folder that holds the data.

    Raises:
        ResultError: the result is of another version or split, has no values of its queries, or disagrees with them.
        DataError: the data is missing, or not what the benchmark expects.
    """
    name = result.path("")
    if result.protocol.version != 2 or result.protocol.split != "test" or result.benchmark not in benchmarks:
        raise ResultError(f"{name}: only version 2 on the test classes of a registered benchmark can be upgraded")
    values = load_queries(results, result)
    if values is None:
        raise ResultError(f"{name} has no values of its queries; measure it again")
    split, fingerprint = _test_split(result.benchmark, str(root))
    if fingerprint != result.provenance.data_sha256:
        raise ResultError(f"{name} was measured on other images than those under {root}")
    if split.queries is not None:
        raise ResultError(f"{name}: protocol 3 computes another margin for fixed queries; measure it again")
    counted = ~np.isnan(values["map@r"])
    labels, wrong = split.labels[counted], ~values["top1"][counted].astype(bool)
    metrics = dict(result.metrics)
    for score in (n for n in SCORES if f"ece_{n}" in result.metrics):
        stored, computed = metrics[f"auroc_{score}"], auroc(values[score][counted], wrong)
        if (stored is None) != (computed is None) or abs((stored or 0) - (computed or 0)) > 1e-6:
            raise ResultError(f"{name}: its AUROC of {score} is {stored}, but {computed} by the values of its queries")
        metrics[f"ece_{score}"] = calibration_error(values[score][counted], wrong, labels)
    commit, dirty = code_state()
    history = {"from": "protocol 2", "commit": str(commit) + (" (dirty)" if dirty else ""), "created": utc_now()}
    return replace(
        result,
        metrics=metrics,
        protocol=replace(result.protocol, version=3),
        provenance=replace(result.provenance, upgraded=history),
    )
