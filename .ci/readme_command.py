"""Prints the one command of the marked block of README.md: the ``bash`` block right after a line ``<!-- tests -->``.

    python3 .ci/readme_command.py README.md

So what a reader types and what a change must pass are one text. Anything but exactly one such block with exactly one
command line is an error, status 1. Needs nothing but Python.
"""

import sys
from pathlib import Path

MARKER, OPEN, CLOSE = "<!-- tests -->", "```bash", "```"


def marked_command(text: str) -> str:
    """The command line of the marked block.

    Raises:
        ValueError: no marker or several, no bash block right after it, no end of it, or not exactly one command line.
    """
    lines = [line.rstrip() for line in text.splitlines()]
    count = lines.count(MARKER)
    if count != 1:
        raise ValueError(f"expected one line {MARKER}, found {count}; put it right above the block of the test command")
    rest = lines[lines.index(MARKER) + 1 :]
    if not rest or rest[0] != OPEN:
        raise ValueError(f"the line after {MARKER} must be {OPEN}, found {rest[0] if rest else 'the end'!r}")
    if CLOSE not in rest:
        raise ValueError(f"the block after {MARKER} has no end; close it by {CLOSE}")
    commands = [line for line in rest[1 : rest.index(CLOSE)] if line.strip()]
    if len(commands) != 1 or commands[0].endswith("\\"):
        raise ValueError(f"the block after {MARKER} must hold one command on one line, found {len(commands)} lines")
    return commands[0]


if __name__ == "__main__":
    try:
        print(marked_command(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")
