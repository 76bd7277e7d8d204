"""Checks every image before a benchmark is used: which cannot be decoded, and which are in both train and test."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from typing import NamedTuple

import numpy as np

from idml_zoo.data.errors import BrokenImageError, DataError
from idml_zoo.data.split import Split, Splits, Subset

_CHUNK = 256  # images handed to the threads at once, which bounds what waits in memory


class Broken(NamedTuple):
    """An image that cannot be decoded."""

    split: str
    row: int
    name: str
    reason: str


@dataclass(frozen=True)
class Report:
    """Result of a check.

    Attributes:
        images, classes: by split.
        fingerprints: by split; what result files record as the data's sha256.
        broken: images that cannot be decoded.
        leaks: (name in train, name in test) of images with the same content.
        copies: number of images that repeat an earlier one of their own split.
        sides: (smallest, median, largest) shorter side in pixels.
    """

    images: dict[str, int]
    classes: dict[str, int]
    fingerprints: dict[str, str]
    broken: tuple[Broken, ...]
    leaks: tuple[tuple[str, str], ...]
    copies: int
    sides: tuple[int, int, int]

    @property
    def ok(self) -> bool:
        return not self.broken and not self.leaks

    def summary_of_broken(self, most: int = 10) -> str:
        """Returns how many images are broken, and the first of them by name and reason."""
        lines = "; ".join(f"{b.name} ({b.reason})" for b in self.broken[:most])
        rest = f"; and {len(self.broken) - most} more" if len(self.broken) > most else ""
        return f"{len(self.broken)} of {sum(self.images.values())} images cannot be read: {lines}{rest}"

    def without_broken(self, splits: Splits) -> Splits:
        """Returns the splits without the broken images; raises DataError if a class would be empty."""
        return replace(splits, train=self._kept(splits.train, "train"), test=self._kept(splits.test, "test"))

    def _kept(self, split: Split, name: str) -> Split:
        broken = [b.row for b in self.broken if b.split == name]
        if not broken:
            return split
        rows = np.setdiff1d(np.arange(len(split)), broken)
        emptied = set(range(split.num_classes)) - set(split.labels[rows].tolist())
        if emptied:
            raise DataError(f"every image of class {split.class_names[min(emptied)]!r} is broken; remove that class")
        return Split(
            Subset(split.images, rows),
            split.labels[rows],
            split.class_names,
            {k: v[rows] for k, v in split.extras.items()},
            None if split.queries is None else split.queries[rows],
        )


def _checked(split: Split, index: int) -> tuple[bytes, int, str]:
    """Returns (fingerprint, shorter side in pixels, why it is broken or "") of an image."""
    try:
        fingerprint = split.images.fingerprint(index)
        return fingerprint, min(split.images[index].size), ""
    except BrokenImageError as error:
        return b"", 0, error.reason


def check_splits(splits: Splits, progress: bool = True) -> Report:
    """Reads and decodes every image of both splits, on all cores.

    Args:
        splits: a loaded benchmark.
        progress: show a bar.
    """
    from rich.progress import Progress

    broken: list[Broken] = []
    seen: dict[str, dict[bytes, int]] = {"train": {}, "test": {}}
    fingerprints: dict[str, str] = {}
    sides: list[int] = []
    copies = 0
    parts = {"train": splits.train, "test": splits.test}
    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task("checking images", total=sum(map(len, parts.values())))
        for key, split in parts.items():
            digest = hashlib.sha256(np.ascontiguousarray(split.labels, dtype="<i8").tobytes())
            for index, (fingerprint, side, reason) in enumerate(_in_chunks(pool, split)):
                bar.advance(task)
                digest.update(fingerprint)
                if reason:
                    broken.append(Broken(key, index, split.images.name(index), reason))
                    continue
                sides.append(side)
                copies += fingerprint in seen[key]
                seen[key].setdefault(fingerprint, index)
            fingerprints[key] = digest.hexdigest()
    shared = seen["train"].keys() & seen["test"].keys()
    leaks = sorted(
        (parts["train"].images.name(seen["train"][f]), parts["test"].images.name(seen["test"][f])) for f in shared
    )
    return Report(
        {k: len(s) for k, s in parts.items()},
        {k: s.num_classes for k, s in parts.items()},
        fingerprints,
        tuple(broken),
        tuple(leaks),
        copies,
        (min(sides), int(np.median(sides)), max(sides)) if sides else (0, 0, 0),
    )


def _in_chunks(pool: ThreadPoolExecutor, split: Split) -> Iterable[tuple[bytes, int, str]]:
    for start in range(0, len(split), _CHUNK):
        yield from pool.map(_checked, repeat(split), range(start, min(start + _CHUNK, len(split))))
