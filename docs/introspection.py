"""Makes the tables and the figure of does-introspection-help.md from result files.

    python docs/introspection.py            # writes them
    python docs/introspection.py --check    # fails where the page differs from the result files
    python docs/introspection.py --pace runs/glyphs   # also measures the gradients of the trained models in these runs

Everything between the markers of the page is generated; the words around it are not.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import yaml

from idml_zoo.evaluation.uncertainty import auroc
from idml_zoo.leaderboard import Row, group, percent
from idml_zoo.registry import benchmarks
from idml_zoo.results import read_results

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from config import Config

HERE = Path(__file__).parent
PAGE, FIGURE = HERE / "does-introspection-help.md", HERE / "does-introspection-help.png"
VALIDATION = HERE / "validation"
PACE, GRADIENTS = HERE / "pace.json", HERE / "gradients.png"
VARIANTS = ("pa", "pa_mixup", "idml_released", "idml", "idml_no_mixup", "vmf", "loss_prediction")
COLUMNS = {
    "R@1": "recall@1",
    "MAP@R": "map@r",
    "AUROC ‖u‖": "auroc_level",
    "AUROC −sim": "auroc_top1_similarity",
    "AURC ‖u‖": "aurc_level",
    "AURC −sim": "aurc_top1_similarity",
    "ρ severity": "spearman_severity",
}
COLOURS = ("#777777", "#000000", "#CC79A7", "#0072B2", "#56B4E9", "#D55E00", "#009E73")  # Okabe and Ito


def rows_of(results: Path, benchmark: str) -> dict[str, Row]:
    """The comparison's rows, by variant, as far as they are measured."""
    found = group(r for r in read_results(results) if r.benchmark == benchmark and r.protocol.split == "test")
    return {
        row.first.model.variant: row for row in found if row.first.row == f"{row.first.model.variant}-test_resnet-64px"
    }


def per_query(results: Path, row: Row) -> list[dict[str, np.ndarray]]:
    """The values of every query, for each seed."""
    return [dict(np.load(r.path(results).with_suffix(".queries.npz"))) for r in row.results]


def twin_auroc(results: Path, row: Row, twins: np.ndarray) -> list[float] | None:
    """How well the level tells images of identical outlines, whose class cannot be known, from the rest; by seed."""
    found = [auroc(values["level"], twins) for values in per_query(results, row)]
    return None if any(f is None for f in found) else [f for f in found if f is not None]


def table(results: Path, benchmark: str) -> str:
    """A Markdown table: one row for each variant, percent, mean ± standard deviation over seeds."""
    rows = rows_of(results, benchmark)
    shown = {t: m for t, m in COLUMNS.items() if any(r.values(m) for r in rows.values())}
    twins = None
    if benchmark.startswith("glyphs") and rows:
        twins = benchmarks[benchmark].splits().test.extras["twin_group"] >= 0
    header = ["variant", "seeds", *shown, *(["AUROC twins"] if twins is not None else [])]
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    for name in VARIANTS:
        if name not in rows:
            continue
        row = rows[name]
        cells = [f"`{name}`", str(len(row.results)), *(percent(row.values(m)) for m in shown.values())]
        if twins is not None:
            cells.append(percent(twin_auroc(results, row, twins)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def risk(values: dict[str, np.ndarray], score: str) -> tuple[np.ndarray, np.ndarray]:
    """(coverage, risk): the share of wrong top-1 among the surest queries, by ``score``."""
    order = np.argsort(values[score], kind="stable")
    wrong = ~values["top1"][order].astype(bool)
    count = np.arange(1, len(order) + 1)
    return count / len(order), np.cumsum(wrong) / count


def draw(results: Path, names: list[str], path: Path) -> None:
    """Risk against coverage, one panel for each benchmark: by the level, and by the free baseline of the same row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * len(names), 5.2), layout="constrained")
    for i, benchmark in enumerate(names):
        axis = figure.add_subplot(1, len(names), i + 1)
        for colour, (name, row) in zip(COLOURS, _with_level(results, benchmark), strict=False):
            for score, style in (("level", "-"), ("top1_similarity", ":")):
                curves = [risk(values, score) for values in per_query(results, row)]
                label = f"{name}, by ‖u‖" if score == "level" else f"{name}, by −similarity"
                mean = np.mean([r for _, r in curves], axis=0)
                axis.plot(curves[0][0], 100 * mean, style, color=colour, label=label, linewidth=1.8)
        axis.set_title(benchmarks[benchmark].title)
        axis.set_xlabel("coverage: share of queries answered, surest first")
        axis.set_ylabel("risk: wrong nearest neighbours among them, %")
        axis.set_xlim(0.02, 1)
        axis.set_ylim(0, 50)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": ""})


def _with_level(results: Path, benchmark: str) -> list[tuple[str, Row]]:
    rows = rows_of(results, benchmark)
    return [(n, rows[n]) for n in VARIANTS if n in rows and rows[n].values("auroc_level")]


def measure_pace(runs: Path, results: Path) -> list[dict[str, object]]:
    """The pace of glyphs_subset's test images under each trained model of the comparison; draws that of idml, seed 0.

    Raises:
        ValueError: a model in ``runs`` is not the one of the result file.
    """
    import idml_zoo
    from idml_zoo.analysis import gradient_curves, plot_gradients, sample_gradients
    from idml_zoo.evaluation.uncertainty import spearman
    from idml_zoo.weights import WEIGHTS, sha256_of

    split = benchmarks["glyphs_subset"].splits().test
    found: list[dict[str, object]] = []
    for name, row in _with_level(results, "glyphs"):
        for result in row.results if name in ("idml", "idml_no_mixup") else ():
            folder = runs / row.first.row / f"seed{result.seed}" / "model"
            if (sha := sha256_of(folder / WEIGHTS)) != result.provenance.weights_sha256:
                raise ValueError(
                    f"{folder} holds weights {sha[:12]}, {result.path(results)} is of others; train it anew"
                )
            samples = sample_gradients(idml_zoo.create_model(f"local-dir:{folder}", pretrained=True), split)
            pace, metric = samples.pace, samples.metric_pace
            entry = {"pace": spearman(pace, samples.level), "metric": spearman(metric, samples.level)}
            entry |= {"median": float(np.median(pace)), "above": float((pace > 1).mean()), "most": float(metric.max())}
            found.append({"variant": name, "seed": result.seed, "weights_sha256": sha, **entry})
            if name == "idml" and result.seed == 0:
                plot_gradients(GRADIENTS, gradient_curves(), samples)
    return found


def pace_table(results: Path, path: Path = PACE) -> str:
    """A Markdown table of what :func:`measure_pace` found.

    Raises:
        ValueError: the measured models are not those of the result files.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    known = {r.provenance.weights_sha256 for _, row in _with_level(results, "glyphs") for r in row.results}
    if old := [f"{e['variant']}, seed {e['seed']}" for e in found if e["weights_sha256"] not in known]:
        raise ValueError(f"{path.name} is of other models than the result files: {'; '.join(old)}; use --pace")
    lines = [
        "| variant | seeds | ρ(pace, ‖u‖) | median pace | images above 1, % | ρ(metric alone, ‖u‖) | its largest |",
        "|---" + "|---:" * 6 + "|",
    ]
    for name in dict.fromkeys(e["variant"] for e in found):
        rows = [e for e in found if e["variant"] == name]

        def cell(key: str, scale: float = 1.0, digits: int = 2, rows: list[dict[str, float]] = rows) -> str:
            values = [scale * e[key] for e in rows]
            return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"

        cells = [cell("pace"), cell("median"), cell("above", 100, 0), cell("metric"), cell("most")]
        lines.append(f"| `{name}` | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def validation_table(folder: Path = VALIDATION) -> str:
    """A Markdown table of what was tried on held-out training classes, from the recipes in the result files."""
    found = group(read_results(folder))
    keys = {"uncertainty_lr_multiplier": "rate of u ×", "tau": "τ = ", "initial_level": "first level "}
    header = ["variant", "setting", "seeds", *(t for t in COLUMNS)]
    lines = ["| " + " | ".join(header) + " |", "|---|---" + "|---:" * (len(header) - 2) + "|"]
    for row in sorted(found, key=lambda r: (r.first.model.variant, r.first.row)):
        recipe = yaml.safe_load(row.first.provenance.recipe or "")
        setting = ["u_p learned" if recipe["proxy_uncertainty"] == "learned" else "u_p = 0"]
        setting += [f"{t}{recipe[k]:g}" for k, t in keys.items() if recipe[k] != getattr(Config, k)]
        cells = [f"`{row.first.model.variant}`", ", ".join(setting), str(len(row.results))]
        lines.append("| " + " | ".join([*cells, *(percent(row.values(m)) for m in COLUMNS.values())]) + " |")
    return "\n".join(lines)


def page(text: str, results: Path) -> str:
    """The page with every generated block replaced."""

    def block(match: re.Match[str]) -> str:
        others = {"pace": lambda: pace_table(results), "validation": validation_table}
        content = others[match[1]]() if match[1] in others else table(results, match[1])
        return f"<!-- table: {match[1]} -->\n{content}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is out of date")
    parser.add_argument("--results", type=Path, default=HERE.parent / "leaderboard" / "results")
    parser.add_argument("--pace", type=Path, metavar="RUNS", help="measure the trained models of the glyphs rows here")
    args = parser.parse_args()
    if args.pace:
        PACE.write_text(json.dumps(measure_pace(args.pace, args.results), indent=1) + "\n", encoding="utf-8")
    old = PAGE.read_text(encoding="utf-8")
    new = page(old, args.results)
    if args.check:
        print(f"{PAGE.name}: {'agrees with' if new == old else 'differs from'} the result files")
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    names = [n for n in re.findall(r"<!-- table: (\w+) -->", new) if n in benchmarks and _with_level(args.results, n)]
    if names:
        draw(args.results, names, FIGURE)
    print(f"{PAGE.name}, {FIGURE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
