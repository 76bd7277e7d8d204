"""The commands that measure a model: ``idml-zoo eval``, ``gallery`` and ``analyse``."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.cli.arguments import (
    add_compute,
    add_images,
    add_metric,
    add_model,
    add_tau,
    chosen_compute,
    chosen_images,
    chosen_metric,
    load_images,
    open_model,
    positive,
)
from idml_zoo.cli.confidence import add_confidence, chosen_confidence, stored_reliability
from idml_zoo.metric import SIMILARITIES, TAU, Metric
from idml_zoo.results import TrainingRecord

if TYPE_CHECKING:
    from idml_zoo.models.model import IDMLModel
    from idml_zoo.results import Result


def add_parsers(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the commands to the command line."""
    _add_eval(commands)
    _add_gallery(commands)
    _add_analyse(commands)


def _add_eval(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser("eval", help="measure a model on a benchmark and add its row to a leaderboard")
    add_model(parser)
    add_images(parser, "--data-revision")
    parser.add_argument("--image-size", type=int, help="pixels")
    parser.add_argument("--crop-fraction", type=float, help="resize to image size / this, then crop (default 0.875)")
    parser.add_argument(
        "--similarity",
        nargs="+",
        choices=SIMILARITIES,
        default=["cosine"],
        help="of the search, a row for each; the introspective one is named ROW-introspective (default: cosine)",
    )
    parser.add_argument(
        "--corruptions",
        nargs="+",
        default=[],
        metavar="NAME",
        help="also measure corrupted queries in the clean gallery, at severities 1 to 5: blur, noise, jpeg, "
        "brightness, contrast, occlusion, downscale",
    )
    parser.add_argument(
        "--open-set",
        action="store_true",
        help="also measure queries whose class is not in the gallery: half of the classes leave it, five times",
    )
    parser.add_argument("--row", help="name of the row (default: head and backbone)")
    parser.add_argument("--seed", type=int, help="of the row (default: what trained weights say, else 0)")
    add_tau(parser)
    parser.add_argument("--force", action="store_true", help="replace a result of other weights")
    parser.add_argument(
        "--like",
        type=Path,
        metavar="RESULT.json",
        help="measure the weights of this result again, under its row, seed and history (for an old protocol version)",
    )
    add_compute(parser)
    parser.add_argument(
        "--leaderboard", default="runs/leaderboard", help="leaderboard folder (default: runs/leaderboard)"
    )
    parser.set_defaults(run=_eval)


def _add_gallery(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "gallery",
        help="pictures of queries and their neighbours: confident mistakes, uncertain images, a map",
    )
    add_model(parser)
    add_images(parser, "--data-revision")
    parser.add_argument("--out", default="gallery", help="folder (default: gallery)")
    parser.add_argument("--k", type=positive, default=8, help="neighbours of each query (default 8)")
    parser.add_argument("--count", type=positive, default=12, help="queries of each section (default 12)")
    add_metric(parser)
    add_confidence(parser)
    parser.add_argument("--map", choices=("pca", "umap"), default="pca", help="projection of the map (default: pca)")
    parser.add_argument("--seed", type=int, default=0, help="draws the sample of images (default 0)")
    add_compute(parser)
    parser.set_defaults(run=_gallery)


def _add_analyse(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser("analyse", help="draw what uncertainty does to the gradients")
    parser.add_argument(
        "what",
        choices=("gradients",),
        help="each loss's gradient against the pair's uncertainty; with --model also that of every image, measured",
    )
    parser.add_argument("--out", default="gradients.png", help=".png, .svg or .pdf (default: gradients.png)")
    parser.add_argument("--model", help="trained model: its name, 'local-dir:FOLDER' or 'hf-hub:user/name'")
    parser.add_argument("--benchmark", help="whose test images to measure")
    parser.add_argument("--root", default="data", help="folder that holds the data (default: data)")
    add_tau(parser)
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.set_defaults(run=_analyse)


@dataclass(frozen=True)
class _Row:
    """The row that ``eval`` adds: its names by similarity, seed, metric without similarity, and how it was trained."""

    names: dict[str, str]
    seed: int
    tau: float
    training: TrainingRecord


def _eval(args: argparse.Namespace) -> int:
    from rich.console import Console

    from idml_zoo.evaluation.embed import MeasuredSplit, embed
    from idml_zoo.evaluation.protocol import evaluate, save_result
    from idml_zoo.registry import heads
    from idml_zoo.reports.leaderboard import build_leaderboard, summary

    benchmark = chosen_images(args)
    model = open_model(args)
    if model.origin is None and args.model in heads:
        model.transform = model.transform.replace(**benchmark.transform)
    model.transform = model.transform.replace(image_size=args.image_size, crop_fraction=args.crop_fraction)
    row = _row(args, model, benchmark.name)
    results_folder = Path(args.leaderboard) / "results"
    for name in row.names.values():  # before anything is computed
        _refuse_other(results_folder / benchmark.name / name, row, model, args)
    split, compute = load_images(benchmark, args).test, chosen_compute(args)
    started = time.perf_counter()
    embedding = embed(model, split, **compute)
    measured = MeasuredSplit(split, embedding=embedding, seconds=time.perf_counter() - started)
    results: list[Result] = []
    for similarity, name in row.names.items():
        result = evaluate(
            model,
            benchmark,
            row=name,
            seed=row.seed,
            metric=Metric(similarity, row.tau),
            split=measured,
            corruptions=args.corruptions,
            training=row.training,
            open_set=args.open_set,
            **compute,
        )
        path = save_result(result, results_folder)
        results.append(result)
    build_leaderboard(args.leaderboard)
    out = Console(soft_wrap=True)
    out.print(summary(results))
    out.print(f"result   {path}\ntable    {Path(args.leaderboard) / 'README.md'}", highlight=False)
    return 0


def _row(args: argparse.Namespace, model: IDMLModel, benchmark: str) -> _Row:
    """Returns the row that the arguments describe; what they leave open comes from the weights, or from ``--like``."""
    from idml_zoo.evaluation.provenance import training_record
    from idml_zoo.models.zoo import weights_source
    from idml_zoo.results import read_result

    tau, seed, name, similarities = model.tau, 0, args.row, args.similarity
    training = TrainingRecord("none", weights_source(args.backbone_weights, model.config["backbone"]))
    if origin := model.origin:
        training, stored = training_record(model), origin.spec.meta.get("seed")
        seed = stored if isinstance(stored, int) and stored >= 0 else 0
    if args.seed is not None:
        seed = args.seed
    if args.like:
        if model.origin is None:
            raise ValueError("--like measures trained weights again: give the model as local-dir:FOLDER")
        old = read_result(args.like)
        name, seed, similarities = old.row, old.seed, [old.protocol.similarity]
        tau = old.protocol.tau or TAU
        training = _history(old, str(training.weights_sha256), benchmark)
    name = name or f"{model.config['head']}-{model.config['backbone']}"
    names = {s: name if s == "cosine" or args.like else f"{name}-{s}" for s in similarities}
    return _Row(names, seed, tau if args.tau is None else args.tau, training)


def _refuse_other(folder: Path, row: _Row, model: IDMLModel, args: argparse.Namespace) -> None:
    """Raises ValueError where the result of another model would be written over, or nothing can be written."""
    from idml_zoo.files import check_writable
    from idml_zoo.results import check_name, read_result

    check_name("--row", folder.name)
    path = folder / f"seed{row.seed}.json"
    if path.exists() and not args.force:
        old, config, t = read_result(path), model.config, model.transform
        pairs = [
            ("weights", old.provenance.weights_sha256, row.training.weights_sha256),
            ("backbone", old.model.backbone, config["backbone"]),
            ("pooling", old.model.pooling, model.pooling),
            ("image size", old.protocol.image_size, t.image_size),
            ("crop", old.protocol.crop_fraction, t.crop_fraction),
        ]
        if old.provenance.weights_sha256 is None:
            pairs.append(("weights", old.model.pretrained, row.training.pretrained))
        for what, stored, given in pairs if not args.like else pairs[:1]:
            if stored != given:
                raise ValueError(
                    f"{path} is of other {what} ({stored}, not {given}); give this row another name with --row, or "
                    "--seed, or replace it with --force"
                )
        if missing := sorted(set(old.corruptions) - set(args.corruptions)):
            raise ValueError(f"{path} has corrupted queries too; add --corruptions {' '.join(missing)}, or --force")
        if old.open_set and not args.open_set:
            raise ValueError(f"{path} has an open set too; add --open-set, or --force")
    check_writable(path)


def _history(old: Result, weights: str, benchmark: str) -> TrainingRecord:
    """Returns what a result says of how its weights came about, for measuring them again."""
    if (old.benchmark, old.protocol.split) != (benchmark, "test") or old.provenance.weights_sha256 != weights:
        raise ValueError(
            f"{old.path('')} is of weights {str(old.provenance.weights_sha256)[:12]} on {old.benchmark} "
            f"({old.protocol.split}), not of {weights[:12]} on {benchmark}; give the model that it was measured with"
        )
    return replace(TrainingRecord.of(old), weights_sha256=weights)


def _gallery(args: argparse.Namespace) -> int:
    from idml_zoo.evaluation.embed import embed
    from idml_zoo.files import check_writable
    from idml_zoo.registry import heads
    from idml_zoo.reports.gallery import build_gallery

    if args.map == "umap" and find_spec("umap") is None:
        raise ImportError("--map umap needs umap-learn: pip install umap-learn")
    check_writable(Path(args.out) / "index.html")
    stored = stored_reliability(args)
    benchmark = chosen_images(args)
    model = open_model(args)
    reliability, _ = chosen_confidence(args, stored, model, labelled=True)
    if args.model in heads:
        model.transform = model.transform.replace(**benchmark.transform)
    split = load_images(benchmark, args).test
    for path in build_gallery(
        embed(model, split, **chosen_compute(args)),
        split,
        args.out,
        title=f"{benchmark.title}: {args.model}",
        k=args.k,
        count=args.count,
        metric=chosen_metric(args, model),
        projection=args.map,
        seed=args.seed,
        reliability=reliability,
        max_risk=args.max_risk,
    ):
        print(path)
    return 0


def _analyse(args: argparse.Namespace) -> int:
    from idml_zoo.evaluation.gradients import gradient_curves, plot_gradients, sample_gradients
    from idml_zoo.models.zoo import create_model
    from idml_zoo.registry import benchmarks

    if bool(args.model) != bool(args.benchmark):
        raise ValueError("the measured pace needs both: --model and --benchmark")
    samples = None
    if args.model:
        split = benchmarks[args.benchmark].splits(args.root).test
        model = create_model(args.model, pretrained=True)
        tau = model.tau if args.tau is None else args.tau
        samples = sample_gradients(model, split, tau=tau, device=args.device)
    print(plot_gradients(args.out, gradient_curves(), samples))  # the curves are the same for every temperature
    return 0
