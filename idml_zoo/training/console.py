"""What a run prints to stderr while it goes: warnings, errors and a progress bar."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import idml_zoo
from idml_zoo.training.recipes import recipes_folder

console = Console(stderr=True)


def warn(text: str) -> None:
    """Prints a line in yellow."""
    console.print(f"[yellow]{escape(text)}[/]", highlight=False, soft_wrap=True)


def warn_once(text: str) -> None:
    """Prints a line in yellow on the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        warn(text)


def print_error(kind: str, text: str) -> None:
    """Prints a line that begins with the kind of an error in red."""
    console.print(f"[bold red]{kind}:[/] {escape(text)}", highlight=False, soft_wrap=True)


def warn_of_other_package() -> None:
    """Warns where the package that is imported is not the one beside these recipes: a second clone, mostly."""
    beside, used = recipes_folder().resolve().parent, Path(idml_zoo.__file__).resolve().parents[1]
    if used != beside and (beside / "idml_zoo").is_dir():
        warn(f"idml_zoo is imported from {used}, not from {beside}: results name its commit. PYTHONPATH={beside} helps")


def progress_bar(shown: bool) -> Progress:
    """Returns a bar with steps, time left, rate and loss."""
    return Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]:.0f} images/s  loss {task.fields[loss]:.3f}"),
        console=console,
        disable=not shown,
    )
