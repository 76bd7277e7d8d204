"""The command that searches in one's own photographs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from idml_zoo.cli.model import add_model, add_tau, chosen_tau, open_model, positive


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds it to the command line."""
    one = commands.add_parser(
        "search",
        help="search in a folder of your own photographs",
        description="Finds the photographs of a folder that are nearest to yours. Without a query every photograph "
        "asks for its nearest others: near duplicates and the most uncertain ones first.",
    )
    add_model(one)
    one.add_argument("photos", type=Path, help="folder, searched in all its depth; no labels needed")
    one.add_argument("queries", type=Path, nargs="*", help="photographs, or folders of them")
    one.add_argument("--k", type=positive, default=5, help="photographs for each query (default 5)")
    one.add_argument("--similarity", choices=("cosine", "introspective"), default="cosine")
    add_tau(one)
    one.add_argument("--max-uncertainty", type=float, metavar="LEVEL", help="decline queries with a higher level ‖u‖")
    one.add_argument("--index", type=Path, metavar="FILE", help="keep the embeddings here, and use them again")
    one.add_argument("--html", type=Path, metavar="FILE", help="also write a page with the pictures")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.add_argument("--count", type=positive, default=12, help="rows of each list, without a query (default 12)")
    one.add_argument("--batch-size", type=positive, default=64)
    one.add_argument("--device", help="default: cuda where there is one")
    one.set_defaults(run=_search)


def _search(args: argparse.Namespace) -> int:
    from rich.console import Console

    from idml_zoo.files import check_writable, write_file
    from idml_zoo.reports.photos import PhotoIndex, ask, embed_photos, find_photos, index_photos, photo_page, sections

    for place in filter(None, (args.index, args.html)):
        check_writable(place)
    files = [p for place in args.queries for p in find_photos(place)]  # a wrong path costs nothing
    model = open_model(args)
    old = PhotoIndex.load(args.index) if args.index and args.index.exists() else None
    how = {"batch_size": args.batch_size, "device": args.device, "progress": sys.stderr.isatty()}
    index, broken = index_photos(model, args.photos, old, **how)
    if args.index:
        index.save(args.index)
    names, queries = list(index.names), None
    if files:
        kept, queries, wrong = embed_photos(model, files, **how)
        broken += wrong
        names = [str(files[i]) for i in kept]
    for line in broken:
        print(f"left out: {line}", file=sys.stderr)
    if files and queries is None:
        raise ValueError("none of the queries can be read")
    answers = ask(index, names, queries, args.k, args.similarity, args.max_uncertainty, chosen_tau(args, model))
    parts = {"Nearest": answers} if files else sections(answers, args.count)
    if args.html:
        folder = args.photos if args.photos.is_dir() else args.photos.parent
        title = f"{args.photos}: {len(index):,} photographs, {args.model}"
        write_file(args.html, photo_page(title, parts, folder, Path() if files else folder, args.similarity))
    if args.json:
        rows = {
            h: [
                {**vars(a), "found": [dict(zip(("name", "score", "level"), f, strict=True)) for f in a.found]}
                for a in part
            ]
            for h, part in parts.items()
        }
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return 0
    out = Console(soft_wrap=True, markup=False, highlight=False)
    for heading, part in parts.items():
        out.print(f"{heading}, of {len(index):,} photographs", style="bold")
        for a in part:
            out.print(f"{a.name}  level {a.level:.3g}" + ("  declined: too uncertain" if a.declined else ""))
            for name, score, level in () if a.declined else a.found:
                out.print(f"  {score:6.3f}  {name}  level {level:.3g}")
    if args.html:
        out.print(f"page     {args.html}")
    return 0
