"""The tables and the figure of docs/reliability.md, from the measured figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from idml_zoo.registry import benchmarks
from idml_zoo.reports.markdown import markdown_table

Figures = Mapping[str, Any]
_TITLES = {"digits": "Digits of scikit-learn, their pixels as they are"}
_SCORES = {
    "level": "‖u‖",
    "top1_similarity": "−sim",
    "margin": "−margin",
    "posterior": "−posterior",
    "agreement": "−agreement",
    "spread": "−spread",
}


def _set_of(key: str) -> str:
    name = key.split(".")[0]
    return _TITLES.get(name) or str(benchmarks[name].title)


def _model_of(key: str) -> str:
    """Returns the model's name; with a mark where its images are held-out training classes, not test classes."""
    _, part, name = key.split(".", 2)
    return f"`{name}`" + (" (held-out)" if part == "held-out" else "")


def _number(value: float | None, interval: list[float] | None = None) -> str:
    """Returns a fraction in percent, with the ends of its interval."""
    if value is None:
        return "–"
    text = f"{100 * value:.1f}"
    return text if interval is None else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _signed(d: Mapping[str, Any]) -> str:
    """Returns a difference in points with its interval; bold where that excludes 0."""
    low, high = d["interval"]
    text = f"{100 * d['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def _auroc(figures: Mapping[str, Any], score: str, with_interval: bool = False) -> str:
    point = figures["scores"].get(score)
    if point is None:
        return "–"
    return _number(point["auroc"], point["auroc_interval"] if with_interval else None)


def _scores_table(figures: Figures, form: str) -> str:
    """Returns the table of a form: the scores that need no fitting beside the confidence, which never saw the set."""
    name, free = {
        "labelled": ("confidence", ("level", "top1_similarity", "margin", "posterior")),
        "label_free": ("confidence_label_free", ("level", "top1_similarity", "spread")),
    }[form]
    rows = []
    for key, f in figures.items():
        strongest = f["against_free"][f"{form}_strongest"]
        gain = next(d for d in f["against_free"][form] if d["second"] == strongest)
        point = f["scores"][name]
        cells = [_set_of(key), _model_of(key), _number(f["wrong"]), *(_auroc(f, s) for s in free)]
        cells += [_auroc(f, name, with_interval=True), f"{_signed(gain)} ({_SCORES[strongest]})"]
        rows.append([*cells, _number(point["answered_5"]), _number(point["answered_10"])])
    header = ["set", "model", "wrong", *(_SCORES[s] for s in free), "confidence"]
    header += ["over the strongest free score", "answered at 5 %", "at 10 %"]
    return markdown_table(header, rows)


def _beaten(figures: Figures) -> str:
    """Returns sentences: how often the confidence is above each free score, and above all of them."""
    sentences = []
    for form, words in (("labelled", "With labels"), ("label_free", "Without labels")):
        every = [d for f in figures.values() for d in f["against_free"][form]]
        above, sure = sum(d["mean"] > 0 for d in every), sum(d["interval"][0] > 0 for d in every)
        below = [(k, d) for k, f in figures.items() for d in f["against_free"][form] if d["mean"] <= 0]
        text = f"{words}, the confidence is above the free score in {above} of {len(every)} comparisons"
        text += f" ({sure} of them with an interval above 0), over {len(figures)} embeddings."
        if below:
            names = [
                f"{_model_of(k)} on {_set_of(k)} ({_SCORES[d['second']]}, {100 * d['mean']:+.1f})" for k, d in below
            ]
            text += f" It is not above in: {'; '.join(names)}."
        sentences.append(text)
    return " ".join(sentences)


def _transfer(figures: Figures) -> str:
    rows = []
    for key, f in figures.items():
        cells = [_set_of(key), _model_of(key)]
        for ending in ("", "_label_free"):
            cells += [_auroc(f, name + ending) for name in ("confidence", "shipped", "fitted")]
            cells += [_number(f["calibration"][name + ending]["ece"]) for name in ("confidence", "fitted")]
        rows.append(cells)
    part = ["default, without this set", "as shipped", "fitted on other classes", "ECE of the first", "of the last"]
    return markdown_table(["set", "model", *part, *(f"{p}, no labels" for p in part)], rows)


def _level_adds(figures: Figures) -> str:
    rows = [
        [
            _set_of(key),
            _model_of(key),
            _auroc(f, "level"),
            *(_signed(f["level_adds"][x]) for x in ("labelled", "label_free")),
        ]
        for key, f in figures.items()
        if "level_adds" in f
    ]
    return markdown_table(["set", "model", "AUROC ‖u‖", "added with labels", "added without"], rows)


def _open_set(figures: Figures) -> str:
    names = (
        "level",
        "top1_similarity",
        "posterior",
        "confidence",
        "unknown",
        "confidence_label_free",
        "unknown_label_free",
    )
    titles = ("‖u‖", "−sim", "−posterior", "−confidence", "unknown", "−confidence, no labels", "unknown, no labels")
    rows = []
    for key, f in figures.items():
        cells = []
        for name in names:
            point = f["open_set"].get(name)
            cells.append("–" if point is None else f"{_number(point['unknown'])} / {_number(point['wrong'])}")
        rows.append([_set_of(key), _model_of(key), *cells])
    return markdown_table(["set", "model", *titles], rows)


def _promises(figures: Figures) -> str:
    rows = []
    for key, f in figures.items():
        for form, words in (("labelled", "with labels"), ("label_free", "without")):
            for case, risks in f.get("promises", {}).get(form, {}).items():
                unit, _, later = case.partition(", ")
                cells = [_set_of(key), words, unit, later]
                for point in risks.values():
                    cells.append(" / ".join(_number(point[n]) for n in ("answered", "broken", "broken_whole")))
                rows.append(cells)
    header = ["set", "form", "unit of the limit", "later queries", *(f"{r} % risk" for r in (5, 10, 20))]
    return markdown_table(header, rows)


EMBEDDED = ("cub2010.test.embedded", "cars196_half.test.embedded", "glyphs.test.embedded")
_NAMES = {"cub2010": "birds", "cars196_half": "cars", "glyphs": "glyphs"}


def _of_embedded(figures: Figures, score: str, key: str = "auroc") -> str:
    """Returns the percentages of a score on the embedded weights: "90 (birds), 90 (cars) and 89 (glyphs)"."""
    parts = [
        f"{100 * figures[k]['scores'][score][key]:.0f} ({_NAMES[k.split('.')[0]]})" for k in EMBEDDED if k in figures
    ]
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def headline(figures: Figures) -> str:
    """Returns what confidence is worth with the weights that come with the package, in two sentences."""
    scores = ("confidence", "confidence_label_free", "top1_similarity", "level")
    labelled, label_free, similarity, level = (_of_embedded(figures, n) for n in scores)
    answered = [_of_embedded(figures, n, "answered_10") for n in ("confidence", "top1_similarity")]
    return (
        "With the weights that come with the package, and coefficients that never saw the set, the AUROC for a wrong "
        f"answer is {labelled} with labels and {label_free} without. That of −sim is {similarity}, and that of ‖u‖ "
        f"{level}. Where a tenth of the answers may be wrong, {answered[0]} % of the queries can be answered by the "
        f"confidence with labels, and {answered[1]} % by −sim."
    )


def _range(values: list[float]) -> str:
    return f"{100 * min(values):.1f} to {100 * max(values):.1f}"


def _carries_over(figures: Figures) -> str:
    sentences, every = [], list(figures.values())
    for ending, words in (("", "With labels"), ("_label_free", "Without")):
        lost = [f["scores"]["fitted" + ending]["auroc"] - f["scores"]["confidence" + ending]["auroc"] for f in every]
        default, fitted = ([f["calibration"][n + ending]["ece"] for f in every] for n in ("confidence", "fitted"))
        mean = 100 * sum(lost) / len(lost)
        sentences.append(
            f"{words}, what was fitted on other classes of the set is {mean:.1f} points of AUROC better on average "
            f"({_range(lost)}). The calibration error is {_range(default)} points without a fit, and {_range(fitted)} "
            "with it."
        )
    return " ".join(sentences)


def _level_in_words(figures: Figures) -> str:
    sentences = []
    for form, words in (("labelled", "With labels"), ("label_free", "Without")):
        added = [f["level_adds"][form] for f in figures.values() if "level_adds" in f]
        if not added:
            return "No embedding here has a level."
        above, below = (sum(test(d["interval"]) for d in added) for test in (lambda i: i[0] > 0, lambda i: i[1] < 0))
        most = 100 * max(d["mean"] for d in added)
        sentences.append(
            f"{words}, the level adds in {above} of {len(added)} rows, {most:.1f} points at most, and takes in {below}."
        )
    return " ".join(sentences)


def _unknown_in_words(figures: Figures) -> str:
    shown = {
        "unknown": "`unknown`",
        "top1_similarity": "−sim",
        "confidence": "−confidence",
        "unknown_label_free": "without labels",
    }
    means = {n: [f["open_set"][n]["unknown"] for f in figures.values() if n in f["open_set"]] for n in shown}
    parts = [f"{100 * sum(v) / len(v):.1f} for {shown[n]}" for n, v in means.items() if v]
    return f"Mean AUROC for an unknown class over all rows: {', '.join(parts)}."


def _promises_in_words(figures: Figures) -> str:
    cases: dict[str, list[tuple[float, float]]] = {}
    for f in figures.values():
        for kept in f.get("promises", {}).values():
            for case, risks in kept.items():
                kind = "later" if "later" in case else case
                cases.setdefault(kind, []).extend((p["broken"], p["broken_whole"]) for p in risks.values())
    words = {
        "queries, halves of queries": "Limits by queries, with other queries of the same classes, were broken",
        "classes, halves of classes": "Limits by classes, with other classes, were broken",
        "queries, halves of classes": "Limits by queries, with other classes, which was not promised, were broken",
        "later": "On blurred queries nothing holds: limits were broken",
    }
    sentences = []
    for case, text in words.items():
        if case in cases:
            half, whole = (100 * max(column) for column in zip(*cases[case], strict=True))
            sentences.append(f"{text} in at most {half:.1f} % of the halves, and over the whole set in {whole:.1f} %.")
    return " ".join(sentences)


BLOCKS: dict[str, Callable[[Figures], str]] = {
    "beaten": _beaten,
    "labelled": lambda figures: _scores_table(figures, "labelled"),
    "label_free": lambda figures: _scores_table(figures, "label_free"),
    "transfer": _transfer,
    "level_adds": _level_adds,
    "open_set": _open_set,
    "promises": _promises,
    "headline": headline,
    "carries_over": _carries_over,
    "level_in_words": _level_in_words,
    "unknown_in_words": _unknown_in_words,
    "promises_in_words": _promises_in_words,
}


def block(name: str, figures: Figures) -> str:
    """Returns the content of a block of the page; raises ValueError for another name."""
    if name not in BLOCKS:
        raise ValueError(f"no block {name!r}: {', '.join(BLOCKS)}")
    return BLOCKS[name](dict(sorted(figures.items())))


def draw(measured: Path, folder: Path) -> Path:
    """Draws the AUROC of the scores of every embedding, one panel for each form; returns the picture's path."""
    from matplotlib.figure import Figure

    figures = dict(sorted(json.loads(measured.read_text(encoding="utf-8"))["figures"].items()))
    shown = {
        "with labels": {
            "level": "‖u‖",
            "top1_similarity": "−sim",
            "margin": "−margin",
            "posterior": "−posterior",
            "confidence": "confidence",
        },
        "without labels": {
            "level": "‖u‖",
            "top1_similarity": "−sim",
            "spread": "−spread",
            "confidence_label_free": "confidence",
        },
    }
    styles = {
        "‖u‖": ("#CC79A7", "x"),
        "−sim": ("#777777", "s"),
        "−margin": ("#56B4E9", "^"),
        "−spread": ("#56B4E9", "^"),
    }
    styles |= {"confidence": ("#D55E00", "o"), "−posterior": ("#009E73", "v")}
    figure = Figure(figsize=(11, 1.4 + 0.19 * len(figures)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (title, names) in zip(axes, shown.items(), strict=True):
        for height, f in enumerate(figures.values()):
            for name, label in names.items():
                point, (colour, marker) = f["scores"].get(name), styles[label]
                if point is None:
                    continue
                if label == "confidence":
                    axis.plot([100 * v for v in point["auroc_interval"]], [height, height], color=colour, linewidth=2)
                first = label if not any(line.get_label() == label for line in axis.lines) else None
                axis.plot(100 * point["auroc"], height, marker, color=colour, markersize=4.5, linestyle="", label=first)
        axis.set(xlabel=f"AUROC for a wrong nearest neighbour, %, {title}", xlim=(40, 100))
        axis.axvline(50, color="#555555", linewidth=1, linestyle=":")
        axis.grid(alpha=0.3)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.02), ncols=5, fontsize=8, frameon=False)
    labels = [f"{key.split('.')[0]}: {_model_of(key).replace('`', '')}" for key in figures]
    axes[0].set_yticks(range(len(figures)), labels, fontsize=7)
    axes[0].invert_yaxis()
    path = folder / "auroc.png"
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    return path
