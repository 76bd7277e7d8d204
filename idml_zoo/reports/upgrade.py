"""Results of an older protocol version to this one, from the values of every query that lie beside them.

Version 3 differs from 2 in the calibration error, which is a function of these values and the classes, and in the
margin of benchmarks with fixed queries, which is not: their results are measured again.
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
from idml_zoo.results import PROTOCOL, Result, ResultError


@cache
def _test_split(benchmark: str, root: str) -> tuple[Split, str]:
    split = benchmarks[benchmark].splits(root).test
    return split, split.fingerprint()


def upgrade(result: Result, results: str | Path, root: str | Path = "data") -> Result:
    """The same result under protocol version 3; nothing is written.

    Args:
        result: of version 2, on the test classes of a registered benchmark.
        results: the folder that it lies in.
        root: folder that holds the data.

    Raises:
        ResultError: of another version or split, or without the values of its queries, or they do not bear it out.
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
        raise ResultError(f"{name}: the margin of fixed queries is another by now; measure it again")
    counted = ~np.isnan(values["map@r"])
    labels, wrong = split.labels[counted], ~values["top1"][counted].astype(bool)
    metrics = dict(result.metrics)
    for score in (n.removeprefix("ece_") for n in result.metrics if n.startswith("ece_")):
        known, found = metrics[f"auroc_{score}"], auroc(values[score][counted], wrong)
        if (known is None) != (found is None) or abs((known or 0) - (found or 0)) > 1e-6:
            raise ResultError(f"{name}: its AUROC of {score} is {known}, but {found} by the values of its queries")
        metrics[f"ece_{score}"] = calibration_error(values[score][counted], wrong, labels)
    commit, dirty = code_state()
    when = utc_now()
    history = {"from": "protocol 2", "commit": str(commit) + (" (dirty)" if dirty else ""), "created": when}
    return replace(
        result,
        metrics=metrics,
        protocol=replace(result.protocol, version=PROTOCOL),
        provenance=replace(result.provenance, upgraded=history),
    )
