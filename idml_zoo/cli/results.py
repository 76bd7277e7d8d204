"""The command ``idml-zoo results``: shows a row, compares two rows, validates and upgrades a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.cli.arguments import positive

if TYPE_CHECKING:
    from rich.table import Table

    from idml_zoo.reports.leaderboard import Row

_PER_QUERY = {"recall@1": "top1", "r_precision": "r_precision", "map@r": "map@r"}


def add_parsers(commands: Any) -> None:
    """Adds ``results`` and its actions to the command line."""
    parser = commands.add_parser("results", help="show, compare and validate result files")
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="a row's numbers, protocol and provenance")
    show.add_argument("row", type=Path, help="a row's folder (all its seeds) or one seed's JSON")
    show.set_defaults(run=_show)
    diff = actions.add_parser("diff", help="two rows side by side, with the interval of their difference")
    diff.add_argument("first", type=Path, help="a row's folder or one seed's JSON")
    diff.add_argument("second", type=Path, help="the same")
    diff.add_argument("--draws", type=positive, default=2000, help="of the paired bootstrap (default 2000)")
    diff.set_defaults(run=_diff)
    validate = actions.add_parser("validate", help="read every result file, and the values of every query beside it")
    _add_folder(validate)
    validate.set_defaults(run=_validate)
    upgrade = actions.add_parser("upgrade", help="results of protocol version 2 to 3, from the values of their queries")
    _add_folder(upgrade)
    upgrade.add_argument("--root", default="data", help="folder that holds the data (default: data)")
    upgrade.set_defaults(run=_upgrade)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("leaderboard/results"),
        help="of results, or a leaderboard (default: leaderboard/results)",
    )


def _results_folder(folder: Path) -> Path:
    """Returns the results folder of a leaderboard; ``folder`` itself where it is no leaderboard."""
    return folder / "results" if (folder / "results").is_dir() else folder


def _row(path: Path) -> tuple[Row, Path]:
    """Returns the row that a path names, and the results folder that holds it.

    Raises:
        ResultError: no result file there, or a damaged one.
    """
    from idml_zoo.reports.leaderboard import group
    from idml_zoo.results import ResultError, read_result

    files = [path] if path.is_file() else sorted(path.glob("seed*.json"))
    if not files:
        raise ResultError(f"no result file {path}, and no folder of them; a row is <results>/<benchmark>/<row>")
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

    (first, first_root), (second, second_root) = _row(args.first), _row(args.second)
    names = [f"{r.first.benchmark} / {r.first.row}" for r in (first, second)]
    if first.first.provenance.data_sha256 != second.first.provenance.data_sha256:
        raise ValueError(f"{names[0]} and {names[1]} were measured on different images; their difference means nothing")
    out = Console(soft_wrap=True, highlight=False)
    title = f"A = {names[0]}\nB = {names[1]}"
    out.print(_difference_table(title, (first, second), (first_root, second_root), args.draws))
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


def _difference_table(heading: str, rows: Sequence[Row], roots: Sequence[Path], draws: int) -> Table:
    """Returns every metric of two rows, their difference, and its interval where the values of every query exist."""
    from rich.table import Table

    from idml_zoo.reports.bootstrap import difference, load_queries
    from idml_zoo.reports.leaderboard import in_order, percent, title

    table = Table(title=heading, title_justify="left")
    for column in ("percent", "A", "B", "A − B", "95 % interval"):
        table.add_column(column, justify="left" if column == "percent" else "right")
    queries = [[load_queries(root, r) for r in row.results] for row, root in zip(rows, roots, strict=True)]
    for name in in_order({*rows[0].first.metrics, *rows[1].first.metrics}):
        a, b = (row.values(name) for row in rows)
        mean = "" if not a or not b else f"{100 * (sum(a) / len(a) - sum(b) / len(b)):+.1f}"
        interval = ""
        if name in _PER_QUERY and all(v is not None for v in (*queries[0], *queries[1])):
            first, second = (_stack(seeds, _PER_QUERY[name]) for seeds in queries)
            d = difference(first, second, draws)
            interval = f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}]{'' if d.distinguishable else ' ='}"
        table.add_row(title(name), percent(a), percent(b), mean, interval)
    return table


def _stack(seeds: Sequence[Any], name: str) -> Any:
    """Returns ``(S, N)`` values of the queries that have a positive, from the values of each seed."""
    import numpy as np

    counted = ~np.isnan(seeds[0]["map@r"])
    return np.stack([v[name][counted].astype(float) for v in seeds])


def _upgrade(args: argparse.Namespace) -> int:
    from idml_zoo.files import write_file
    from idml_zoo.reports.upgrade import upgrade
    from idml_zoo.results import read_results

    folder, upgraded, left = _results_folder(args.folder), 0, 0
    for old in read_results(folder):
        if old.protocol.version > 2:  # what version 4 adds needs every query's neighbours: measure again, with --like
            continue
        try:
            new = upgrade(old, folder, args.root)
        except ValueError as error:  # a result that cannot be upgraded does not stop the others
            print(f"left as it is: {error}", file=sys.stderr)
            left += 1
            continue
        write_file(new.path(folder), new.to_json())
        upgraded += 1
    print(f"{folder}: {upgraded} results upgraded, {left} left as they are")
    return 0


def _validate(args: argparse.Namespace) -> int:
    from idml_zoo.results import ResultError

    folder = _results_folder(args.folder)
    files = sorted(folder.glob("*/*/seed*.json"))
    if not files:
        raise FileNotFoundError(f"no result files under {folder} (expected <benchmark>/<row>/seed<k>.json)")
    damaged = 0
    published = (folder.parent / "model.safetensors").is_file()  # weights are published without the queries' values
    for path in files:
        try:
            _validate_file(path, folder, published)
        except ResultError as error:
            damaged += 1
            print(error, file=sys.stderr)
    stray = {p for p in folder.glob("*/*/*") if not p.name.startswith("seed") or p.suffix not in (".json", ".npz")}
    for path in sorted(stray):
        print(f"{path} is no result file; remove it", file=sys.stderr)
    print(f"{folder}: {len(files) - damaged} of {len(files)} result files are whole")
    return int(bool(damaged or stray))


def _validate_file(path: Path, folder: Path, published: bool) -> None:
    """Reads a result file, and compares its metrics with the values of its queries unless it is ``published``.

    Raises:
        ResultError: the file, or that of the values, is damaged; or they disagree.
    """
    import numpy as np

    from idml_zoo.reports.bootstrap import load_queries
    from idml_zoo.results import ResultError, read_result

    result = read_result(path)
    values = None if published else load_queries(folder, result)
    if values is None:
        return
    counted = ~np.isnan(values["map@r"])
    for name, array in _PER_QUERY.items():
        mean, stored = float(np.mean(values[array][counted])), result.metrics.get(name)
        if stored is None or abs(mean - stored) > 1e-6:
            raise ResultError(f"{path}: {name} is {stored}, but the mean over its queries is {mean:.6f}")
