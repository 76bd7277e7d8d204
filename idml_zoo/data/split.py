"""Labelled images: what a benchmark consists of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from idml_zoo.data.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageSource(Protocol):
    """A list of images that are decoded when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image:
        """The RGB image at ``index``; DataError if it cannot be decoded."""
        ...

    def name(self, index: int) -> str:
        """What to call image ``index`` in a message: its path, or its place in a file."""
        ...

    def fingerprint(self, index: int) -> bytes:
        """Bytes that identify the image's content or, where reading all content would be slow, its file and size."""
        ...


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        images: N images.
        labels: ``(N,)`` int64, contiguous from 0 within the split.
        class_names: C names, by label.
        extras: per-image arrays of length N that an analysis may use ("severity", ...), none of them needed.
    """

    images: ImageSource
    labels: np.ndarray
    class_names: tuple[str, ...]
    extras: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = np.unique(self.labels)
        if len(self.labels) != len(self.images):
            raise DataError(f"{len(self.images)} images but {len(self.labels)} labels")
        if len(self.labels) == 0:
            raise DataError("a split has no images; check the folder or file, and the classes chosen from it")
        if len(found) < 2:
            raise DataError(f"a split has one class only ({self.class_names[0]!r}); retrieval needs at least two")
        if found[0] != 0 or found[-1] != len(found) - 1 or len(found) != len(self.class_names):
            raise DataError(
                f"labels must run from 0 to {len(self.class_names) - 1} without gaps, found {len(found)} values"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def fingerprint(self) -> str:
        """sha256 over every image's own fingerprint and label, in order."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        for i in range(len(self)):
            digest.update(self.images.fingerprint(i))
        return digest.hexdigest()

    def select_classes(self, classes: Sequence[int] | np.ndarray) -> Split:
        """The images of some classes, relabelled from 0 in the given order of classes."""
        order = np.full(self.num_classes, -1, dtype=np.int64)
        order[np.asarray(classes)] = np.arange(len(classes))
        rows = np.flatnonzero(order[self.labels] >= 0)
        return Split(
            Subset(self.images, rows),
            order[self.labels[rows]],
            tuple(self.class_names[c] for c in classes),
            {k: v[rows] for k, v in self.extras.items()},
        )


@dataclass(frozen=True)
class Subset:
    """Some rows of an image source."""

    images: ImageSource
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image:
        return self.images[int(self.rows[index])]

    def name(self, index: int) -> str:
        return self.images.name(int(self.rows[index]))

    def fingerprint(self, index: int) -> bytes:
        return self.images.fingerprint(int(self.rows[index]))


@dataclass(frozen=True)
class Splits:
    """A loaded benchmark: ``train`` and ``test`` share no class."""

    train: Split
    test: Split
