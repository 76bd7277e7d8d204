"""What a run says while it goes: its log, warnings, and when it had better stop."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from idml_zoo.results import write_text
from idml_zoo.types import Embedding

console = Console(stderr=True)


class TrainingError(RuntimeError):
    """A run that cannot go on: a loss that is not finite, or data too small for one batch."""


def warn(text: str) -> None:
    console.print(f"[yellow]{escape(text)}[/]", highlight=False, soft_wrap=True)


def make_folder(folder: Path) -> Path:
    """The folder itself, made if it is not there; OSError with the fix where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}); choose another output=") from error
    return folder


def append_row(path: Path, entry: dict[str, Any]) -> None:
    """Adds a line to a CSV, after a header where the file is new; closed at once, so that a killed run keeps it."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(entry)
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in entry.values()])


def keep_rows(path: Path, last: int) -> None:
    """Leaves a log's rows up to a step: what a killed run has logged since its checkpoint will come again."""
    if path.exists():
        header, *rows = path.read_text(encoding="utf-8").splitlines()
        place = header.split(",").index("step")
        whole = [row for row in rows if row.count(",") == header.count(",") and int(row.split(",")[place]) <= last]
        write_text(path, "\n".join([header, *whole]) + "\n")


def diagnosis(statistics: dict[str, float], embedding: Embedding, has_uncertainty: bool) -> str:
    """What is wrong with a batch's embeddings, if they are of no use any more; else an empty text."""
    alike = float(embedding.semantic.detach().float().mean(0).square().sum())  # mean cosine over all pairs
    if alike > 0.9999:
        return f"all embeddings are alike (mean cosine {alike:.5f}): the network has collapsed"
    level = statistics.get("level", 0.0)
    if level > 1e4:
        return f"the uncertainty has exploded (mean level {level:.3g})"
    if has_uncertainty and level < 1e-7:
        return f"the uncertainty is dead (mean level {level:.3g}), and nothing brings it back"
    return ""
