"""Training on a table larger than memory or disk: a stream over its shards, by ``datasets``.

What it reads: Parquet or Arrow shards, WebDataset-style tar shards (``key.jpg`` with ``key.cls``), a folder made by
``idml-zoo data prepare``, or a data set of the Hub. The stream has no end; an epoch is a number of steps that the
recipe says, the same on every rank, so that no rank waits for another that ran out.
"""

from __future__ import annotations

import glob
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idml_zoo.data.classes import class_range
from idml_zoo.data.errors import BrokenImageError, DataError
from idml_zoo.data.folders import MANIFEST
from idml_zoo.data.images import decode
from idml_zoo.data.store import read_manifest
from idml_zoo.data.table import hub_id

_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")
_LABEL_COLUMNS = ("label", "cls")
_log = logging.getLogger(__name__)


def open_stream(source: str | Path, split: str = "train", revision: str | None = None) -> Any:
    """Returns a ``datasets.IterableDataset`` over shards.

    Args:
        source: files by a shell pattern (``shards/*.tar``, ``*.parquet``, ``*.arrow``), a folder made by
            ``idml-zoo data prepare`` (its training images), or a Hub data set id (``user/name``, or
            ``user/name:configuration``).
        split, revision: of a Hub data set.

    Raises:
        DataError: there are no such files, or files of several kinds.
    """
    import datasets

    text = str(source)
    if (Path(text) / MANIFEST).is_file():
        text = str(Path(text) / "train-*.arrow")
    files = sorted(glob.glob(text, recursive=True))
    kinds = {Path(f).suffix for f in files}
    if files and (len(kinds) != 1 or not kinds <= _BUILDERS.keys()):
        raise DataError(
            f"{text}: {', '.join(sorted(kinds))} files; a stream reads shards of one kind: {', '.join(_BUILDERS)}"
        )
    if files:
        return datasets.load_dataset(_BUILDERS[kinds.pop()], data_files={"train": files}, split="train", streaming=True)
    if (data_set := hub_id(text)) is None:
        raise DataError(
            f"no shards {text}; give a pattern such as 'shards/*.parquet', or a Hub data set id (user/name)"
        )
    return datasets.load_dataset(*data_set, split=split, revision=revision, streaming=True)


class StreamDataset(torch.utils.data.IterableDataset[tuple[Tensor, int, int]]):
    """An endless shuffled stream of (image ``(3, H, W)``, label, running number), in parts on each rank and worker.

    Shards are dealt out to ranks and loader workers where their number is a multiple of them all, else every part reads
    all shards and keeps its share of the rows: have many shards. Deterministic in (seed, rank, number of workers).

    Args:
        source, split, revision: see :func:`open_stream`.
        transform: PIL image to tensor.
        classes: class numbers to train on ("0-9999"); all others are skipped. None: every class that the table's
            label feature names. Training and test classes of one table must be kept apart with this.
        seed, shuffle_buffer: rows are drawn from a buffer of this size, over shards in shuffled order.
        rank, num_replicas: of the processes.

    Raises:
        DataError: no image or label column; no class names and no ``classes``; when iterated, a table without
            usable rows, or more than one broken image in a hundred (single ones are skipped, and logged by name).
    """

    def __init__(
        self,
        source: str | Path,
        transform: Callable[[Any], Tensor],
        classes: str | Sequence[int] | None = None,
        *,
        split: str = "train",
        revision: str | None = None,
        seed: int = 0,
        shuffle_buffer: int = 2000,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        import datasets

        rows = open_stream(source, split, revision)
        features = rows.features or {}
        self.image_column = _only(_IMAGE_COLUMNS, features, source, "image")
        self.label_column = _only(_LABEL_COLUMNS, features, source, "label")
        names = getattr(features[self.label_column], "names", None)
        if classes is None and not names:
            raise DataError(
                f"{source}: its labels have no names, so their number is unknown; give the classes: '0-999'"
            )
        if classes is None:
            count = len(names or ())
            if (Path(source) / MANIFEST).is_file():  # its labels number the test classes too
                count = read_manifest(Path(source))["splits"]["train"]["classes"]
            classes = f"0-{count - 1}"
        self.labels = {int(c): i for i, c in enumerate(class_range(classes, 2**31))}
        rows = rows.cast_column(self.image_column, datasets.Image(decode=False))
        self.rows = rows.shuffle(seed=seed, buffer_size=shuffle_buffer)
        self.source, self.transform, self.rank, self.num_replicas = str(source), transform, rank, num_replicas

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        from datasets.distributed import split_dataset_by_node

        mine = split_dataset_by_node(self.rows, self.rank, self.num_replicas)  # loader workers: see to it themselves
        worker = torch.utils.data.get_worker_info()
        if worker and worker.id >= mine.num_shards:
            return  # more workers than shards: this one has nothing to read
        number = broken = 0
        passes = 0
        while True:
            before = number
            mine.set_epoch(passes)
            for row in mine:
                label = self.labels.get(int(row[self.label_column]))
                if label is None:
                    continue
                try:
                    image = self._image(row)
                except BrokenImageError as error:
                    broken += 1
                    _log.warning("passed over: %s", error)
                    if broken > 10 and broken > 0.01 * (number + broken):
                        raise DataError(
                            f"{self.source}: {broken} of {number + broken} images are broken; {error}"
                        ) from error
                    continue
                yield self.transform(image), label, number
                number += 1
            if number == before:
                raise DataError(
                    f"{self.source}: rank {self.rank} finds no usable image of the {len(self.labels)} classes"
                )
            passes += 1

    def _image(self, row: dict[str, Any]) -> Any:
        value = row[self.image_column]
        if not isinstance(value, dict):  # of a folder of images on the Hub, whatever the column was cast to
            return decode(value, f"{row.get('__key__') or 'a row'} of {self.source}")
        name = f"{value.get('path') or row.get('__key__') or 'a row'} of {self.source}"
        if value.get("bytes") is None:  # a path is a stranger's word for a file of this machine
            raise BrokenImageError(name, "no bytes: the table was written without embedding its images")
        return decode(io.BytesIO(value["bytes"]), name)


def _only(candidates: Sequence[str], features: Any, source: str | Path, what: str) -> str:
    for column in candidates:
        if column in features:
            return column
    raise DataError(f"{source}: no {what} column ({', '.join(candidates)}); it has {', '.join(features) or 'none'}")
