"""Generated blocks of hand-written pages: what stands between ``<!-- made: NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from idml_zoo.files import write_file


def fill(text: str, make: Callable[[str], str]) -> str:
    """Returns a page's text with the content of every block replaced by what ``make`` returns for its name."""
    return re.sub(
        r"<!-- made: ([\w ]+) -->\n.*?<!-- end -->",
        lambda match: f"<!-- made: {match[1]} -->\n{make(match[1])}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


def write_blocks(pages: Sequence[Path], make: Callable[[str], str]) -> None:
    """Fills the blocks of every page and writes the pages.

    Raises:
        FileError: a page cannot be written.
    """
    for path in pages:
        write_file(path, fill(path.read_text(encoding="utf-8"), make))


def outdated(pages: Sequence[Path], make: Callable[[str], str]) -> list[Path]:
    """Returns the pages whose blocks differ from what ``make`` returns; writes nothing."""
    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    return [path for path, text in texts.items() if fill(text, make) != text]
