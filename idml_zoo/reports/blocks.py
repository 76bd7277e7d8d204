"""Generated blocks of hand-written pages: what stands between `<!-- made: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path


def fill(text: str, made: Callable[[str], str]) -> str:
    """The page with the content of every block replaced by what ``made`` gives for its name."""
    return re.sub(
        r"<!-- made: ([\w ]+) -->\n.*?<!-- end -->",
        lambda match: f"<!-- made: {match[1]} -->\n{made(match[1])}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


def write(pages: Sequence[Path], made: Callable[[str], str], check: bool) -> int:
    """Writes the pages anew, or only says whether they agree; an exit status, 1 where ``check`` finds a difference."""
    status = 0
    for path in pages:
        old = path.read_text(encoding="utf-8")
        new = fill(old, made)
        if check:
            print(f"{path.name}: {'agrees with' if new == old else 'differs from'} the result files")
            status |= new != old
        else:
            path.write_text(new, encoding="utf-8")
    return int(status)
