"""The command that searches in one's own photographs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.cli.arguments import add_compute, add_metric, add_model, chosen_metric, open_model, positive

if TYPE_CHECKING:
    from idml_zoo.reports.photos import Answer


def add_parsers(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds it to the command line."""
    parser = commands.add_parser(
        "search",
        help="search in a folder of your own photographs",
        description="Finds the photographs of a folder that are nearest to yours. Without a query every photograph "
        "asks for its nearest others: near duplicates and the most uncertain ones first.",
    )
    add_model(parser)
    parser.add_argument("photos", type=Path, help="folder, searched in all its depth; no labels needed")
    parser.add_argument("queries", type=Path, nargs="*", help="photographs, or folders of them")
    parser.add_argument("--k", type=positive, default=5, help="photographs for each query (default 5)")
    add_metric(parser)
    parser.add_argument(
        "--max-uncertainty", type=float, metavar="LEVEL", help="decline queries with a higher level ‖u‖"
    )
    parser.add_argument("--index", type=Path, metavar="FILE", help="keep the embeddings here, and use them again")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with the pictures")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--count", type=positive, default=12, help="rows of each list, without a query (default 12)")
    add_compute(parser, workers=False)
    parser.set_defaults(run=_search)


def _search(args: argparse.Namespace) -> int:
    from idml_zoo.files import check_writable, write_file
    from idml_zoo.reports.photos import PhotoIndex, ask, embed_photos, find_photos, index_photos, photo_page, sections

    for path in filter(None, (args.index, args.html)):
        check_writable(path)
    files = [p for path in args.queries for p in find_photos(path)]  # a wrong path costs nothing
    model = open_model(args)
    old = PhotoIndex.load(args.index) if args.index and args.index.exists() else None
    how = {"batch_size": args.batch_size, "device": args.device, "progress": sys.stderr.isatty()}
    index, broken = index_photos(model, args.photos, old, **how)
    if args.index:
        index.save(args.index)
    names, queries = list(index.names), None
    if files:
        kept, queries, broken_queries = embed_photos(model, files, **how)
        broken += broken_queries
        names = [str(files[i]) for i in kept]
    for line in broken:
        print(f"left out: {line}", file=sys.stderr)
    if files and queries is None:
        raise ValueError("none of the queries can be read")
    answers = ask(index, names, queries, args.k, chosen_metric(args, model), args.max_uncertainty)
    parts = {"Nearest": answers} if files else sections(answers, args.count)
    if args.html:
        folder = args.photos if args.photos.is_dir() else args.photos.parent
        title = f"{args.photos}: {len(index):,} photographs, {args.model}"
        write_file(args.html, photo_page(title, parts, folder, Path() if files else folder, args.similarity))
    if args.json:
        print(
            json.dumps(
                {heading: list(map(_plain, part)) for heading, part in parts.items()}, indent=1, ensure_ascii=False
            )
        )
        return 0
    _print_answers(parts, len(index))
    if args.html:
        print(f"page     {args.html}")
    return 0


def _plain(answer: Answer) -> dict[str, Any]:
    """Returns an answer as JSON values."""
    neighbours = [dict(zip(("name", "score", "level"), n, strict=True)) for n in answer.neighbours]
    return {**vars(answer), "neighbours": neighbours}


def _print_answers(parts: dict[str, list[Answer]], count: int) -> None:
    from rich.console import Console

    out = Console(soft_wrap=True, markup=False, highlight=False)
    for heading, answers in parts.items():
        out.print(f"{heading}, of {count:,} photographs", style="bold")
        for answer in answers:
            declined = "  declined: too uncertain" if answer.declined else ""
            out.print(f"{answer.name}  level {answer.level:.3g}{declined}")
            for name, score, level in () if answer.declined else answer.neighbours:
                out.print(f"  {score:6.3f}  {name}  level {level:.3g}")
