"""The command ``idml-zoo``: parse, call, print. torch is imported only by what computes."""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.cli import data as cli_data
from idml_zoo.cli import hub as cli_hub
from idml_zoo.cli import results as cli_results
from idml_zoo.cli import search as cli_search
from idml_zoo.cli import train as cli_train
from idml_zoo.cli.images import add_images, chosen_images, load_images
from idml_zoo.cli.model import add_model, add_tau, chosen_tau, open_model, positive
from idml_zoo.version import __version__

if TYPE_CHECKING:
    from idml_zoo.models.model import IDMLModel
    from idml_zoo.results import Result


def _list(args: argparse.Namespace) -> int:
    from rich.console import Console

    from idml_zoo.models.zoo import list_models, models
    from idml_zoo.registry import benchmarks
    from idml_zoo.variants import variants

    out = Console(highlight=False, soft_wrap=True)
    if args.what == "benchmarks":
        for name in benchmarks.names(args.pattern, args.exclude):
            out.print(f"{name:<16}{benchmarks[name].title}")
    elif args.what == "variants":
        for name in variants.names(args.pattern, args.exclude):
            out.print(f"{name:<32}{variants[name].why}")
    else:
        names = list_models(args.pattern, args.exclude, args.pretrained)
        for name in names:
            out.print(name + ("  (published weights)" if models[name].weights else ""))
        if not names:
            print(f"no model matches {args.pattern!r}; `idml-zoo list` shows all {len(models)}", file=sys.stderr)
            return 1
    return 0


def _add_computing(one: argparse.ArgumentParser) -> None:
    one.add_argument("--batch-size", type=positive, default=64)
    one.add_argument("--workers", type=int, default=0, help="processes that decode images (default: none beside this)")
    one.add_argument("--device", help="default: cuda where there is one")


def _eval(args: argparse.Namespace) -> int:
    from rich.console import Console

    from idml_zoo.evaluation.embed import embed
    from idml_zoo.evaluation.protocol import evaluate, save_result
    from idml_zoo.models.zoo import weights_source
    from idml_zoo.registry import heads
    from idml_zoo.reports.leaderboard import build_leaderboard, summary
    from idml_zoo.results import read_result
    from idml_zoo.similarity import TAU

    benchmark = chosen_images(args)
    model = open_model(args)
    about: dict[str, Any] = {"pretrained": weights_source(args.backbone_weights, model.config["backbone"])}
    own_tau, own_seed = model.tau, 0
    if origin := model.origin:
        about, seed = origin.about(model), origin.spec.meta.get("seed")
        own_seed = seed if isinstance(seed, int) and seed >= 0 else 0
    elif args.model in heads:
        model.transform = model.transform.replace(**benchmark.transform)
    model.transform = model.transform.replace(image_size=args.image_size, crop_fraction=args.crop_fraction)
    if args.like:
        if model.origin is None:
            raise ValueError("--like measures trained weights again: give the model as local-dir:FOLDER")
        old = read_result(args.like)
        args.row, args.seed, args.similarity = old.row, old.seed, [old.protocol.similarity]
        own_tau = old.protocol.tau or TAU
        about = _history(old, about["weights_sha256"], benchmark.name)
    seed = own_seed if args.seed is None else args.seed
    tau = own_tau if args.tau is None else args.tau
    row = args.row or f"{model.config['head']}-{model.config['backbone']}"
    rows = {s: row if s == "cosine" or args.like else f"{row}-{s}" for s in args.similarity}
    for name in rows.values():  # before anything is computed
        _refuse_other(Path(args.leaderboard) / "results" / benchmark.name / name, seed, model, about, args)
    results: list[Result] = []
    split = load_images(benchmark, args).test
    started = time.perf_counter()
    embedding = embed(model, split, model.transform, args.batch_size, args.workers, args.device)
    took = time.perf_counter() - started
    for similarity in args.similarity:
        result = evaluate(
            model,
            benchmark,
            root=args.root,
            row=rows[similarity],
            seed=seed,
            similarity=similarity,
            tau=tau,
            batch_size=args.batch_size,
            workers=args.workers,
            device=args.device,
            split=split,
            embedding=embedding,
            embed_seconds=took,
            corruptions=args.corruptions,
            **about,
        )
        path = save_result(result, Path(args.leaderboard) / "results")
        results.append(result)
    build_leaderboard(args.leaderboard)
    out = Console(soft_wrap=True)
    out.print(summary(results))
    out.print(f"result   {path}\ntable    {Path(args.leaderboard) / 'README.md'}", highlight=False)
    return 0


def _refuse_other(folder: Path, seed: int, model: IDMLModel, about: dict[str, Any], args: argparse.Namespace) -> None:
    """ValueError where the result of another model would be written over, or nothing can be written."""
    from idml_zoo.files import check_writable
    from idml_zoo.results import check_name, read_result

    check_name("--row", folder.name)
    path = folder / f"seed{seed}.json"
    if path.exists() and not args.force:
        old, config, t = read_result(path), model.config, model.transform
        known = [
            ("weights", old.provenance.weights_sha256, about.get("weights_sha256")),
            ("backbone", old.model.backbone, config["backbone"]),
            ("pooling", old.model.pooling, model.pooling),
            ("image size", old.protocol.image_size, t.image_size),
            ("crop", old.protocol.crop_fraction, t.crop_fraction),
        ]
        if old.provenance.weights_sha256 is None:
            known.append(("weights", old.model.pretrained, about["pretrained"]))
        for what, theirs, ours in known if not args.like else known[:1]:
            if theirs != ours:
                raise ValueError(
                    f"{path} is of other {what} ({theirs}, not {ours}); give this row another name with --row, or "
                    "--seed, or replace it with --force"
                )
        if lost := sorted(set(old.corruptions) - set(args.corruptions)):
            raise ValueError(f"{path} has corrupted queries too; add --corruptions {' '.join(lost)}, or --force")
    check_writable(path)


def _history(old: Result, weights: str, benchmark: str) -> dict[str, Any]:
    """What a result says of how its weights came about, for measuring them again."""
    if (old.benchmark, old.protocol.split) != (benchmark, "test") or old.provenance.weights_sha256 != weights:
        raise ValueError(
            f"{old.path('')} is of weights {str(old.provenance.weights_sha256)[:12]} on {old.benchmark} "
            f"({old.protocol.split}), not of {weights[:12]} on {benchmark}; give the model that it was measured with"
        )
    p = old.provenance
    first = {"command": p.command, "commit": str(p.commit) + (" (dirty)" if p.dirty else ""), "created": p.created}
    return {
        "variant": old.model.variant,
        "pretrained": old.model.pretrained,
        "checkpoint": old.protocol.checkpoint,
        "training": old.training,
        "train_seconds": p.seconds.get("train"),
        "recipe": p.recipe,
        "statistics": old.statistics,
        "weights_sha256": weights,
        "trained": p.trained or first,
    }


def _leaderboard(args: argparse.Namespace) -> int:
    from idml_zoo.reports.leaderboard import build_leaderboard, check

    if not (Path(args.root) / "results").is_dir():
        raise FileNotFoundError(f"no folder {Path(args.root) / 'results'}; run from the project's root or give --root")
    if args.action == "build":
        for path in build_leaderboard(args.root):
            print(path)
        return 0
    wrong = check(args.root)
    if wrong:
        print(
            f"{args.root}: {', '.join(wrong)} differ from the result files; run `idml-zoo leaderboard build`",
            file=sys.stderr,
        )
        return 1
    print(f"{args.root}: every table agrees with its result files")
    return 0


def _gallery(args: argparse.Namespace) -> int:
    from idml_zoo.evaluation.embed import embed
    from idml_zoo.files import check_writable
    from idml_zoo.registry import heads
    from idml_zoo.reports.gallery import build_gallery

    if args.map == "umap" and find_spec("umap") is None:
        raise ImportError("--map umap needs umap-learn: pip install umap-learn")
    check_writable(Path(args.out) / "index.html")
    benchmark = chosen_images(args)
    model = open_model(args)
    if args.model in heads:
        model.transform = model.transform.replace(**benchmark.transform)
    split = load_images(benchmark, args).test
    embedding = embed(model, split, model.transform, args.batch_size, args.workers, args.device)
    for path in build_gallery(
        embedding,
        split,
        args.out,
        title=f"{benchmark.title}: {args.model}",
        k=args.k,
        count=args.count,
        similarity=args.similarity,
        tau=chosen_tau(args, model),
        projection=args.map,
        seed=args.seed,
    ):
        print(path)
    return 0


def _analyse(args: argparse.Namespace) -> int:
    from idml_zoo.evaluation.gradients import gradient_curves, plot_gradients, sample_gradients
    from idml_zoo.models.zoo import create_model

    if bool(args.model) != bool(args.benchmark):
        raise ValueError("the measured pace needs both: --model and --benchmark")
    samples = None
    if args.model:
        from idml_zoo.registry import benchmarks

        split = benchmarks[args.benchmark].splits(args.root).test
        model = create_model(args.model, pretrained=True)
        samples = sample_gradients(model, split, tau=chosen_tau(args, model), device=args.device)
    print(plot_gradients(args.out, gradient_curves(), samples))  # the curves are the same for every temperature
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="idml-zoo", description="Introspective deep metric learning over timm: zoo and benchmark."
    )
    parser.add_argument("--version", action="version", version=f"idml_zoo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = commands.add_parser("list", help="names of models, benchmarks or training variants")
    one.add_argument("pattern", nargs="?", default="*", help="shell pattern, 'idml_*_cub'")
    one.add_argument("--exclude", nargs="*", default=[], metavar="PATTERN", help="patterns to leave out")
    one.add_argument("--pretrained", action="store_true", help="only models with published weights")
    one.add_argument("--what", choices=("models", "benchmarks", "variants"), default="models")
    one.set_defaults(run=_list)

    one = commands.add_parser("eval", help="measure a model on a benchmark and add its row to a leaderboard")
    add_model(one)
    add_images(one, "--data-revision")
    one.add_argument("--image-size", type=int, help="pixels")
    one.add_argument("--crop-fraction", type=float, help="resize to image size / this, then crop (default 0.875)")
    one.add_argument(
        "--similarity",
        nargs="+",
        choices=("cosine", "introspective"),
        default=["cosine"],
        help="one row for each; -introspective is added to the name of that one",
    )
    one.add_argument(
        "--corruptions",
        nargs="+",
        default=[],
        metavar="NAME",
        help="also measure corrupted queries in the clean gallery, at severities 1 to 5: blur, noise, jpeg, "
        "brightness, contrast, occlusion, downscale",
    )
    one.add_argument("--row", help="name of the row (default: head and backbone)")
    one.add_argument("--seed", type=int, help="of the row (default: what trained weights say, else 0)")
    add_tau(one)
    one.add_argument("--force", action="store_true", help="replace a result of other weights")
    one.add_argument(
        "--like",
        type=Path,
        metavar="RESULT.json",
        help="measure the weights of this result again, under its row, seed and history (for an old protocol version)",
    )
    _add_computing(one)
    one.add_argument("--leaderboard", default="runs/leaderboard", help="leaderboard folder (default: runs/leaderboard)")
    one.set_defaults(run=_eval)

    one = commands.add_parser(
        "gallery",
        help="pictures of queries and their neighbours: confident mistakes, uncertain images, a map",
    )
    add_model(one)
    add_images(one, "--data-revision")
    one.add_argument("--out", default="gallery", help="folder (default: gallery)")
    one.add_argument("--k", type=positive, default=8, help="neighbours of each query (default 8)")
    one.add_argument("--count", type=positive, default=12, help="queries of each section (default 12)")
    one.add_argument("--similarity", choices=("cosine", "introspective"), default="cosine")
    add_tau(one)
    one.add_argument("--map", choices=("pca", "umap"), default="pca", help="projection of the map (default: pca)")
    one.add_argument("--seed", type=int, default=0, help="of the sample")
    _add_computing(one)
    one.set_defaults(run=_gallery)

    cli_search.add_parser(commands)
    cli_data.add_parser(commands)
    cli_results.add_parser(commands)
    cli_hub.add_parsers(commands)
    cli_train.add_parsers(commands)

    one = commands.add_parser("analyse", help="draw what uncertainty does to the gradients")
    one.add_argument(
        "what",
        choices=("gradients",),
        help="each loss's gradient against the pair's uncertainty; with --model also that of every image, measured",
    )
    one.add_argument("--out", default="gradients.png", help=".png, .svg or .pdf (default: gradients.png)")
    one.add_argument("--model", help="trained model: its name, 'local-dir:FOLDER' or 'hf-hub:user/name'")
    one.add_argument("--benchmark", help="whose test images to measure")
    one.add_argument("--root", default="data", help="folder that holds the data (default: data)")
    add_tau(one)
    one.add_argument("--device", help="default: cuda where there is one")
    one.set_defaults(run=_analyse)

    one = commands.add_parser("leaderboard", help="make the tables from result files, or check that they agree")
    one.add_argument("action", choices=("build", "check"))
    one.add_argument(
        "--root", default="leaderboard", help="folder with results/ and reported.csv (default: leaderboard)"
    )
    one.set_defaults(run=_leaderboard)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 1 with one clear line on stderr, 2 for wrong usage."""
    args = build_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):  # names of files may be no UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(args.run(args))
    except BrokenPipeError:  # the reader of a pipe has seen enough
        return 0
    except (ValueError, OSError, ImportError, AssertionError) as error:  # timm asserts the size of images
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
