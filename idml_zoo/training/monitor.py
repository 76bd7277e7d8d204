"""What a run says while it goes: its log, warnings, and when it had better stop."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import idml_zoo
from idml_zoo.files import write_file
from idml_zoo.training.recipes import recipes_folder
from idml_zoo.types import Embedding

console = Console(stderr=True)


class TrainingError(RuntimeError):
    """A run that cannot go on: a loss that is not finite, or a network that has collapsed."""


def warn(text: str) -> None:
    console.print(f"[yellow]{escape(text)}[/]", highlight=False, soft_wrap=True)


def warn_of_other_package() -> None:
    """A warning where the package that is imported is not the one beside these recipes: a second clone, mostly."""
    beside, used = recipes_folder().resolve().parent, Path(idml_zoo.__file__).resolve().parents[1]
    if used != beside and (beside / "idml_zoo").is_dir():
        warn(f"idml_zoo is imported from {used}, not from {beside}: results name its commit. PYTHONPATH={beside} helps")


def progress_bar(shown: bool) -> Progress:
    """Steps, time left, rate and loss."""
    return Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]:.0f} images/s  loss {task.fields[loss]:.3f}"),
        console=console,
        disable=not shown,
    )


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
    """Adds a line to a CSV, after a header where the file is new; closed at once, so that a killed run keeps it.

    A full disk costs the line, not the run.
    """
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if not file.tell():
                writer.writerow(entry)
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in entry.values()])
    except OSError as error:
        warn(f"a line of {path} is not written ({error.strerror}); training goes on")


def keep_rows(path: Path, last: int) -> None:
    """Leaves a log's rows up to a step: what a killed run has logged since its checkpoint will come again."""
    header, *rows = (path.read_text(encoding="utf-8") if path.exists() else "").splitlines() or [""]
    names = header.split(",")
    if "step" not in names:  # empty, or cut off: begun anew
        path.unlink(missing_ok=True)
        return
    cells = [(row, row.split(",")) for row in rows if row.count(",") == header.count(",")]
    whole = [row for row, c in cells if c[names.index("step")].isdigit() and int(c[names.index("step")]) <= last]
    write_file(path, "\n".join([header, *whole]) + "\n")


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


class Waiting:
    """An iterator that knows how long one has waited for it."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Waiting:
        return self

    def __next__(self) -> Any:
        start = time.perf_counter()
        try:
            return next(self.batches)
        except (ConnectionError, EOFError):  # of a lost loader process; torch hears of it by a signal, a little later,
            time.sleep(5)  # and says which one in an error that ends this
            raise
        finally:
            self.seconds += time.perf_counter() - start

    def take(self) -> float:
        """Seconds since it was asked last."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def memory(device: torch.device) -> float:
    """The most that this process has held so far, in GiB: on a GPU there, else in main memory (Windows: NaN)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class _NoProfile:
    def step(self) -> None:
        """Nothing is measured."""


@contextmanager
def profiled(steps: int, folder: Path) -> Iterator[Any]:
    """torch's profiler over some steps, after two to warm up; writes ``profile.txt`` and ``trace.json``."""
    if not steps:
        yield _NoProfile()
        return
    from torch.profiler import ProfilerActivity, profile, schedule

    def write(found: Any) -> None:
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        write_file(folder / "profile.txt", found.key_averages().table(sort_by=by, row_limit=40))
        found.export_chrome_trace(str(folder / "trace.json"))

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    plan = schedule(wait=1, warmup=1, active=steps, repeat=1)
    with profile(activities=kinds, schedule=plan, on_trace_ready=write, acc_events=True) as profiler:
        yield profiler
