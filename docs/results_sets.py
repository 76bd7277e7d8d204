"""What is measured of each study: its variants' rows, their controls, and how they differ."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from config import load_config
from study import Progress, Study, read_study

from idml_zoo.compare import Difference, difference, load_queries
from idml_zoo.leaderboard import Row
from idml_zoo.results import Result, ResultError, read_results
from idml_zoo.variants import variants

ROOT = Path(__file__).parents[1]
STUDIES, LEADERBOARD = ROOT / "recipes" / "studies", ROOT / "leaderboard"
SIMPLER = {"idml": "pa_mixup", "idml_no_mixup": "pa", "idml_released": "pa_mixup", "pa_mixup": "pa", "vmf": "pa"}
SIMPLER["loss_prediction"] = "pa"
_COMPARED: dict[tuple[object, ...], dict[str, Difference]] = {}  # by the values of the queries


@dataclass(frozen=True)
class Line:
    """A variant of a study, as far as it is measured."""

    variant: str
    settings: dict[str, float]
    row: Row
    introspective: Row | None  # the same weights, searched by the introspective similarity


@dataclass(frozen=True)
class Set:
    """One study with its results."""

    study: Study
    progress: Progress
    benchmark: str
    leaderboard: Path
    lines: dict[str, Line]
    baseline: Row | None  # pooled features without training, at the same resolution
    controls: list[Line]  # with settings that no trial chose


def _row(results: list[Result]) -> Row:
    """In the order of the seeds."""
    return Row(tuple(sorted(results, key=lambda r: r.seed)))


def read_sets(studies: Path = STUDIES, leaderboard: Path = LEADERBOARD) -> list[Set]:
    """Every study of which a row is measured on the test classes by all its seeds, in the order of their names."""
    known = read_results(leaderboard / "results")
    sets = []
    for path in sorted(studies.glob("*.yaml")):
        study = read_study(path)
        progress = Progress(study, str(leaderboard))
        config = load_config(str(path.parent / study.recipe), study.words(study.variants[0], {}))
        lines = {}
        for variant in progress.variants():
            finals, best = progress.finals(variant), progress.chosen(variant)
            results = [result for _, result in finals if result]
            if best and results and len(results) == len(finals):
                weights = {r.provenance.weights_sha256 for r in results}
                twins = [
                    r
                    for r in known
                    if (r.benchmark, r.row) == (config.benchmark, f"{results[0].row}-introspective")
                    and r.provenance.weights_sha256 in weights
                ]
                twin = _row(twins) if len(twins) == len(results) else None
                lines[variant] = Line(variant, best.settings, _row(results), twin)
        if lines:
            first = next(iter(lines.values())).row.first
            name = f"features-{first.model.backbone.split('.')[0]}-{first.protocol.image_size}px"
            plain = [r for r in known if (r.benchmark, r.row) == (config.benchmark, name)]
            baseline = Row(tuple(plain)) if plain else None
            controls = []
            for variant, settings, finals in progress.controls():
                results = [result for _, result in finals if result]
                if len(results) > 1:  # a row that is chosen for nothing need not wait for its last seed
                    controls.append(Line(variant, settings, _row(results), None))
            sets.append(Set(study, progress, config.benchmark, leaderboard, lines, baseline, controls))
    return sets


def queries(found: Set, row: Row, metric: str) -> np.ndarray:
    """``(S, N)`` a metric's value of each query for each seed."""
    values = []
    for result in row.results:
        loaded = load_queries(found.leaderboard / "results", result)
        assert loaded is not None, result.row
        values.append(loaded[metric].astype(np.float64)[~np.isnan(loaded["map@r"])])  # NaN: alone in its class
    return np.stack(values)


def pairs(found: Set) -> Iterator[tuple[str, str]]:
    """(variant, what it must be compared with): the same but for one thing."""
    for name in found.lines:
        variant = variants[name]
        other = SIMPLER.get(name)
        if other is None and variant.similarity == "introspective":
            other = name.removeprefix("idml_").removesuffix("_no_mixup") + ("_mixup" if variant.mixup else "")
        if other in found.lines:
            yield name, other


def controlled(found: Set) -> Iterator[tuple[str, Line]]:
    """(variant, the control of its pair that was trained with the settings which its own trials chose)."""
    for control in found.controls:
        for name, other in pairs(found):
            own = yaml.safe_load(found.lines[name].row.first.provenance.recipe)
            if other == control.variant and all(own[k] == v for k, v in control.settings.items()):
                yield name, control


def compared(found: Set, first: Row, second: Row, same_weights: bool = False) -> dict[str, Difference]:
    """The difference of two rows in R@1 and MAP@R; of the same weights, a seed is compared with itself.

    Raises:
        ResultError: rows of other images or of another protocol version.
    """
    pair = (*(tuple(r.queries_sha256 for r in row.results) for row in (first, second)), same_weights)
    if pair in _COMPARED:  # several tables show it
        return _COMPARED[pair]
    what = [{(r.provenance.data_sha256, r.protocol.version) for r in row.results} for row in (first, second)]
    if len(what[0] | what[1]) != 1:
        raise ResultError(f"{first.first.row} and {second.first.row} are of other images or protocols")
    made = {}
    for title, metric in {"R@1": "top1", "MAP@R": "map@r"}.items():
        a, b = queries(found, first, metric), queries(found, second, metric)
        made[title] = difference(a - b, np.zeros_like(a)) if same_weights else difference(a, b)
    _COMPARED[pair] = made
    return made


def scores(found: Set) -> tuple[dict[str, float], dict[str, float]]:
    """What each variant was chosen by: its best trial on held-out classes, and the mean over seeds on test classes."""
    metric, there, here = found.study.choose_by, {}, {}
    for name, line in found.lines.items():
        best = found.progress.chosen(name)
        assert best and best.result
        there[name] = found.progress.score(best.result)
        here[name] = statistics.fmean(line.row.values(metric) or [])
    return there, here


def said(settings: dict[str, float]) -> str:
    """ "lr 0.002, τ 5"."""
    return ", ".join(f"{'τ' if k == 'tau' else k} {v:g}" for k, v in settings.items())


def shown(d: Difference) -> str:
    """ "+1.20 [+0.31, +2.04]" in points; bold where the interval leaves 0 out."""
    text = f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
    return f"**{text}**" if d.distinguishable else text
