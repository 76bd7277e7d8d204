"""The log of a run: rows of a CSV file that survive a killed run, the memory in use, and torch's profiler."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from idml_zoo.files import write_file
from idml_zoo.training.console import warn


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
    """Removes a log's rows after step ``last``: a resumed run logs the steps after its checkpoint again."""
    header, *rows = (path.read_text(encoding="utf-8") if path.exists() else "").splitlines() or [""]
    names = header.split(",")
    if "step" not in names:  # empty, or cut off: begun anew
        path.unlink(missing_ok=True)
        return
    cells = [(row, row.split(",")) for row in rows if row.count(",") == header.count(",")]
    complete = [row for row, c in cells if c[names.index("step")].isdigit() and int(c[names.index("step")]) <= last]
    write_file(path, "\n".join([header, *complete]) + "\n")


def peak_memory(device: torch.device) -> float:
    """Returns the most memory that this process has held so far, in GiB.

    On a GPU that of the GPU, else main memory (NaN on Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class _NoProfile:
    def step(self) -> None:
        """Measures nothing."""


@contextmanager
def profiled(steps: int, folder: Path) -> Iterator[Any]:
    """Runs torch's profiler over some steps, after two to warm up; writes ``profile.txt`` and ``trace.json``."""
    if not steps:
        yield _NoProfile()
        return
    from torch.profiler import ProfilerActivity, profile, schedule

    def write(profiler: Any) -> None:
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        write_file(folder / "profile.txt", profiler.key_averages().table(sort_by=by, row_limit=40))
        profiler.export_chrome_trace(str(folder / "trace.json"))

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    plan = schedule(wait=1, warmup=1, active=steps, repeat=1)
    with profile(activities=kinds, schedule=plan, on_trace_ready=write, acc_events=True) as profiler:
        yield profiler
