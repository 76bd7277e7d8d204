"""The command that searches in one's own photographs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.cli.arguments import add_compute, add_metric, add_model, chosen_metric, open_model, positive
from idml_zoo.cli.confidence import add_confidence, chosen_confidence, stored_reliability

if TYPE_CHECKING:
    from idml_zoo.models.model import IDMLModel
    from idml_zoo.reliability.risk import Limit
    from idml_zoo.reports.photos import Answer, PhotoIndex
    from idml_zoo.types import Embedding


def add_parsers(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds it to the command line."""
    parser = commands.add_parser(
        "search",
        help="search in a folder of your own photographs",
        description="Finds the photographs of a folder that are nearest to yours, and says how sure each answer is. "
        "Without a query every photograph asks for its nearest others: near duplicates, the least sure and the most "
        "uncertain ones first. Any number of photographs will do; with fewer than 50 the confidence means less, and is "
        "often far too high.",
    )
    add_model(parser)
    parser.add_argument("photos", type=Path, help="folder, searched in all its depth; no labels needed")
    parser.add_argument("queries", type=Path, nargs="*", help="photographs, or folders of them")
    parser.add_argument("--k", type=positive, default=5, help="photographs for each query (default 5)")
    add_metric(parser)
    parser.add_argument(
        "--labels",
        choices=("folders",),
        help="the class of a photograph is the name of the folder that it lies in directly: for a better confidence "
        "(default: the confidence that needs no labels)",
    )
    add_confidence(parser)
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
    from idml_zoo.reports.confidence import promise
    from idml_zoo.reports.photos import NOT_SURE, ask, few, find_photos, folder_labels, photo_page, sections

    for path in filter(None, (args.index, args.html)):
        check_writable(path)
    files = [p for path in args.queries for p in find_photos(path)]  # a wrong path costs nothing
    stored = stored_reliability(args)
    if args.labels:
        folder_labels(find_photos(args.photos.resolve()))
    model = open_model(args)
    reliability, limit = chosen_confidence(args, stored, model, args.labels is not None)
    index, names, queries = _embedded(args, model, files)
    root = args.photos if args.photos.is_dir() else args.photos.parent
    answers = ask(
        index,
        names,
        queries,
        args.k,
        chosen_metric(args, model),
        args.max_uncertainty,
        folder_labels([root.resolve() / name for name in index.names]) if args.labels else None,
        reliability,
        args.max_risk,
    )
    parts = {"Nearest": answers} if files else sections(answers, args.count)
    unsure = 0 if limit is None else sum(a.reason == NOT_SURE for a in answers)
    notes = list(filter(None, [few(index), "" if limit is None else promise(limit, unsure, len(answers))]))
    if args.html:
        title = f"{args.photos}: {len(index):,} photographs, {args.model}"
        page = photo_page(title, parts, root, Path() if files else root, args.similarity, notes)
        write_file(args.html, page)
    if args.json:
        print(json.dumps(_plain(parts, limit), indent=1, ensure_ascii=False))
        return 0
    _print_answers(parts, len(index), notes)
    if args.html:
        print(f"page     {args.html}")
    return 0


def _embedded(
    args: argparse.Namespace, model: IDMLModel, files: list[Path]
) -> tuple[PhotoIndex, list[str], Embedding | None]:
    """Returns the index of the folder, and names and embedding of the queries: the folder's own, None without queries.

    Raises:
        ValueError: none of the queries can be read.
    """
    from idml_zoo.reports.photos import PhotoIndex, embed_photos, index_photos

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
    return index, names, queries


def _plain(parts: dict[str, list[Answer]], limit: Limit | None) -> dict[str, Any]:
    """Returns the answers by heading, and the limit with its assumption where there is one, as JSON values."""
    plain: dict[str, Any] = {}
    for heading, answers in parts.items():
        plain[heading] = [
            {**vars(a), "neighbours": [dict(zip(("name", "score", "level"), n, strict=True)) for n in a.neighbours]}
            for a in answers
        ]
    if limit is not None:
        plain["limit"] = {**asdict(limit), "assumption": limit.assumption}
    return plain


def _print_answers(parts: dict[str, list[Answer]], count: int, notes: list[str]) -> None:
    from rich.console import Console

    from idml_zoo.reports.photos import in_words

    out = Console(soft_wrap=True, markup=False, highlight=False)
    for heading, answers in parts.items():
        out.print(f"{heading}, of {count:,} photographs", style="bold")
        for answer in answers:
            declined = [f"declined: {answer.reason}"] if answer.declined else []
            out.print("  ".join([answer.name, *in_words(answer), *declined]))
            for name, score, level in () if answer.declined else answer.neighbours:
                out.print(f"  {score:6.3f}  {name}  level {level:.3g}")
    for note in notes:
        out.print(note)
