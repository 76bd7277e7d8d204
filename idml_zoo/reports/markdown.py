"""Markdown tables, for the leaderboard, the model cards and the pages under ``docs/``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], align: str | None = None, tight: bool = False
) -> str:
    """Returns a table, without a newline at its end. A bar or a line break in a cell does not break the table.

    Args:
        header: one heading for each of C columns.
        rows: C cells each; Markdown in them stays Markdown.
        align: C letters, "l" for text and "r" for numbers; default: text first, then numbers.
        tight: the rule under the header has no spaces: ``|---|---:|``. Generated files are compared byte by byte, and
            each keeps the rule that it began with.

    Raises:
        ValueError: ``align`` or a row is not of C columns.
    """
    align = "l" + "r" * (len(header) - 1) if align is None else align
    rows = list(rows)
    for what, columns in (("align", align), *(("a row", row) for row in rows)):
        if len(columns) != len(header):
            raise ValueError(f"{what} has {len(columns)} columns, the header {len(header)}: {columns!r}")
    rule = ["---:" if letter == "r" else "---" for letter in align]
    lines = [_line(header), "|" + "|".join(rule) + "|" if tight else "| " + " | ".join(rule) + " |", *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(re.sub(r"\s*\n\s*", " ", cell).replace("|", "\\|") for cell in cells) + " |"
