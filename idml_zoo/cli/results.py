"""The command ``idml-zoo results``: show one row, compare two, validate a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.cli.arguments import positive

if TYPE_CHECKING:
    from idml_zoo.reports.leaderboard import Row

_PER_QUERY = {"recall@1": "top1", "r_precision": "r_precision", "map@r": "map@r"}


def add_parsers(commands: Any) -> None:
    """Adds ``results`` and its actions to the command line."""
    one = commands.add_parser("results", help="show, compare and validate result files")
    actions = one.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="a row's numbers, protocol and provenance")
    show.add_argument("row", type=Path, help="a row's folder (all its seeds) or one seed's JSON")
    show.set_defaults(run=_show)
    diff = actions.add_parser("diff", help="two rows side by side, with the interval of their difference")
    diff.add_argument("first", type=Path, help="a row's folder or one seed's JSON")
    diff.add_argument("second", type=Path)
    diff.add_argument("--draws", type=positive, default=2000, help="of the paired bootstrap (default 2000)")
    diff.set_defaults(run=_diff)
    check = actions.add_parser("validate", help="read every result file, and the values of every query beside it")
    check.add_argument(
        "folder", type=Path, nargs="?", default=Path("leaderboard/results"), help="(default: leaderboard/results)"
    )
    check.set_defaults(run=_validate)
    later = actions.add_parser("upgrade", help="results of protocol version 2 to 3, from the values of their queries")
    later.add_argument(
        "folder", type=Path, nargs="?", default=Path("leaderboard/results"), help="(default: leaderboard/results)"
    )
    later.add_argument("--root", default="data", help="folder that holds the data (default: data)")
    later.set_defaults(run=_upgrade)


def _row(path: Path) -> tuple[Row, Path]:
    """A row and the results folder that it lies in."""
    from idml_zoo.reports.leaderboard import group
    from idml_zoo.results import ResultError, read_result

    files = [path] if path.is_file() else sorted(path.glob("seed*.json"))
    if not files:
        raise ResultError(f"no result file {path} and none in such a folder; a row is <results>/<benchmark>/<row>")
    rows = group([read_result(f.absolute()) for f in files])
    return rows[0], files[0].absolute().parents[2]


def _show(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from idml_zoo.reports.leaderboard import in_order, percent, title

    row, _ = _row(args.row)
    out, first = Console(soft_wrap=True, highlight=False), row.first
    table = Table(title=f"{first.benchmark} / {first.row}, {first.queries:,} queries, percent", title_justify="left")
    table.add_column("metric")
    for r in row.results:
        table.add_column(f"seed {r.seed}", justify="right")
    if len(row.results) > 1:
        table.add_column("mean ± std", justify="right")
    for name in in_order({m for r in row.results for m in r.metrics}):
        cells = [percent(None if r.metrics.get(name) is None else [float(r.metrics[name] or 0)]) for r in row.results]
        table.add_row(title(name), *cells, *([percent(row.values(name))] if len(row.results) > 1 else []))
    out.print(table)
    for part in ("model", "protocol"):
        out.print(f"{part}: " + ", ".join(f"{k} {v}" for k, v in asdict(getattr(first, part)).items()), markup=False)
    if first.cost:
        out.print("cost: " + ", ".join(f"{k} {v:,.3g}" for k, v in first.cost.items()), markup=False)
    for kind, curve in first.corruptions.items():
        points = ", ".join(f"{s}: {100 * p['recall@1']:.1f} (level {p['level']:.3g})" for s, p in curve.items())
        out.print(f"R@1 under {kind}, by severity: {points}", markup=False)
    for r in row.results:
        p = r.provenance
        dirty = ", with uncommitted changes" if p.dirty else ""
        out.print(f"seed {r.seed}: {p.command}", markup=False)
        out.print(f"  {p.created}, commit {(p.commit or 'unknown')[:12]}{dirty}, {p.device}, data {p.data_sha256[:12]}")
    return 0


def _diff(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from idml_zoo.reports.bootstrap import difference, load_queries
    from idml_zoo.reports.leaderboard import in_order, percent, title

    (first, root), (second, other_root) = _row(args.first), _row(args.second)
    names = [f"{r.first.benchmark} / {r.first.row}" for r in (first, second)]
    if first.first.provenance.data_sha256 != second.first.provenance.data_sha256:
        raise ValueError(f"{names[0]} and {names[1]} were measured on different images; their difference means nothing")
    out = Console(soft_wrap=True, highlight=False)
    table = Table(title=f"A = {names[0]}\nB = {names[1]}", title_justify="left")
    for column in ("percent", "A", "B", "A − B", "95 % interval"):
        table.add_column(column, justify="left" if column == "percent" else "right")
    values = [[load_queries(at, r) for r in row.results] for row, at in ((first, root), (second, other_root))]
    for name in in_order({*first.first.metrics, *second.first.metrics}):
        a, b = first.values(name), second.values(name)
        off = "" if not a or not b else f"{100 * (sum(a) / len(a) - sum(b) / len(b)):+.1f}"
        interval = ""
        if name in _PER_QUERY and all(v is not None for v in (*values[0], *values[1])):
            ours, theirs = (_stack(side, _PER_QUERY[name]) for side in values)
            found = difference(ours, theirs, args.draws)
            interval = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]{'' if found.distinguishable else ' ='}"
        table.add_row(title(name), percent(a), percent(b), off, interval)
    out.print(table)
    out.print("= : the two cannot be told apart (paired bootstrap over queries, Welch's t over seeds)")
    for part in ("protocol", "model"):
        facts = [asdict(getattr(r.first, part)) for r in (first, second)]
        for key in facts[0]:
            if facts[0][key] != facts[1][key]:
                out.print(f"{part}.{key}: A {facts[0][key]}, B {facts[1][key]}", markup=False)
    recipes = [(r.first.provenance.recipe or "").splitlines() for r in (first, second)]
    for line in sorted(set(recipes[0]) ^ set(recipes[1])):
        out.print(f"recipe, {'A' if line in recipes[0] else 'B'} only: {line}", markup=False)
    return 0


def _stack(side: Sequence[Any], name: str) -> Any:
    """``(S, N)`` values of the queries that have a positive."""
    import numpy as np

    counted = ~np.isnan(side[0]["map@r"])
    return np.stack([v[name][counted].astype(float) for v in side])


def _upgrade(args: argparse.Namespace) -> int:
    from idml_zoo.files import write_file
    from idml_zoo.reports.upgrade import upgrade
    from idml_zoo.results import PROTOCOL, read_results

    if (args.folder / "results").is_dir():  # a leaderboard's root
        args.folder = args.folder / "results"
    done = left = 0
    for old in read_results(args.folder):
        if old.protocol.version == PROTOCOL:
            continue
        try:
            new = upgrade(old, args.folder, args.root)
        except ValueError as error:  # one that cannot be done costs itself only
            print(f"left as it is: {error}", file=sys.stderr)
            left += 1
            continue
        write_file(new.path(args.folder), new.to_json())
        done += 1
    print(f"{args.folder}: {done} results upgraded, {left} left as they are")
    return 0


def _validate(args: argparse.Namespace) -> int:
    import numpy as np

    from idml_zoo.reports.bootstrap import load_queries
    from idml_zoo.results import ResultError, read_result

    if (args.folder / "results").is_dir():  # a leaderboard's root
        args.folder = args.folder / "results"
    files = sorted(args.folder.glob("*/*/seed*.json"))
    if not files:
        raise FileNotFoundError(f"no result files under {args.folder} (expected <benchmark>/<row>/seed<k>.json)")
    wrong = 0
    published = (args.folder.parent / "model.safetensors").is_file()  # with weights go the results alone
    for path in files:
        try:
            result = read_result(path)
            values = None if published else load_queries(args.folder, result)
            if values is not None:
                counted = ~np.isnan(values["map@r"])
                for name, array in _PER_QUERY.items():
                    mean, said = float(np.mean(values[array][counted])), result.metrics.get(name)
                    if said is None or abs(mean - said) > 1e-6:
                        raise ResultError(f"{path}: {name} is {said}, but the mean over its queries is {mean:.6f}")
        except ResultError as error:
            wrong += 1
            print(error, file=sys.stderr)
    stray = {p for p in args.folder.glob("*/*/*") if not p.name.startswith("seed") or p.suffix not in (".json", ".npz")}
    for path in sorted(stray):
        print(f"{path} is no result file; remove it", file=sys.stderr)
    print(f"{args.folder}: {len(files) - wrong} of {len(files)} result files are whole")
    return int(bool(wrong or stray))
