"""The figures of results.md; `docs/results.py` draws them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from introspection import COLOURS, risk

from idml_zoo.compare import load_queries
from idml_zoo.registry import benchmarks
from idml_zoo.results import SEVERITIES

if TYPE_CHECKING:
    from results import Set


def title_of(found: Set) -> str:
    """Of its benchmark, for people."""
    return benchmarks[found.benchmark].title if found.benchmark in benchmarks else found.benchmark


def _colours(found: Set) -> dict[str, tuple[str, str]]:
    """A colour and a dash for each variant."""
    return {n: (COLOURS[i % len(COLOURS)], "-" if i < len(COLOURS) else "--") for i, n in enumerate(found.lines)}


def _finish(figure: Any, labelled: Any, found: Set, path: Path) -> None:
    """Grids, one legend for all panels, the title, the file."""
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    handles, labels = labelled.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(title_of(found))
    figure.savefig(path, dpi=110, metadata={"Software": ""})


def draw_risk(found: Set, path: Path) -> None:
    """Risk against coverage: by the level, and by the free baseline of the same row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    highest = 0.0
    for name, (colour, dash) in _colours(found).items():
        row = found.lines[name].row
        for axis, score in zip(axes, ("level", "top1_similarity"), strict=True):
            if score == "level" and not row.values("auroc_level"):
                continue
            loaded = [load_queries(found.leaderboard / "results", r) for r in row.results]
            curves = [risk(values, score) for values in loaded if values is not None]
            mean = 100 * np.mean([r for _, r in curves], axis=0)
            part = curves[0][0] > 0.02
            axis.plot(curves[0][0][part], mean[part], dash, color=colour, label=name, linewidth=1.6)
            highest = max(highest, float(mean[part].max()))
    for axis, title in zip(axes, ("by ‖u‖", "by −similarity of the nearest, which is free"), strict=True):
        axis.set(
            title=title,
            xlabel="coverage: share of queries answered, surest first",
            xlim=(0, 1),
            ylim=(0, 1.05 * highest),
        )
    axes[0].set_ylabel("risk: wrong nearest neighbours among them, %")
    _finish(figure, axes[1], found, path)


def draw_corruptions(found: Set, path: Path) -> bool:
    """R@1 and mean level against severity; whether there was anything to draw."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(k for line in found.lines.values() for k in line.row.first.corruptions))
    if not kinds:
        return False
    figure = Figure(figsize=(3.4 * len(kinds), 6), layout="constrained")
    axes = figure.subplots(2, len(kinds), squeeze=False, sharex=True, sharey="row")
    for name, (colour, dash) in _colours(found).items():
        row = found.lines[name].row
        for i, kind in enumerate(kinds):
            axes[0, i].set_title(kind)
            axes[1, i].set_xlabel("severity")
            if kind not in row.first.corruptions:
                continue
            for axis, what, scale in ((axes[0, i], "recall@1", 100), (axes[1, i], "level", 1)):
                if what == "level" and not row.values("auroc_level"):
                    continue
                curves = np.array([[r.corruptions[kind][s][what] for s in SEVERITIES] for r in row.results])
                if what == "level":
                    curves /= curves[:, :1]  # heads differ in scale
                axis.plot(range(1, 6), scale * curves.mean(0), dash, color=colour, label=name, linewidth=1.6)
    axes[0, 0].set_ylabel("R@1 of corrupted queries, %")
    axes[1, 0].set_ylabel("mean ‖u‖, over that at severity 1")
    for axis in axes.flat:
        axis.set_xticks(range(1, 6))
    _finish(figure, axes[0, 0], found, path)
    return True


def draw_severity(found: Set, path: Path) -> bool:
    """R@1 and mean level by fifths of the severity that a benchmark's images are degraded by, where it is known."""
    from matplotlib.figure import Figure

    if found.benchmark not in benchmarks or not benchmarks[found.benchmark].embedded:
        return False
    severity = benchmarks[found.benchmark].splits().test.extras["severity"]
    fifths = np.array_split(np.argsort(severity, kind="stable"), 5)
    middles = [float(np.mean(severity[part])) for part in fifths]
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for name, (colour, dash) in _colours(found).items():
        row = found.lines[name].row
        for axis, what in zip(axes, ("top1", "level"), strict=True):
            if what == "level" and not row.values("auroc_level"):
                continue
            loaded = [load_queries(found.leaderboard / "results", r) for r in row.results]
            curves = np.array([[float(v[what][part].mean()) for part in fifths] for v in loaded if v is not None])
            curves = 100 * curves if what == "top1" else curves / curves[:, :1]  # heads differ in scale
            axis.plot(middles, curves.mean(0), dash, color=colour, label=name, linewidth=1.6, marker="o", markersize=3)
    axes[0].set(ylabel="R@1, %", xlabel="severity, mean of each fifth of the images")
    axes[1].set(ylabel="mean ‖u‖, over that of the first fifth", xlabel="severity, mean of each fifth of the images")
    _finish(figure, axes[0], found, path)
    return True
