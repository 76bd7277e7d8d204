"""Makes rows from result files and reported numbers: grouped by seeds, ordered, ranked."""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from idml_zoo.metric_names import METRICS, TITLES
from idml_zoo.models.zoo import BACKBONES
from idml_zoo.registry import benchmarks
from idml_zoo.results import Result, ResultError, read_results

REPORTED_KEYS = ("benchmark", "method", "backbone", "dim", "source", "note")


@dataclass(frozen=True)
class Row:
    """The seeds of a row of a benchmark and split; all share their protocol and model.

    Attributes:
        results: one for each seed.
        rank: by Recall@1, 1 + the number of distinguishably better rows. None where the values of every query are
            missing, or are of other images than those of most rows.
    """

    results: tuple[Result, ...]
    rank: int | None = None

    @property
    def first(self) -> Result:
        """The result of the first seed."""
        return self.results[0]

    def values(self, metric: str) -> list[float] | None:
        """Returns a value for each seed; None where any seed lacks it, as a mean over some seeds would mislead."""
        values = [r.metrics.get(metric) for r in self.results]
        return None if any(v is None for v in values) else [float(v) for v in values if v is not None]


def _recall_order(name: str) -> int:
    return int(name.split("@")[1])


def group(results: Iterable[Result]) -> list[Row]:
    """Returns the rows, sorted by benchmark, split, Recall@1 (best first) and name.

    Raises:
        ResultError: seeds of a row differ in protocol, model, training or images, so that their mean means nothing.
    """
    rows: dict[tuple[str, str, str], list[Result]] = {}
    for r in results:
        rows.setdefault((r.benchmark, r.protocol.split, r.row), []).append(r)
    grouped = []
    for key, seeds in rows.items():
        seeds.sort(key=lambda r: r.seed)
        for other in seeds[1:]:
            if (other.protocol, other.model, other.training) != (seeds[0].protocol, seeds[0].model, seeds[0].training):
                raise ResultError(
                    f"row {key[2]!r} of {key[0]}: seed {other.seed} has another protocol, model or training than seed "
                    f"{seeds[0].seed}; give it a row name of its own"
                )
            if (other.provenance.data_sha256, other.queries) != (seeds[0].provenance.data_sha256, seeds[0].queries):
                raise ResultError(
                    f"row {key[2]!r} of {key[0]}: seed {other.seed} was measured on other images than seed "
                    f"{seeds[0].seed}; give it a row name of its own"
                )
        grouped.append(Row(tuple(seeds)))

    def order(row: Row) -> tuple[str, str, float, str]:
        recall = row.values("recall@1")
        return (
            row.first.benchmark,
            row.first.protocol.split,
            -statistics.fmean(recall) if recall else 0.0,
            row.first.row,
        )

    return sorted(grouped, key=order)


def percent(values: Sequence[float] | None) -> str:
    """Returns fractions as percent: "57.4", "57.4 ± 0.3" for several seeds (± sample standard deviation), else "–"."""
    if not values:
        return "–"
    mean = f"{100 * statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def in_order(names: Iterable[str]) -> list[str]:
    """Returns metrics as a reader expects them: Recall@K by K, then in the schema's order."""
    names = set(names)
    recalls = sorted((m for m in names if m.startswith("recall@")), key=_recall_order)
    return recalls + [m for m in METRICS if m in names]


def title(metric: str) -> str:
    """Returns a metric's heading."""
    return TITLES.get(metric) or (f"R@{_recall_order(metric)}" if "@" in metric else metric)


def pretraining(source: str) -> str:
    """Returns what the backbone's first weights were trained on: "ImageNet-1k (timm:…)". It may hold test classes."""
    name = source.partition(":")[2]
    for backbone in BACKBONES.values():
        if name and name in (backbone.timm_name, backbone.timm_name.split(".")[0]):
            return f"{backbone.pretraining} ({source})"
    return source


def read_reported(path: Path) -> list[dict[str, str]]:
    """Returns the rows of ``reported.csv``; [] without that file.

    Its columns are benchmark, method, backbone, dim, source and note, then metrics in percent.

    Raises:
        ResultError: a column is missing, a value is no percentage, or a row has no source.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, 2):
        if None in row:
            raise ResultError(f"{path}, line {number}: more cells than columns; quote a cell that has a comma")
        missing = [k for k in REPORTED_KEYS if row.get(k) is None]
        if missing or not row["source"]:
            raise ResultError(f"{path}, line {number}: needs {', '.join(missing) or 'a source'}")
        for key in row.keys() - set(REPORTED_KEYS):
            try:
                ok = not row[key] or 0 <= float(row[key]) <= 100
            except ValueError:
                ok = False
            if not ok:
                raise ResultError(f"{path}, line {number}: {key} must be a percentage or empty, got {row[key]!r}")
    return rows


def reported_metrics(rows: Sequence[dict[str, str]]) -> list[str]:
    """Returns the metrics that any of the rows has."""
    return [k for k in rows[0] if k not in REPORTED_KEYS and any(r[k] for r in rows)] if rows else []


@dataclass(frozen=True)
class Section:
    """The rows of a benchmark, measured and reported.

    Attributes:
        benchmark: its name.
        title, note: from the catalogue.
        measured: rows by (split, protocol version), the test split and the newest version first.
        reported: rows of ``reported.csv``.
    """

    benchmark: str
    title: str
    note: str
    measured: dict[tuple[str, int], list[Row]] = field(default_factory=dict)
    reported: list[dict[str, str]] = field(default_factory=list)


def sections(root: str | Path) -> list[Section]:
    """Returns a leaderboard folder's benchmarks: those with measured rows first, then by name.

    Raises:
        ResultError: a result file or reported.csv is damaged; the message names it.
    """
    root = Path(root)
    rows, reported = group(read_results(root / "results")), read_reported(root / "reported.csv")
    names = {r.first.benchmark for r in rows} | {r["benchmark"] for r in reported}
    benchmark_sections = []
    for name in sorted(names, key=lambda n: (n not in {r.first.benchmark for r in rows}, n)):
        record = benchmarks[name] if name in benchmarks else None
        parts: dict[tuple[str, int], list[Row]] = {}
        for row in (r for r in rows if r.first.benchmark == name):
            parts.setdefault((row.first.protocol.split, row.first.protocol.version), []).append(row)
        ordered = sorted(parts, key=lambda p: (p[0] != "test", p[0], -p[1]))
        measured = {p: ranked(parts[p], root / "results") for p in ordered}
        of_others = [r for r in reported if r["benchmark"] == name]
        of_others.sort(key=lambda r: -float(r.get("recall@1") or 0))
        heading, note = (record.title, record.note) if record else (name, "")
        benchmark_sections.append(Section(name, heading, note, measured, of_others))
    return benchmark_sections


def ranked(rows: Sequence[Row], results: Path) -> list[Row]:
    """Returns the same rows with their ranks.

    Ranked are rows with the values of every query. Where rows were measured on different images, those on the images
    of most rows are ranked.

    Raises:
        ResultError: the values of a row's queries are missing or were changed.
    """
    import numpy as np

    from idml_zoo.reports.bootstrap import load_queries, ranks

    values: dict[int, np.ndarray] = {}
    most_common = Counter(row.first.provenance.data_sha256 for row in rows).most_common(1)[0][0]
    for i, row in enumerate(rows):
        same_images = row.first.provenance.data_sha256 == most_common
        loaded = [load_queries(results, r) for r in row.results] if same_images else [None]
        if all(v is not None for v in loaded):
            counted = [v["top1"][~np.isnan(v["map@r"])] for v in loaded if v is not None]
            values[i] = np.stack(counted)
    by_row = dict(zip(values, ranks(list(values.values())), strict=True))
    return [Row(row.results, by_row.get(i)) for i, row in enumerate(rows)]
