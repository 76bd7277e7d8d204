"""The commands ``idml-zoo card``, ``push`` and ``export``, which describe, publish and convert a trained model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from idml_zoo.cli.arguments import add_model, open_model


def add_parsers(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the commands to the command line."""
    card = commands.add_parser("card", help="make a model's card from its result files, or check that they agree")
    card.add_argument("action", choices=("build", "check"))
    _add_folder(card)
    card.add_argument("--repo", metavar="USER/NAME", help="where it will be published (for build)")
    card.set_defaults(run=_card)

    push = commands.add_parser("push", help="publish a trained model on the Hugging Face Hub")
    _add_folder(push)
    push.add_argument("--repo", required=True, metavar="USER/NAME")
    push.add_argument("--dry-run", action="store_true", help="check everything and show what would be uploaded")
    push.add_argument("--private", action="store_true", default=None, help="for a repository that is made now")
    push.add_argument("--revision", metavar="BRANCH", help="default: the main branch")
    push.add_argument("--token", help="with write access (default: HF_TOKEN, or that of the login)")
    push.add_argument("--message", default="Upload with idml_zoo")
    push.add_argument("--allow-unmeasured", action="store_true", help="publish without a result of these weights")
    push.set_defaults(run=_push)

    export = commands.add_parser("export", help="write a model for another runtime: ONNX, or torch.export")
    add_model(export)
    export.add_argument("out", type=Path, help="FILE.onnx or FILE.pt2")
    export.set_defaults(run=_export)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="run folder, or the model's folder in it")
    parser.add_argument(
        "--leaderboard",
        type=Path,
        default=Path("runs/leaderboard"),
        help="whose results of these weights go with it (default: runs/leaderboard)",
    )


def _model_folder(folder: Path) -> Path:
    """Returns the folder of a run's measured model; ``folder`` itself where it is no run folder."""
    import yaml

    from idml_zoo.models.files import CONFIG

    recipe = folder / "config.yaml"
    best = recipe.is_file() and (yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}).get("select") == "best"
    inside = folder / ("best" if best else "model")
    return inside if (inside / CONFIG).is_file() else folder


def _card(args: argparse.Namespace) -> int:
    from idml_zoo.models.zoo import HUB, LOCAL
    from idml_zoo.reports.card import build_card, check_card

    folder = _model_folder(args.folder)
    if args.action == "build":
        name = HUB + args.repo if args.repo else LOCAL + folder.as_posix()
        for path in build_card(folder, args.leaderboard / "results", name):
            print(path)
        return 0
    differences = check_card(folder)
    for line in differences:
        print(line, file=sys.stderr)
    if differences:
        print(f"{folder}: the card and its results disagree; `idml-zoo card build` makes it anew", file=sys.stderr)
        return 1
    print(f"{folder}: the card says what its results say")
    return 0


def _local_paths(text: str) -> list[str]:
    """Returns the absolute paths in a command or a recipe, which would be published as they were typed."""
    import re

    return re.findall(r"(?:^|(?<=[\s=:'\"]))(?:/|[A-Za-z]:\\)[^\s'\"]+", text, re.MULTILINE)


def _push(args: argparse.Namespace) -> int:
    from rich.console import Console

    from idml_zoo.files import sha256_of
    from idml_zoo.models.files import CARD, CONFIG, WEIGHTS, WeightsError
    from idml_zoo.models.hub import push, split_name
    from idml_zoo.models.zoo import HUB, LOCAL, create_model
    from idml_zoo.reports.card import build_card, check_card, results_of_weights

    repo, _ = split_name(args.repo)
    folder = _model_folder(args.folder)
    model = create_model(f"{LOCAL}{folder}", pretrained=True)  # strict, with its probe
    results = results_of_weights(folder, args.leaderboard / "results")
    if not results and not args.allow_unmeasured:
        raise WeightsError(
            f"no result under {args.leaderboard / 'results'} is of the weights in {folder}; give their --leaderboard, "
            f"measure them (`idml-zoo eval {LOCAL}{folder} BENCHMARK`), or --allow-unmeasured"
        )
    build_card(folder, args.leaderboard / "results", HUB + repo)
    if differences := check_card(folder):
        raise WeightsError(f"{folder} holds files that are not of these weights: {differences[0]}; remove them")
    files = {name: folder / name for name in (CONFIG, WEIGHTS, CARD)}
    files |= {r.path("results").as_posix(): r.path(folder / "results") for r in results}
    out = Console(soft_wrap=True, highlight=False)
    out.print(f"{'would go' if args.dry_run else 'goes'} to {repo}:\n{'bytes':>12}  {'sha256':16}  file")
    for name, path in files.items():
        out.print(f"{path.stat().st_size:>12,}  {sha256_of(path)[:16]}  {name}")
    paths = {w for r in results for w in _local_paths(f"{r.provenance.command}\n{r.provenance.recipe or ''}")}
    if paths:
        out.print(f"note: the results name paths of your machine: {', '.join(sorted(paths)[:5])}")
    if args.dry_run:
        out.print("Nothing was uploaded (--dry-run). Look at the card: " + str(files[CARD]))
        return 0
    commit = push(files, repo, args.message, args.token, args.private, args.revision)
    origin = model.origin
    assert origin is not None
    out.print(f"pushed   {repo} at {commit}, downloaded again and compared")
    out.print(f'load     idml_zoo.create_model("{HUB}{repo}", pretrained=True, revision="{commit}")')
    out.print(
        f'record   Weights("{origin.sha256}", "{repo}", "{commit}")  # for PUBLISHED in idml_zoo/models/records.py'
    )
    return 0


def _export(args: argparse.Namespace) -> int:
    from idml_zoo.models.export import export

    model = open_model(args)
    path = export(model, args.out)
    print(f"{path}: {path.stat().st_size:,} bytes; its embeddings are the model's")
    return 0
