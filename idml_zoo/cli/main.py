"""The command ``idml-zoo``: parse, call, print. torch is imported only by what computes."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idml_zoo.cli import calibrate, data, evaluate, hub, results, search, train
from idml_zoo.version import __version__


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="idml-zoo", description="Introspective deep metric learning over timm: zoo and benchmark."
    )
    parser.add_argument("--version", action="version", version=f"idml_zoo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_list(commands)
    for module in (train, evaluate, calibrate, search, data, results, hub):
        module.add_parsers(commands)
    _add_leaderboard(commands)
    return parser


def _add_list(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser("list", help="names of models, benchmarks or training variants")
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, 'idml_*_cub'")
    parser.add_argument("--exclude", nargs="*", default=[], metavar="PATTERN", help="patterns to leave out")
    parser.add_argument("--pretrained", action="store_true", help="only models with published weights")
    parser.add_argument(
        "--what", choices=("models", "benchmarks", "variants"), default="models", help="(default: models)"
    )
    parser.set_defaults(run=_list)


def _add_leaderboard(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser("leaderboard", help="make the tables from result files, or check that they agree")
    parser.add_argument("action", choices=("build", "check"))
    parser.add_argument(
        "--root", default="leaderboard", help="folder with results/ and reported.csv (default: leaderboard)"
    )
    parser.set_defaults(run=_leaderboard)


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
