"""The measured rows of each study: its variants, their controls, and the differences between them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from idml_zoo.reports.bootstrap import Difference, difference, load_queries
from idml_zoo.reports.leaderboard import Row
from idml_zoo.results import Result, ResultError, read_results
from idml_zoo.studies.study import Progress, Study, read_study
from idml_zoo.training.config import load_config
from idml_zoo.variants import variants

ROOT = Path(__file__).parents[2]
STUDIES, LEADERBOARD = ROOT / "recipes" / "studies", ROOT / "leaderboard"
SIMPLER = {"idml": "pa_mixup", "idml_no_mixup": "pa", "idml_released": "pa_mixup", "pa_mixup": "pa", "vmf": "pa"}
SIMPLER["loss_prediction"] = "pa"
_COMPARED: dict[tuple[object, ...], dict[str, Difference]] = {}  # key: the sha256 of the queries' values


@dataclass(frozen=True)
class Line:
    """The measured row of a variant of a study.

    Attributes:
        variant: of the training.
        settings: what its trials chose, such as ``{"lr": 0.002}``.
        row: on the test classes.
        introspective: the same weights, searched by the introspective similarity; None where that was not measured.
    """

    variant: str
    settings: dict[str, float]
    row: Row
    introspective: Row | None


@dataclass(frozen=True)
class Set:
    """A study with its results.

    Attributes:
        study, progress: the study, and what of it is done.
        benchmark: that it measures on.
        leaderboard: the folder of its results.
        lines: by variant.
        baseline: pooled features, not trained on the set, at the same resolution; None where they were not measured.
        controls: rows with settings that no trial chose.
    """

    study: Study
    progress: Progress
    benchmark: str
    leaderboard: Path
    lines: dict[str, Line]
    baseline: Row | None
    controls: list[Line]


def _row(results: list[Result]) -> Row:
    """Returns the row of these results, in the order of their seeds."""
    return Row(tuple(sorted(results, key=lambda r: r.seed)))


def read_sets(studies: Path = STUDIES, leaderboard: Path = LEADERBOARD) -> list[Set]:
    """Returns the studies that have a variant measured by all its seeds, in the order of their file names."""
    stored = read_results(leaderboard / "results")
    sets = []
    for path in sorted(studies.glob("*.yaml")):
        study = read_study(path)
        progress = Progress(study, str(leaderboard))
        config = load_config(str(path.parent / study.recipe), study.words(study.variants[0], {}))
        lines = _lines(progress, [r for r in stored if r.benchmark == config.benchmark])
        if lines:
            first = next(iter(lines.values())).row.first
            name = f"features-{first.model.backbone.split('.')[0]}-{first.protocol.image_size}px"
            features = [r for r in stored if (r.benchmark, r.row) == (config.benchmark, name)]
            baseline = Row(tuple(features)) if features else None
            sets.append(Set(study, progress, config.benchmark, leaderboard, lines, baseline, _controls(progress)))
    return sets


def _lines(progress: Progress, stored: list[Result]) -> dict[str, Line]:
    """Returns the variants that are measured by all their seeds; ``stored`` holds the results of the benchmark."""
    lines = {}
    for variant in progress.variants():
        finals, best = progress.finals(variant), progress.chosen(variant)
        results = [result for _, result in finals if result]
        if best and results and len(results) == len(finals):
            weights = {r.provenance.weights_sha256 for r in results}
            name = f"{results[0].row}-introspective"
            searched = [r for r in stored if r.row == name and r.provenance.weights_sha256 in weights]
            introspective = _row(searched) if len(searched) == len(results) else None
            lines[variant] = Line(variant, best.settings, _row(results), introspective)
    return lines


def _controls(progress: Progress) -> list[Line]:
    """Returns the controls with two seeds or more; they choose nothing, so that they need not wait for the last."""
    lines = []
    for variant, settings, finals in progress.controls():
        results = [result for _, result in finals if result]
        if len(results) > 1:
            lines.append(Line(variant, settings, _row(results), None))
    return lines


def queries(measured: Set, row: Row, metric: str) -> np.ndarray:
    """Returns a metric's value for each seed and query: ``(S, N)``, without queries that are alone in their class."""
    values = []
    for result in row.results:
        loaded = load_queries(measured.leaderboard / "results", result)
        assert loaded is not None, result.row
        values.append(loaded[metric].astype(np.float64)[~np.isnan(loaded["map@r"])])  # alone in its class: NaN
    return np.stack(values)


def pairs(measured: Set) -> Iterator[tuple[str, str]]:
    """Yields (variant, the simpler variant that differs from it in one respect)."""
    for name in measured.lines:
        variant = variants[name]
        other = SIMPLER.get(name)
        if other is None and variant.similarity == "introspective":
            other = name.removeprefix("idml_").removesuffix("_no_mixup") + ("_mixup" if variant.mixup else "")
        if other in measured.lines:
            yield name, other


def matched_controls(measured: Set) -> Iterator[tuple[str, Line]]:
    """Yields (variant, the control of its pair that was trained with the variant's chosen settings)."""
    for control in measured.controls:
        for name, other in pairs(measured):
            recipe = yaml.safe_load(measured.lines[name].row.first.provenance.recipe or "{}")
            if other == control.variant and all(recipe[k] == v for k, v in control.settings.items()):
                yield name, control


def _retrieval_version(result: Result) -> int:
    """Returns the version that first measured R@1 and MAP@R as the result's did: they are the same since version 2."""
    return min(result.protocol.version, 2)


def compared(measured: Set, first: Row, second: Row, same_weights: bool = False) -> dict[str, Difference]:
    """Returns the difference of two rows in R@1 and MAP@R, as fractions.

    Of the same weights, each seed is compared with itself.

    Raises:
        ResultError: the rows differ in their images or in the protocol version.
    """
    pair = (*(tuple(r.queries_sha256 for r in row.results) for row in (first, second)), same_weights)
    if pair in _COMPARED:  # several tables show the same pair
        return _COMPARED[pair]
    identities = [{(r.provenance.data_sha256, _retrieval_version(r)) for r in row.results} for row in (first, second)]
    if len(identities[0] | identities[1]) != 1:
        raise ResultError(
            f"{first.first.row} and {second.first.row} were measured on different images or by different protocol "
            "versions; evaluate both again"
        )
    differences = {}
    for title, metric in {"R@1": "top1", "MAP@R": "map@r"}.items():
        a, b = queries(measured, first, metric), queries(measured, second, metric)
        differences[title] = difference(a - b, np.zeros_like(a)) if same_weights else difference(a, b)
    _COMPARED[pair] = differences
    return differences


def scores(measured: Set) -> tuple[dict[str, float], dict[str, float]]:
    """Returns each variant's score: of its best trial on held-out classes, and the mean over seeds on test classes."""
    metric, on_validation, on_test = measured.study.choose_by, {}, {}
    for name, line in measured.lines.items():
        best = measured.progress.chosen(name)
        assert best and best.result
        on_validation[name] = measured.progress.score(best.result)
        on_test[name] = statistics.fmean(line.row.values(metric) or [])
    return on_validation, on_test


def settings_text(settings: dict[str, float]) -> str:
    """Returns settings as in "lr 0.002, τ 5"."""
    return ", ".join(f"{'τ' if k == 'tau' else k} {v:g}" for k, v in settings.items())


def interval(d: Difference) -> str:
    """Returns a difference as in "+1.20 [+0.31, +2.04]", in points; bold where the interval excludes 0."""
    text = f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
    return f"**{text}**" if d.distinguishable else text
