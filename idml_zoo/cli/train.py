"""The commands ``idml-zoo train``, ``sweep``, ``study`` and ``repeat``: one run, many runs, and a run made again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.cli.arguments import positive
from idml_zoo.training.command import add_arguments, launch
from idml_zoo.training.recipes import QUICKSTART, training_loop

if TYPE_CHECKING:
    from rich.console import Console

_TRAIN = """examples:
  idml-zoo train                                      the quickstart: glyphs, two minutes on 2 cores
  idml-zoo train --config cub_resnet50 variant=pa_mixup seed=1 data_root=/data
  idml-zoo train --config cub_resnet50 benchmark=mine source=path/to/folder
  idml-zoo train --config sop_resnet50 --processes 4  on 4 GPUs, or on 4 processes of a CPU

Variants are listed by `idml-zoo list --what variants`. Started again, the same command goes on from its last
checkpoint. Model, log and checkpoints go to runs/BENCHMARK/ROW/seedN, results and tables to runs/leaderboard.
"""
_SWEEP = """examples:
  idml-zoo sweep --config glyphs_test_resnet variant=idml,pa_mixup seed=0,1,2
  idml-zoo sweep --config cub_resnet50 variant=pa,idml lr=3e-4,6e-4 evaluate_on=validation
  idml-zoo sweep --config cub_resnet50 variant=idml seed=0,1,2 --dry-run

A key with several values, separated by commas, is a dimension of the grid. A run is skipped where a result file has its
recipe. Each GPU gets one run at a time; without a GPU, --jobs runs share the cores. Results and tables go to
runs/leaderboard, or to leaderboard=FOLDER.
"""
_STUDY = """examples:
  idml-zoo study glyphs --dry-run                     what is done, chosen and missing
  idml-zoo study recipes/studies/cub2010.yaml --jobs 2

Started again, it does what is missing. docs/training.md describes studies.
"""
_REPEAT = """examples:
  idml-zoo repeat leaderboard/results/glyphs/idml-test_resnet-64px-tuned/seed0.json
  idml-zoo repeat RESULT.json --root /data --within 0.5    on a GPU, or with other versions: 0.5 points

With the same code, versions, processor and number of threads, a run on a CPU gives the same weights, bit for bit. The
exit status is 0 where no metric differs by more than --within, else 1.
"""


def add_parsers(commands: Any) -> None:
    """Adds the four commands to the command line."""
    one = _parser(commands, "train", "train a model, measure it, add its row to a leaderboard", _TRAIN)
    add_arguments(one, "idml-zoo train")
    one.add_argument("--processes", type=positive, default=1, metavar="N", help="one for each GPU (default 1)")
    one.set_defaults(run=_train)

    one = _parser(commands, "sweep", "train a grid of runs: variants × seeds × any other key", _SWEEP)
    one.add_argument("--config", default=QUICKSTART, metavar="RECIPE", help=f"default: {QUICKSTART}")
    _add_jobs(one, "runs/sweep", Path("runs/sweep"))
    one.add_argument("words", nargs="*", metavar="key=value[,value…]", help="override any key of the recipe")
    one.set_defaults(run=_sweep)

    one = _parser(commands, "study", "tune variants alike on held-out classes, then measure each of them", _STUDY)
    one.add_argument("study", type=Path, help="YAML file, or short name of a stored study: glyphs")
    _add_jobs(one, "runs/study/NAME")
    one.add_argument(
        "--leaderboard", default="runs/leaderboard", help="folder for results and tables (default: runs/leaderboard)"
    )
    one.set_defaults(run=_study)

    one = _parser(commands, "repeat", "train a row again from the recipe in its result file, and compare", _REPEAT)
    one.add_argument("result", type=Path, help="result file of one seed")
    one.add_argument("--root", help="folder that holds the data (default: as in the recipe)")
    one.add_argument(
        "--within", type=float, default=0.0, metavar="POINTS", help="largest difference that passes (default 0)"
    )
    one.add_argument(
        "--trust", action="store_true", help="for your own results: the recipe may name images, folders and the Hub"
    )
    one.add_argument(
        "--out", type=Path, default=Path("runs/repeat"), help="folder of the new run (default: runs/repeat)"
    )
    one.set_defaults(run=_repeat)


def _parser(commands: Any, name: str, summary: str, epilog: str) -> argparse.ArgumentParser:
    """Returns the parser of a command, with examples below its help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def _add_jobs(one: argparse.ArgumentParser, shown: str, logs: Path | None = None) -> None:
    one.add_argument("--jobs", type=positive, default=1, help="runs at once, without a GPU (default 1)")
    one.add_argument("--logs", type=Path, default=logs, help=f"output of the runs (default: {shown})")
    one.add_argument("--dry-run", action="store_true", help="print what would run, and exit")


def _console() -> Console:
    from rich.console import Console

    return Console(soft_wrap=True, markup=False, highlight=False)


def _train(args: argparse.Namespace) -> int:
    words = ["--config", args.config, *args.overrides]
    try:
        return launch(args.processes, words) if args.processes > 1 else int(training_loop().main(words))
    except KeyboardInterrupt:  # while torch is imported
        print("interrupted", file=sys.stderr)
        return 130


def _sweep(args: argparse.Namespace) -> int:
    from idml_zoo.studies.sweep import plan, run_all

    out, waiting = _console(), []
    for run, result in plan(args.config, args.words):
        words = " ".join(run.words)
        out.print(f"done  {words}  ({result.path('')})" if result else f"to do {words}")
        if result is None:
            waiting.append(run)
    if args.dry_run or not waiting:
        return 0
    return run_all(lambda: waiting.pop(0) if waiting else None, args.jobs, args.logs, out)


def _study(args: argparse.Namespace) -> int:
    from idml_zoo.studies.study import Progress, read_study, report, run_missing

    out, progress = _console(), Progress(read_study(args.study), args.leaderboard)
    report(progress, out)
    if args.dry_run:
        for run in progress.missing():
            out.print(f"to do  {' '.join(run.words)}")
        return 0
    status = run_missing(progress, args.jobs, args.logs or Path("runs/study") / args.study.stem, out)
    report(progress, out)
    return status


def _repeat(args: argparse.Namespace) -> int:
    from idml_zoo.results import read_result
    from idml_zoo.studies.repeat import circumstances, comparison, differences, repeat

    old = read_result(args.result)
    new = repeat(old, args.out, args.root, args.trust)
    off = differences(old, new)
    out = _console()
    out.print(comparison(old, new, off))
    same = old.provenance.weights_sha256 == new.provenance.weights_sha256
    if same and not any(off.values()):
        out.print("weights and metrics are the same, bit for bit")
    else:
        worst = max(abs(v) for v in off.values())
        out.print(f"weights {'equal' if same else 'differ'}; the largest difference of a metric is {worst:.3g} points")
    if changed := circumstances(old, new):
        out.print(f"not the same: {'; '.join(changed)}")
    return 0 if all(abs(v) <= args.within for v in off.values()) else 1  # NaN is not
