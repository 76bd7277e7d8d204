"""Never lose work: checkpoints that are whole or not there, found again by the same command, and a polite SIGTERM."""

from __future__ import annotations

import dataclasses
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
from idml_zoo.training.config import Config, ConfigError
from idml_zoo.training.sharding import spread, whole

FORMAT = 1
KEPT = 2  # the newest, and one in case that turns out to be damaged
STOPPED = 143  # exit status of a run that was asked to stop: 128 + SIGTERM
# What may change between two halves of a run: where things lie and how they are done, not what is trained.
HARMLESS = {
    *("data_root", "workers", "threads", "log_every", "output", "leaderboard", "resume", "checkpoint_every"),
    *("evaluate_untrained", "profile_steps", "tracker", "similarity", "corruptions", "shard"),
}


class Stopped(Exception):
    """The run was asked to stop, and has saved where it was."""


def write(folder: Path, state: dict[str, Any]) -> Path:
    """Writes a checkpoint whole or not at all, under a name with its hash, and removes all but the newest.

    Args:
        folder: made if it is not there.
        state: tensors, numbers, texts, lists and dictionaries; with "step".

    Raises:
        OSError: no space, no right: what was there before is still there.
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
    for old in _found(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def read(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint that is whole; None where there is none. ``warn`` is told of those that are not."""
    for path in _found(folder):
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


def _found(folder: Path) -> list[Path]:
    """Newest first, by the step in the name: a clock may go backwards."""
    return sorted(folder.glob("step*-*.pt"), key=lambda p: (p.name.partition("-")[0], p.stat().st_mtime), reverse=True)


def _digest(path: Path) -> str:
    return sha256_of(path)[:16]


def _sync(folder: Path) -> None:
    """The name, too, must be on the disk."""
    if os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_config(config: Config, saved: dict[str, Any], folder: Path) -> list[str]:
    """What has changed since a checkpoint, as lines, where that is harmless; a key newer than it had its default.

    Raises:
        ConfigError: where it would be another training.
    """
    now, saved = dataclasses.asdict(config), dataclasses.asdict(Config()) | saved
    changed = {k: (saved.get(k), now.get(k)) for k in sorted(saved.keys() | now.keys()) if saved.get(k) != now.get(k)}
    lines = [f"{k}: {old!r} → {new!r}" for k, (old, new) in changed.items()]
    if refused := [line for k, line in zip(changed, lines, strict=True) if k not in HARMLESS]:
        raise ConfigError(
            f"{folder} holds a run that has begun with other settings ({'; '.join(refused)}): resume=no begins anew, "
            "name= or output= begins another"
        )
    return lines


def states(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The states of modules, optimisers, schedulers, scalers and generators by name; of None it is None.

    What is sharded is put together: all processes must call then, and a checkpoint does not depend on their number.
    """
    taken = {k: p.get_state() if isinstance(p, torch.Generator) else p and p.state_dict() for k, p in parts.items()}
    return whole(taken)


def restore(parts: Mapping[str, Any], saved: dict[str, Any]) -> None:
    """Gives each of the parts the state that :func:`states` took."""
    for name, part in parts.items():
        if isinstance(part, torch.Generator):
            part.set_state(saved[name])
        elif part is not None and saved[name] is not None:
            part.load_state_dict(spread(saved[name], part))


def rng_state() -> dict[str, Any]:
    """Every generator of this process."""
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
    """Sets every generator of this process to what :func:`rng_state` gave."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class Asked:
    """Whether somebody has asked to stop, by SIGTERM or Ctrl-C; a second Ctrl-C stops at once. A context manager."""

    def __init__(self) -> None:
        self.flag = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Asked:
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
