"""How ‖u‖ compares with the strongest free score of the same row, with intervals over resampled classes.

    python -m idml_zoo.studies.level_figures --root data    # writes leaderboard/classes.json for the sets found there

The classes of the measured images are kept in leaderboard/classes.json, by the images' fingerprint: intervals can be
computed where the images are not. The figures of a row are kept in leaderboard/levels.json by the fingerprints of its
queries' values: they take a minute to compute, and a check only reads them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from idml_zoo.data.errors import DataError
from idml_zoo.files import write_file
from idml_zoo.registry import benchmarks
from idml_zoo.reports.bootstrap import Difference, load_queries
from idml_zoo.reports.leaderboard import Row
from idml_zoo.results import ResultError, read_results
from idml_zoo.studies.reliability.judging import class_weights, weighted_auroc
from idml_zoo.studies.sets import LEADERBOARD, Set

FREE = ("top1_similarity", "margin")  # of those that are stored for rows of protocol 3
CLASSES, FIGURES = "classes.json", "levels.json"  # in the folder of a leaderboard
DRAWS = 300
_COMPUTED: dict[str, dict[str, Any]] = {}


def class_runs(labels: Iterable[int]) -> list[list[int]]:
    """Returns labels as ``[label, count]`` of each run of equal ones."""
    runs: list[list[int]] = []
    for label in map(int, labels):
        if runs and runs[-1][0] == label:
            runs[-1][1] += 1
        else:
            runs.append([label, 1])
    return runs


@cache
def classes_of(data_sha256: str, leaderboard: Path = LEADERBOARD) -> np.ndarray:
    """Returns the ``(N,)`` classes of the queries of a measured split, by its fingerprint.

    Raises:
        ResultError: the split is not among those that are kept.
    """
    path = leaderboard / CLASSES
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if data_sha256 not in kept:
        raise ResultError(f"{path} does not hold the classes of the images {data_sha256[:12]}")
    runs = np.array(kept[data_sha256]["runs"])
    return np.repeat(runs[:, 0], runs[:, 1])


def _key(row: Row) -> str:
    return " ".join(str(r.queries_sha256)[:16] for r in row.results)


def level_figures(measured: Set, row: Row) -> dict[str, Any]:
    """Returns the figures of a row with a level: kept, or computed.

    Returns:
        ``strongest``: the free score with the highest mean AUROC; ``difference``: mean AUROC of ‖u‖ minus its own;
        ``interval``: of that, over resampled classes, averaged over the row's seeds, which share the draws.
    """
    kept, key = _kept(measured), _key(row)
    if key in kept:
        return kept[key]
    if key not in _COMPUTED:
        _COMPUTED[key] = _computed(measured, row)
    return _COMPUTED[key]


def _kept(measured: Set) -> dict[str, dict[str, Any]]:
    path = measured.leaderboard / FIGURES
    kept: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return kept


def keep(measured: Set) -> None:
    """Writes what was computed since beside the results of a set."""
    kept = _kept(measured) | _COMPUTED
    if kept:
        write_file(measured.leaderboard / FIGURES, json.dumps(kept, indent=1, sort_keys=True) + "\n")


def _computed(measured: Set, row: Row) -> dict[str, Any]:
    classes = classes_of(row.first.provenance.data_sha256, measured.leaderboard)
    drawn: dict[str, list[np.ndarray]] = {n: [] for n in ("level", *FREE)}
    weights = None
    for result in row.results:
        values = load_queries(measured.leaderboard / "results", result)
        assert values is not None, result.row
        counted = ~np.isnan(values["map@r"])
        if weights is None:  # the whole, then the draws
            draws = class_weights(classes[counted], DRAWS)
            weights = np.concatenate([np.ones((1, draws.shape[1]), dtype=np.uint8), draws])
        for name, parts in drawn.items():
            parts.append(weighted_auroc(values[name][counted], ~values["top1"][counted].astype(bool), weights))
    means = {name: np.mean(parts, axis=0) for name, parts in drawn.items()}
    strongest = max(FREE, key=lambda n: means[n][0])
    difference = means["level"] - means[strongest]
    low, high = np.nanquantile(difference[1:], (0.025, 0.975))
    interval = [round(float(low), 5), round(float(high), 5)]
    return {
        "row": row.first.row,
        "strongest": strongest,
        "difference": round(float(difference[0]), 5),
        "interval": interval,
    }


def against_strongest(measured: Set, row: Row) -> Difference:
    """Returns by how much the AUROC of ‖u‖ exceeds that of the strongest free score of the row."""
    figures = level_figures(measured, row)
    low, high = figures["interval"]
    return Difference(figures["difference"], low, high, float("nan"))


def main(arguments: list[str] | None = None) -> int:
    """Writes the classes of the test images of every benchmark that has results and images here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of the data (default: data)")
    parser.add_argument("--out", type=Path, default=LEADERBOARD / CLASSES)
    args = parser.parse_args(arguments)
    kept = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    for name in sorted({r.benchmark for r in read_results(LEADERBOARD / "results")} & set(benchmarks)):
        try:
            split = benchmarks[name].splits(args.root).test
        except DataError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        queries = split.labels if split.queries is None else split.labels[split.queries]
        kept[split.fingerprint()] = {"benchmark": name, "runs": class_runs(queries)}
    write_file(args.out, json.dumps(kept, separators=(",", ":"), sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
