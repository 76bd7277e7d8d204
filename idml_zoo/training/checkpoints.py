"""Checkpoints, which are on the disk whole or not at all, and requests to stop, which write one first."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from idml_zoo.files import sha256_of
from idml_zoo.training.config import DEFAULTS, Config, ConfigError
from idml_zoo.training.sharding import full_state, shard_state

FORMAT = 1
KEPT = 2  # the newest, and one in case that turns out to be damaged
# What may change between two halves of a run: where files lie and how it is computed, not what is trained.
HARMLESS = {
    *("data_root", "workers", "threads", "log_every", "output", "leaderboard", "resume", "checkpoint_every"),
    *("evaluate_untrained", "profile_steps", "tracker", "similarity", "corruptions", "shard"),
}


def write(folder: Path, state: dict[str, Any]) -> Path:
    """Writes a checkpoint whole or not at all, under a name with its hash, and removes all but the newest.

    Args:
        folder: made if it is not there.
        state: tensors, numbers, texts, lists and dictionaries; with "step".

    Raises:
        OSError: no space, or no permission; the checkpoints from before are still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"part-{os.getpid()}"
    try:
        try:
            torch.save({"format": FORMAT, **state}, part)
        except RuntimeError as error:  # torch's own words for a full disk
            raise OSError(f"cannot write {part} ({str(error).splitlines()[0]})") from error
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        path = folder / f"step{state['step']:08d}-{_digest(part)}.pt"
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    _sync(folder)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def read(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Returns the newest checkpoint that is whole, or None; ``warn`` is called with a line for each damaged one."""
    for path in _newest_first(folder):
        if _digest(path) != path.stem.partition("-")[2]:
            warn(f"{path} is damaged (its hash is another) and left aside")
            continue
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)  # runs no code
        if state.get("format") != FORMAT:
            warn(f"{path} has format {state.get('format')!r}, this version reads {FORMAT}; it is left aside")
            continue
        return state
    return None


def clear(folder: Path) -> None:
    """Removes a finished run's checkpoints."""
    for path in folder.glob("*") if folder.is_dir() else ():
        path.unlink()
    if folder.is_dir():
        folder.rmdir()


def _newest_first(folder: Path) -> list[Path]:
    """Returns the checkpoints, newest first by the step in the name: a clock may go backwards."""
    return sorted(folder.glob("step*-*.pt"), key=lambda p: (p.name.partition("-")[0], p.stat().st_mtime), reverse=True)


def _digest(path: Path) -> str:
    return sha256_of(path)[:16]


def _sync(folder: Path) -> None:
    """Writes the names in a folder to the disk, beside the content of its files."""
    if os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_config(config: Config, saved: dict[str, Any], folder: Path) -> list[str]:
    """Returns the harmless changes of the configuration since a checkpoint, as lines.

    A key that is newer than the checkpoint had its default then.

    Raises:
        ConfigError: a change that would make it another training.
    """
    now, saved = config.flat(), DEFAULTS | saved
    changed = {k: (saved.get(k), now.get(k)) for k in sorted(saved.keys() | now.keys()) if saved.get(k) != now.get(k)}
    lines = [f"{k}: {old!r} → {new!r}" for k, (old, new) in changed.items()]
    if refused := [line for k, line in zip(changed, lines, strict=True) if k not in HARMLESS]:
        raise ConfigError(
            f"{folder} holds a run that has begun with other settings ({'; '.join(refused)}): resume=no begins anew, "
            "name= or output= begins another"
        )
    return lines


def states(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the states of modules, optimisers, schedulers, scalers and generators by name; that of None is None.

    Shards are gathered, so that a checkpoint does not depend on the number of processes: all must call then.
    """
    collected = {k: p.get_state() if isinstance(p, torch.Generator) else p and p.state_dict() for k, p in parts.items()}
    return full_state(collected)


def restore(parts: Mapping[str, Any], saved: dict[str, Any]) -> None:
    """Loads into each of the parts its state from :func:`states`."""
    for name, part in parts.items():
        if isinstance(part, torch.Generator):
            part.set_state(saved[name])
        elif part is not None and saved[name] is not None:
            part.load_state_dict(shard_state(saved[name], part))


def rng_state() -> dict[str, Any]:
    """Returns the state of every random generator of this process."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, list(numbers), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Sets every random generator of this process to a state from :func:`rng_state`."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class StopRequest:
    """True once somebody has asked to stop, by SIGTERM or Ctrl-C; a second Ctrl-C stops at once. A context manager."""

    def __init__(self) -> None:
        self.flag = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.flag.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.flag.set()

    def __bool__(self) -> bool:
        return self.flag.is_set()
