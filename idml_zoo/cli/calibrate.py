"""The command ``idml-zoo calibrate``: how far the answers of a model are believed, from images with labels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.cli.arguments import (
    add_compute,
    add_images,
    add_metric,
    add_model,
    chosen_compute,
    chosen_images,
    chosen_metric,
    load_images,
    open_model,
)
from idml_zoo.reliability.errors import ReliabilityError, RiskNotReachable

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.table import Table

    from idml_zoo.models.model import IDMLModel
    from idml_zoo.reliability.reliability import Reliability
    from idml_zoo.reliability.risk import Limit

RISKS = (0.05, 0.1, 0.2)
_CONFIDENCE = 0.9
_FORMS = {True: "with labels", False: "without labels"}
_EXAMPLES = """examples:
  idml-zoo calibrate idml_test_resnet_glyphs glyphs_subset
  idml-zoo calibrate idml_tf_efficientnet_lite0_cub2010 mine --source photos --test-classes all
  idml-zoo calibrate local-dir:runs/mine/ROW/seed0/model mine --source photos --into calibrated
  idml-zoo calibrate features mine --source photos --backbone resnet50 --backbone-weights timm --unit queries

The test classes of the images are embedded, and each image asks for its nearest others. Half of the classes fit the
coefficients where there are enough of them, the other half calibrates the limits; with fewer, the package's
coefficients stay and all classes calibrate. The classes must not be those that the model was trained on: it is surer of
those than of new ones.

What is written is used by
  idml_zoo.search(queries, gallery, k=50, reliability=idml_zoo.Reliability.load("reliability.json"), max_risk=0.1)
and by --into FOLDER: create_model("local-dir:FOLDER", pretrained=True).reliability
"""


def add_parsers(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "calibrate",
        help="learn from labelled images how far a model's answers are believed, and when to decline",
        description="Fits the confidence of a model's answers to images with labels, and finds from which confidence "
        "on at most 5, 10 or 20 %% of the answers are wrong.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(parser)
    add_images(parser, "--data-revision")
    add_metric(parser)
    parser.add_argument(
        "--unit",
        choices=("classes", "queries"),
        default="classes",
        help="what one draw is: 'classes' for limits that hold for new classes, 'queries' for new images of these "
        "(default: classes)",
    )
    parser.add_argument(
        "--coefficients",
        choices=("auto", "fitted", "default"),
        default="auto",
        help="of the confidence: fitted to these images, the package's, or fitted if these are enough (default: auto)",
    )
    parser.add_argument("--note", type=_note, help="what the images are, in your words (default: name and similarity)")
    parser.add_argument(
        "--out", type=Path, default=Path("reliability.json"), metavar="FILE", help="default: reliability.json"
    )
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="also save the model here, with its reliability")
    add_compute(parser)
    parser.set_defaults(run=_calibrate)


def _note(text: str) -> str:
    """Returns words that a reliability can hold, for argparse."""
    from dataclasses import replace

    from idml_zoo.reliability.reliability import Reliability, default

    try:
        return Reliability.from_dict(replace(default(), calibrated_on=text).to_dict()).calibrated_on
    except ReliabilityError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _calibrate(args: argparse.Namespace) -> int:
    from rich.console import Console

    from idml_zoo.evaluation.embed import embed
    from idml_zoo.files import check_writable
    from idml_zoo.models.files import CONFIG, WEIGHTS
    from idml_zoo.models.saving import check_can_be_loaded
    from idml_zoo.registry import heads
    from idml_zoo.retrieval.fit import fit_reliability

    for path in (args.out, *((args.into / n for n in (CONFIG, WEIGHTS)) if args.into else ())):
        check_writable(path)
    benchmark = chosen_images(args)
    model = open_model(args)
    if model.origin is None and args.model in heads:
        model.transform = model.transform.replace(**benchmark.transform)
    if args.into:
        check_can_be_loaded(model)
    metric, split = chosen_metric(args, model), load_images(benchmark, args).test
    reliability = fit_reliability(
        split.task(embed(model, split, **chosen_compute(args))),
        metric=metric,
        coefficients=args.coefficients,
        unit=args.unit,
        note=args.note or f"{benchmark.title} (test), by {metric.similarity}"[:200],
    )
    reliability.save(args.out)
    if args.into:
        _save(model, reliability, args.into)
    out = Console(soft_wrap=True, markup=False, highlight=False)
    _print(out, reliability)
    out.print(f"file     {args.out}")
    if args.into:
        out.print(f'model    create_model("local-dir:{args.into}", pretrained=True)')
    return 0


def _save(model: IDMLModel, reliability: Reliability, folder: Path) -> None:
    """Writes the model with its reliability; loaded weights in the precision of their file, so that it is the same."""
    model.reliability = reliability
    if model.origin is None:
        model.save_pretrained(folder, variant="none", pretrained=model.backbone_source)
    else:
        model.save_pretrained(folder, _half(model))


def _half(model: IDMLModel) -> torch.dtype | None:
    """Returns the half precision in which the weights lose nothing, as they came from it; None where there is none."""
    import torch

    values = [v for v in model.state_dict().values() if v.is_floating_point()]
    for dtype in (torch.float16, torch.bfloat16):
        if all(torch.equal(v.to(dtype).to(v.dtype), v) for v in values):
            return dtype
    return None


def _print(out: Console, reliability: Reliability) -> None:
    risk = reliability.labelled.risk
    assert risk is not None  # fit_reliability always calibrates
    out.print(f"Calibrated on {reliability.calibrated_on}: {risk.queries:,} queries of {risk.classes:,} classes.")
    out.print(f"Coefficients: {reliability.fitted_on}.\n")
    table, limits = _table(reliability)
    out.print(table)
    out.print()
    if limits:
        out.print(limits[0].assumption)
    else:
        out.print("None of these risks can be promised. More images of more classes, or a better model, allow less.")
    out.print(
        "warning: the classes must not be those that the model was trained on, or confidence is too high and no limit "
        "holds",
        style="yellow",
    )


def _table(reliability: Reliability) -> tuple[Table, list[Limit]]:
    """Returns the table of the risks in both forms, and the limits that are reachable."""
    from rich.table import Table

    table, limits = Table(box=None, pad_edge=False), []
    for title in ("gallery", "at most wrong", "answered", "wrong among them"):
        table.add_column(title, justify="left" if title == "gallery" else "right", no_wrap=True)
    for labelled, words in _FORMS.items():
        for max_risk in RISKS:
            cells = words, f"{100 * max_risk:g} %"
            try:
                limit = reliability.limit(max_risk, _CONFIDENCE, labelled)
            except RiskNotReachable as error:
                lowest = "none is" if error.reachable is None else f"lowest: {100 * error.reachable:.0f} %"
                table.add_row(*cells, f"not reachable; {lowest}", "")
            else:
                limits.append(limit)
                table.add_row(*cells, f"{100 * limit.coverage:.0f} %", f"{100 * limit.risk:.1f} %")
    return table, limits
