"""Makes the tables of docs/gradients.md from result files.

    python -m idml_zoo.studies.gradients_page            # writes them
    python -m idml_zoo.studies.gradients_page --check    # writes nothing; fails where the page differs from the files
    python -m idml_zoo.studies.gradients_page --pace runs/glyphs   # also measures the trained models of these runs

It runs in a clone. Everything between the markers of the page is generated; the words around it are written by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from idml_zoo.files import write_file
from idml_zoo.registry import benchmarks
from idml_zoo.reports.blocks import outdated, write_blocks
from idml_zoo.reports.leaderboard import group, percent
from idml_zoo.reports.markdown import markdown_table
from idml_zoo.results import Result, read_results
from idml_zoo.studies.pages import report_outdated
from idml_zoo.training.config import DEFAULTS

HERE = Path(__file__).parents[2] / "docs"
PAGE, FIGURE = HERE / "gradients.md", HERE / "gradients" / "pace.png"
PACE, TRIALS = HERE / "gradients" / "pace.json", HERE / "gradients" / "trials"
VARIANTS = ("idml", "idml_no_mixup")
COLUMNS = {
    "R@1": "recall@1",
    "MAP@R": "map@r",
    "AUROC ‖u‖": "auroc_level",
    "AUROC −sim": "auroc_top1_similarity",
    "AURC ‖u‖": "aurc_level",
    "AURC −sim": "aurc_top1_similarity",
    "ρ severity": "spearman_severity",
}


def results_of(results: Path, variant: str) -> list[Result]:
    """Returns the result of each seed of a variant's row, whose gradients the page shows."""
    row = f"{variant}-test_resnet-64px"
    seeds = (r for r in read_results(results) if (r.benchmark, r.row, r.protocol.split) == ("glyphs", row, "test"))
    return sorted(seeds, key=lambda r: r.seed)


def measure_pace(runs: Path, results: Path) -> list[dict[str, object]]:
    """Returns statistics of the pace of glyphs_subset's test images for each trained model; draws idml, seed 0.

    :mod:`idml_zoo.evaluation.gradients` defines the pace.

    Raises:
        ValueError: a model in ``runs`` has other weights than the result file.
    """
    import idml_zoo
    from idml_zoo.evaluation.gradients import gradient_curves, plot_gradients, sample_gradients
    from idml_zoo.evaluation.uncertainty import spearman
    from idml_zoo.files import sha256_of
    from idml_zoo.models.files import WEIGHTS

    split = benchmarks["glyphs_subset"].splits().test
    measured: list[dict[str, object]] = []
    for name in VARIANTS:
        for result in results_of(results, name):
            folder = runs / result.row / f"seed{result.seed}" / "model"
            if (sha := sha256_of(folder / WEIGHTS)) != result.provenance.weights_sha256:
                raise ValueError(
                    f"{folder} holds weights {sha[:12]}, but {result.path(results)} is of "
                    f"{str(result.provenance.weights_sha256)[:12]}; train the model again"
                )
            samples = sample_gradients(idml_zoo.create_model(f"local-dir:{folder}", pretrained=True), split)
            pace, metric = samples.pace, samples.metric_pace
            entry = {"pace": spearman(pace, samples.level), "metric": spearman(metric, samples.level)}
            entry |= {"median": float(np.median(pace)), "above": float((pace > 1).mean()), "most": float(metric.max())}
            measured.append({"variant": name, "seed": result.seed, "weights_sha256": sha, **entry})
            if name == "idml" and result.seed == 0:
                plot_gradients(FIGURE, gradient_curves(), samples)
    return measured


def pace_table(results: Path, path: Path = PACE) -> str:
    """Returns the Markdown table of what :func:`measure_pace` measured.

    Raises:
        ValueError: the measured models are not those of the result files.
    """
    measured = json.loads(path.read_text(encoding="utf-8"))
    current = {r.provenance.weights_sha256 for name in VARIANTS for r in results_of(results, name)}
    if old := [f"{e['variant']}, seed {e['seed']}" for e in measured if e["weights_sha256"] not in current]:
        raise ValueError(f"{path.name} is of other models than the result files: {'; '.join(old)}; use --pace")
    lines = []
    for name in dict.fromkeys(e["variant"] for e in measured):
        seeds = [e for e in measured if e["variant"] == name]

        def cell(key: str, scale: float = 1.0, digits: int = 2, seeds: list[dict[str, float]] = seeds) -> str:
            values = [scale * e[key] for e in seeds]
            return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"

        cells = [cell("pace"), cell("median"), cell("above", 100, 0), cell("metric"), cell("most")]
        lines.append([f"`{name}`", str(len(seeds)), *cells])
    header = ["variant", "seeds", "ρ(pace, ‖u‖)", "median pace", "images above 1, %", "ρ(metric alone, ‖u‖)"]
    return markdown_table([*header, "its largest"], lines)


def trials_table(folder: Path = TRIALS) -> str:
    """Returns the Markdown table of the trials on held-out training classes, from the recipes in the result files."""
    keys = {"uncertainty_lr_multiplier": "rate of u ×", "tau": "τ = ", "initial_level": "first level "}
    lines = []
    for row in sorted(group(read_results(folder)), key=lambda r: (r.first.model.variant, r.first.row)):
        recipe = yaml.safe_load(row.first.provenance.recipe or "")
        setting = ["u_p learned" if recipe["proxy_uncertainty"] == "learned" else "u_p = 0"]
        setting += [f"{t}{recipe[k]:g}" for k, t in keys.items() if recipe[k] != DEFAULTS[k]]
        cells = [f"`{row.first.model.variant}`", ", ".join(setting), str(len(row.results))]
        lines.append([*cells, *(percent(row.values(m)) for m in COLUMNS.values())])
    return markdown_table(["variant", "setting", "seeds", *COLUMNS], lines)


def block(name: str, results: Path) -> str:
    """Returns the content of a block: "pace" or "trials"."""
    return {"pace": lambda: pace_table(results), "trials": trials_table}[name]()


def main() -> int:
    """Writes or checks the page; returns an exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is out of date")
    parser.add_argument("--results", type=Path, default=HERE.parent / "leaderboard" / "results")
    parser.add_argument("--pace", type=Path, metavar="RUNS", help="measure the trained models of the glyphs rows here")
    args = parser.parse_args()
    if args.pace:
        write_file(PACE, json.dumps(measure_pace(args.pace, args.results), indent=1) + "\n")
    make = partial(block, results=args.results)
    if args.check:
        return report_outdated([PAGE], outdated([PAGE], make))
    write_blocks([PAGE], make)
    return 0


if __name__ == "__main__":
    sys.exit(main())
