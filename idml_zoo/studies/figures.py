"""The figures of the result pages. ``python -m idml_zoo.studies.pages`` draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idml_zoo.evaluation.uncertainty import risk_coverage
from idml_zoo.registry import benchmarks
from idml_zoo.reports.bootstrap import load_queries
from idml_zoo.results import SEVERITIES

if TYPE_CHECKING:
    from idml_zoo.data.split import Split
    from idml_zoo.reports.bootstrap import Difference
    from idml_zoo.reports.leaderboard import Row
    from idml_zoo.studies.sets import Set
    from idml_zoo.types import Embedding

COLOURS = ("#777777", "#000000", "#CC79A7", "#0072B2", "#56B4E9", "#D55E00", "#009E73")  # Okabe and Ito
_CORRECT, _WRONG = "#0a7d44", "#c62828"


def title_of(measured: Set) -> str:
    """Returns the title of a set's benchmark."""
    return benchmarks[measured.benchmark].title if measured.benchmark in benchmarks else measured.benchmark


def _colours(measured: Set) -> dict[str, tuple[str, str]]:
    """Returns a colour and a line style for each variant."""
    return {n: (COLOURS[i % len(COLOURS)], "-" if i < len(COLOURS) else "--") for i, n in enumerate(measured.lines)}


def _finish(figure: Any, labelled: Any, measured: Set, path: Path) -> None:
    """Adds grids, one legend for all panels and the title, and writes the file."""
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        if not axis.lines:
            axis.text(0.5, 0.5, "no row measured yet has this", transform=axis.transAxes, ha="center", color="#777777")
    handles, labels = labelled.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(title_of(measured))
    figure.savefig(path, dpi=110, metadata={"Software": ""})


def draw_risk(measured: Set, path: Path) -> None:
    """Draws risk against coverage: by the uncertainty level, and by the similarity baseline of the same row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    highest = 0.0
    for name, (colour, dash) in _colours(measured).items():
        row = measured.lines[name].row
        for axis, score in zip(axes, ("level", "top1_similarity"), strict=True):
            if score == "level" and not row.values("auroc_level"):
                continue
            loaded = [load_queries(measured.leaderboard / "results", r) for r in row.results]
            curves = [risk_coverage(v[score], ~v["top1"].astype(bool)) for v in loaded if v is not None]
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
    _finish(figure, axes[1], measured, path)


def draw_corruptions(measured: Set, path: Path) -> bool:
    """Draws R@1 and the mean level against severity. Returns whether a row has corrupted queries."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(k for line in measured.lines.values() for k in line.row.first.corruptions))
    if not kinds:
        return False
    figure = Figure(figsize=(3.4 * len(kinds), 6), layout="constrained")
    axes = figure.subplots(2, len(kinds), squeeze=False, sharex=True, sharey="row")
    for name, (colour, dash) in _colours(measured).items():
        row = measured.lines[name].row
        for i, kind in enumerate(kinds):
            axes[0, i].set_title(kind)
            axes[1, i].set_xlabel("severity")
            if kind not in row.first.corruptions:
                continue
            for axis, metric, scale in ((axes[0, i], "recall@1", 100), (axes[1, i], "level", 1)):
                if metric == "level" and not row.values("auroc_level"):
                    continue
                curves = np.array([[r.corruptions[kind][s][metric] for s in SEVERITIES] for r in row.results])
                if metric == "level":
                    curves /= curves[:, :1]  # heads differ in scale
                axis.plot(range(1, 6), scale * curves.mean(0), dash, color=colour, label=name, linewidth=1.6)
    axes[0, 0].set_ylabel("R@1 of corrupted queries, %")
    axes[1, 0].set_ylabel("mean ‖u‖, over that at severity 1")
    for axis in axes.flat:
        axis.set_xticks(range(1, 6))
    _finish(figure, axes[0, 0], measured, path)
    return True


def image_attributes(measured: Set) -> dict[str, np.ndarray]:
    """Returns the attributes of each test image besides its class; {} for sets that the package does not render."""
    if measured.benchmark not in benchmarks or not benchmarks[measured.benchmark].embedded:
        return {}
    return dict(benchmarks[measured.benchmark].splits().test.extras)


def _fifths(measured: Set) -> list[np.ndarray] | None:
    """Returns the test images in five parts, the least degraded first; None for a set of unknown severity."""
    severity = image_attributes(measured).get("severity")
    return None if severity is None else np.array_split(np.argsort(severity, kind="stable"), 5)


def level_ratio(curve: Mapping[str, Mapping[str, float]]) -> float:
    """Returns the mean level at the last severity of a corruption over that at the first."""
    return curve[SEVERITIES[-1]]["level"] / curve[SEVERITIES[0]]["level"]


def level_ratios(measured: Set, row: Row) -> list[float]:
    """Returns, for each seed, the mean level of the most degraded images over that of the least degraded."""
    if row.first.corruptions:
        return [float(np.mean([level_ratio(curve) for curve in r.corruptions.values()])) for r in row.results]
    parts = _fifths(measured)
    if parts is None:
        return []
    loaded = [load_queries(measured.leaderboard / "results", r) for r in row.results]
    return [float(v["level"][parts[-1]].mean() / v["level"][parts[0]].mean()) for v in loaded if v is not None]


def draw_across(lines: Sequence[tuple[Set, str, str, Difference]], path: Path) -> None:
    """Draws, over all sets: the change in R@1, the AUROC of the level, and its rise as images degrade.

    Args:
        lines: (set, variant, what it is compared with, their difference in R@1), in the order to be drawn.
        path: of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 + 0.3 * len(lines)), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True, width_ratios=[1.3, 1, 1])
    names = list(dict.fromkeys(measured.benchmark for measured, *_ in lines))
    for height, (measured, name, _, d) in enumerate(lines):
        row, colour = measured.lines[name].row, COLOURS[1 + names.index(measured.benchmark) % (len(COLOURS) - 1)]
        axes[0].plot([100 * d.low, 100 * d.high], [height, height], color=colour, linewidth=2)
        axes[0].plot(100 * d.mean, height, "o", color=colour, markersize=5)
        for metric, marker, inside in (("auroc_top1_similarity", "D", "white"), ("auroc_level", "o", colour)):
            for value in row.values(metric) or []:
                axes[1].plot(100 * value, height, marker, color=colour, markerfacecolor=inside, markersize=5)
        for value in level_ratios(measured, row) if row.values("auroc_level") else []:
            axes[2].plot(value, height, "o", color=colour, markersize=5)
    axes[0].set_yticks(
        range(len(lines)), [f"{measured.benchmark}: {a} − {b}" for measured, a, b, _ in lines], fontsize=8
    )
    axes[0].invert_yaxis()
    axes[0].set(title="R@1, points (95 %)")
    axes[1].set(title="AUROC: ● ‖u‖  ◇ −sim")
    axes[2].set(title="‖u‖, most / least degraded")
    for axis, neutral in zip(axes, (0, 50, 1), strict=True):
        axis.axvline(neutral, color="#555555", linewidth=1, linestyle=":")
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110, metadata={"Software": ""})


def draw_published(name: str, folder: Path, benchmark: str = "glyphs") -> None:
    """Draws the test glyphs as a published model sees them: the picture of README, and two sheets of its gallery."""
    import idml_zoo
    from idml_zoo.evaluation.embed import embed
    from idml_zoo.reports.gallery import choose, sheet

    split = benchmarks[benchmark].splits().test
    model = idml_zoo.create_model(name, pretrained=True)
    bank = embed(model, split, model.transform)
    sections = choose(bank, split, k=8, count=6).sections
    for heading, name in (("Most confident mistakes", "mistakes"), ("Most uncertain images", "uncertain")):
        sheet(split, sections[heading], 64).save(folder / f"glyphs-{name}.png", optimize=True)
    draw_headline(split, bank, folder / "headline.png")


def draw_headline(split: Split, bank: Embedding, path: Path, rows: int = 3, columns: int = 14) -> None:
    """Draws images in the order of ‖u‖, some of each part, over the share of that part's wrong neighbours."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from idml_zoo.retrieval.knn import search

    nearest = search(bank, bank, 1, exclude_self=True).indices[:, 0].numpy()
    wrong = split.labels[nearest] != split.labels
    parts = np.array_split(np.argsort(bank.level.numpy(), kind="stable"), columns)
    draw = np.random.RandomState(0)
    figure = Figure(figsize=(10, 4.3), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1] * rows + [1.6], hspace=0.02, wspace=0.02)
    for column, part in enumerate(parts):
        for row, image in enumerate(draw.choice(part, rows, replace=False)):
            axis = figure.add_subplot(grid[row, column])
            axis.imshow(np.asarray(split.images[int(image)].convert("L")), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(
                    color=_WRONG if wrong[image] else _CORRECT, linewidth=2, linestyle="--" if wrong[image] else "-"
                )
    axis = figure.add_subplot(grid[rows, :])
    axis.bar(range(columns), [100 * wrong[part].mean() for part in parts], color="#4c72b0")
    axis.set(xlim=(-0.5, columns - 0.5), xticks=[0, columns - 1], ylabel="wrong, %")
    axis.set_xticklabels(["surest", "most uncertain"])
    axis.axhline(100 * wrong.mean(), color="#555555", linewidth=1, linestyle=":")
    axis.spines[["top", "right"]].set_visible(False)
    marks = [
        Rectangle((0, 0), 1, 1, fill=False, edgecolor=c, linewidth=2, linestyle=s)
        for c, s in ((_CORRECT, "-"), (_WRONG, "--"))
    ]
    figure.legend(
        marks, ["nearest neighbour right", "wrong"], loc="outside upper right", ncols=2, frameon=False, fontsize=9
    )
    figure.suptitle("Characters never seen in training, ordered by ‖u‖", x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=110, metadata={"Software": ""})


def draw_severity(measured: Set, path: Path) -> bool:
    """Draws R@1 and the mean level by fifths of the images' severity. Returns whether the severity is recorded."""
    from matplotlib.figure import Figure

    fifths = _fifths(measured)
    if fifths is None:
        return False
    severity = benchmarks[measured.benchmark].splits().test.extras["severity"]
    middles = [float(np.mean(severity[part])) for part in fifths]
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for name, (colour, dash) in _colours(measured).items():
        row = measured.lines[name].row
        for axis, metric in zip(axes, ("top1", "level"), strict=True):
            if metric == "level" and not row.values("auroc_level"):
                continue
            loaded = [load_queries(measured.leaderboard / "results", r) for r in row.results]
            curves = np.array([[float(v[metric][part].mean()) for part in fifths] for v in loaded if v is not None])
            curves = 100 * curves if metric == "top1" else curves / curves[:, :1]  # heads differ in scale
            axis.plot(middles, curves.mean(0), dash, color=colour, label=name, linewidth=1.6, marker="o", markersize=3)
    axes[0].set(ylabel="R@1, %", xlabel="severity, mean of each fifth of the images")
    axes[1].set(ylabel="mean ‖u‖, over that of the first fifth", xlabel="severity, mean of each fifth of the images")
    _finish(figure, axes[0], measured, path)
    return True
