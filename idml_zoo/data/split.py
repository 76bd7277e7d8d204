"""Labelled images: what a benchmark consists of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from idml_zoo.data.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from idml_zoo.types import Embedding, RetrievalTask


class ImageSource(Protocol):
    """A list of images, each decoded when it is indexed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image:
        """Returns the RGB image at ``index``; raises DataError if it cannot be decoded."""
        ...

    def encoded(self, index: int) -> bytes:
        """Returns the image as a file's content (JPEG, PNG, ...); raises DataError if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """Returns the name of image ``index`` for messages: its path, or its row in a file."""
        ...

    def fingerprint(self, index: int) -> bytes:
        """Returns the sha256 of the image's content, the same wherever the image is kept."""
        ...


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        images: N images.
        labels: ``(N,)`` int64, contiguous from 0 within the split.
        class_names: C names, by label.
        extras: per-image arrays of length N that an analysis may use ("severity", ...), none of them needed.
        queries: ``(N,)`` bool where the benchmark fixes the queries: these are searched in all the others, the gallery
            (In-Shop). None: every image is a query, and all the other images are its gallery.
    """

    images: ImageSource
    labels: np.ndarray
    class_names: tuple[str, ...]
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    queries: np.ndarray | None = None

    def __post_init__(self) -> None:
        values = np.unique(self.labels)
        if len(self.labels) != len(self.images):
            raise DataError(f"{len(self.images)} images but {len(self.labels)} labels")
        if isinstance(self.images, Subset) and len(self.labels) == len(self.class_names) == 0:
            return  # no class was selected: every class tests
        if len(self.labels) == 0:
            raise DataError("a split has no images; check the folder or file, and the classes chosen from it")
        if len(values) < 2:
            raise DataError(f"a split has one class only ({self.class_names[0]!r}); retrieval needs at least two")
        if values[0] != 0 or values[-1] != len(values) - 1 or len(values) != len(self.class_names):
            raise DataError(
                f"labels must run from 0 to {len(self.class_names) - 1} without gaps, found {len(values)} values"
            )
        if self.queries is not None:
            count = int(self.queries.sum())
            if self.queries.dtype != bool or self.queries.shape != self.labels.shape or not 0 < count < len(self):
                raise DataError(
                    f"queries must be {len(self)} booleans, some true and some false; "
                    f"found {count} of {len(self.queries)} true"
                )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def fingerprint(self) -> str:
        """Returns the sha256 over every image's fingerprint and label, in order."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        for i in range(len(self)):
            digest.update(self.images.fingerprint(i))
        return digest.hexdigest()

    def task(self, embedding: Embedding) -> RetrievalTask:
        """Returns what is searched in what, for an embedding of this split's images.

        Raises:
            ValueError: another number of embeddings than images.
        """
        import torch

        from idml_zoo.types import RetrievalTask

        is_query = None if self.queries is None else torch.from_numpy(self.queries)
        return RetrievalTask.of(embedding, torch.from_numpy(np.asarray(self.labels, dtype=np.int64)), is_query)

    def select_classes(self, classes: Sequence[int] | np.ndarray) -> Split:
        """Returns the images of some classes, relabelled from 0 in the given order; an empty split for no class."""
        order = np.full(self.num_classes, -1, dtype=np.int64)
        order[np.asarray(classes, dtype=np.int64)] = np.arange(len(classes))
        rows = np.flatnonzero(order[self.labels] >= 0)
        return Split(
            Subset(self.images, rows),
            order[self.labels[rows]],
            tuple(self.class_names[c] for c in classes),
            {k: v[rows] for k, v in self.extras.items()},
            None if self.queries is None else self.queries[rows],
        )

    def with_images(self, images: ImageSource) -> Split:
        """Returns the same split over as many other images: decoded, corrupted, ..."""
        return replace(self, images=images)


@dataclass(frozen=True)
class Subset:
    """Some rows of an image source."""

    images: ImageSource
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image:
        return self.images[int(self.rows[index])]

    def encoded(self, index: int) -> bytes:
        return self.images.encoded(int(self.rows[index]))

    def name(self, index: int) -> str:
        return self.images.name(int(self.rows[index]))

    def fingerprint(self, index: int) -> bytes:
        return self.images.fingerprint(int(self.rows[index]))


@dataclass(frozen=True)
class Splits:
    """A loaded benchmark: ``train`` and ``test`` share no class.

    Attributes:
        train, test: the two splits; ``train`` is empty where every class was chosen to test.
        origin: where the images come from, for provenance: a folder, a file, ``hub:user/name@commit``.
    """

    train: Split
    test: Split
    origin: str = ""


def _shuffled_classes(count: int, seed: int) -> list[int]:
    """Returns class numbers in an order drawn by sha256, which no new version of a generator can change."""
    return sorted(range(count), key=lambda c: hashlib.sha256(f"idml_zoo/classes/{seed}/{c}".encode()).digest())


def class_folds(split: Split, folds: int, seed: int = 0) -> list[tuple[Split, Split]]:
    """Returns ``folds`` pairs (training, validation) of one split, with disjoint classes; each class validates once.

    A checkpoint or a learning rate is chosen on these, never on the test classes.

    Args:
        split: of C classes, usually a benchmark's training split.
        folds: 2 or more; each validation part gets C / folds classes, up to one more or less.
        seed: of the assignment.

    Raises:
        DataError: a fold would have fewer than two classes.
    """
    if folds < 2 or split.num_classes // folds < 2:
        raise DataError(
            f"{folds} folds of {split.num_classes} classes: there must be at least 2 folds of at least 2 classes each"
        )
    order = _shuffled_classes(split.num_classes, seed)
    return [_parted(split, set(order[k::folds])) for k in range(folds)]


def hold_out_classes(split: Split, fraction: float = 0.2, seed: int = 0) -> tuple[Split, Split]:
    """Returns (training, validation): a fraction of the classes, with all their images, is held out.

    Args:
        split: of C classes.
        fraction: of the classes, in (0, 1); rounded, and at least two on either side.
        seed: of the choice.

    Raises:
        DataError: fraction out of range, or fewer than four classes.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the fraction of classes held out must lie between 0 and 1, got {fraction}")
    if split.num_classes < 4:
        raise DataError(f"{split.num_classes} classes: holding some out needs at least 4, two on either side")
    count = min(max(2, round(fraction * split.num_classes)), split.num_classes - 2)
    return _parted(split, set(_shuffled_classes(split.num_classes, seed)[:count]))


def _parted(split: Split, held_out: set[int]) -> tuple[Split, Split]:
    kept = [c for c in range(split.num_classes) if c not in held_out]
    return split.select_classes(kept), split.select_classes(sorted(held_out))
