"""Result files and reported numbers to tables. A function of files: the same files give the same bytes.

A leaderboard folder holds ``results/`` (written only by evaluation), optionally ``reported.csv``, and what is
generated from them: ``README.md``, ``index.html`` and one CSV for each benchmark. Nothing of it needs torch; rich to
print.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from idml_zoo.leaderboard.page import html_page
from idml_zoo.leaderboard.rows import Row, group, in_order, percent, sections, title
from idml_zoo.leaderboard.tables import columns, csv_table, markdown_page
from idml_zoo.results import Result, write_text

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Row", "build_leaderboard", "check", "group", "in_order", "percent", "render", "summary", "title"]


def render(root: str | Path) -> dict[str, str]:
    """File name to text, for everything that is generated; nothing is written.

    Raises:
        ResultError: a bad result or reported file; it names it.
    """
    found = sections(root)
    files = {"README.md": markdown_page(found), "index.html": html_page(found, Path(root))}
    for section in found:
        rows = [row for part in section.measured.values() for row in part]
        files[f"{section.benchmark}.csv"] = csv_table(rows, section.reported)
    return files


def build_leaderboard(root: str | Path = "leaderboard") -> list[Path]:
    """Writes the generated files of a leaderboard folder and removes tables of benchmarks that are gone."""
    root, files = Path(root), render(root)
    for stale in _tables(root) - files.keys():
        (root / stale).unlink()
    for name, text in files.items():
        write_text(root / name, text)
    return [root / name for name in files]


def _tables(root: Path) -> set[str]:
    return {p.name for p in root.glob("*.csv")} - {"reported.csv"}


def check(root: str | Path = "leaderboard") -> list[str]:
    """Names of generated files that are missing, stale or differ from their sources by a byte; empty if all is well."""
    root, files = Path(root), render(root)
    wrong = {n for n, text in files.items() if not (root / n).is_file() or (root / n).read_bytes() != text.encode()}
    return sorted(wrong | (_tables(root) - files.keys()))


def summary(results: Sequence[Result]) -> Table:
    """A rich table of a few results, for the terminal."""
    from rich.table import Table

    rows = group(results)
    table = Table(title=f"{results[0].benchmark}, {results[0].queries:,} test images, percent")
    table.add_column("")
    for row in rows:
        table.add_column(row.first.row, justify="right", overflow="fold")
    for metric in columns(rows):
        table.add_row(title(metric), *(percent(row.values(metric)) for row in rows))
    return table
