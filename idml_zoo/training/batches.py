"""Builds batches from a configuration: which split is trained on, how it is sampled, cached or streamed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idml_zoo.data.benchmark import Benchmark, table_benchmark
from idml_zoo.data.images import ArrayImages, DrawnImages
from idml_zoo.data.loading.cache import cache_images
from idml_zoo.data.loading.sampler import Numbered, PKSampler, ShuffleSampler
from idml_zoo.data.loading.streaming import StreamDataset
from idml_zoo.data.split import Split, Subset, class_folds, hold_out_classes
from idml_zoo.data.transforms import TransformConfig, build_device_transforms, build_transforms
from idml_zoo.registry import benchmarks
from idml_zoo.training.config import ConfigError, DataConfig, EvaluationConfig


def load_benchmark(
    name: str, data: DataConfig, evaluation: EvaluationConfig
) -> tuple[Benchmark, Split, Split, Split | None]:
    """Returns the benchmark's record, the training split, the split to measure, and the one to validate on.

    Measured are the test classes or held-out training classes. The same held-out classes are for validation, None where
    none are held out. Held-out classes are not trained on.

    Raises:
        ConfigError: no class is left to train on, or a stream has no classes to hold out.
    """
    if data.source:
        benchmark = table_benchmark(
            name,
            Path(data.source).absolute() if Path(data.source).exists() else data.source,
            data.train_classes or None,
            data.test_classes or None,
            hub_split=data.hub_split,
            revision=data.revision or None,
        )
    else:
        benchmark = benchmarks[name]
    splits = benchmark.splits(data.data_root)
    if not len(splits.train) and not data.stream:
        raise ConfigError(f"{benchmark.name}: test_classes={data.test_classes} leaves no class to train on")
    if evaluation.evaluate_on == "test" and not evaluation.validate_every:
        return benchmark, splits.train, splits.test, None
    if data.stream:
        raise ConfigError("validation holds out classes of the benchmark's training split, not of a stream")
    if evaluation.val_folds:
        train, held_out = class_folds(splits.train, evaluation.val_folds)[evaluation.val_fold]
    else:
        train, held_out = hold_out_classes(splits.train, evaluation.val_classes)
    return benchmark, train, splits.test if evaluation.evaluate_on == "test" else held_out, held_out


@dataclass(frozen=True)
class Loading:
    """The batches of a run.

    Attributes:
        num_classes: of the labels that come.
        steps: batches in an epoch, the same on every rank.
        epoch: ``epoch(e, start)`` iterates over the batches of epoch e from the given one on, as (images, labels,
            indices).
        finish: the part of the augmentation that happens to a batch on the device.
    """

    num_classes: int
    steps: int
    epoch: Callable[[int, int], Iterator[Any]]
    finish: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """What batches depend on beside the configuration.

    Attributes:
        workers: loader processes.
        rank: number of this process.
        world: number of processes.
        progress: whether to show a progress bar.
    """

    workers: int
    rank: int = 0
    world: int = 1
    progress: bool = False


def build_loading(
    data: DataConfig, seed: int, train: Split, transform: TransformConfig, place: Place, features: Tensor | None = None
) -> Loading:
    """Returns batches of the training split, or of a stream: this rank's part of each global batch.

    Args:
        data: how the images are sampled, cached and augmented.
        seed: of their order and augmentation.
        train: the training split.
        transform: the network's preprocessing.
        place: processes.
        features: ``(N, F)`` of the training images: batches of these instead.
    """
    if data.augment_on_device:
        on_worker, finish = build_device_transforms(transform)
    else:
        on_worker, finish = build_transforms(transform)[0], lambda images: images
    options: dict[str, Any] = {
        "num_workers": place.workers,
        "pin_memory": torch.cuda.is_available(),
        "persistent_workers": place.workers > 0,
        "generator": torch.Generator().manual_seed(seed),
    }
    if data.stream:
        return _stream(data, seed, on_worker, finish, options, place)
    if data.cache and features is None and not _is_array(train):
        train = cache_images(train, data.cache_side or 2 * transform.image_size, progress=place.progress)
    sampler = _sampler(data, seed, train, place)
    numbered = Numbered(sampler, data.batch_size)
    images: Any = DrawnImages(train, on_worker, seed)
    if features is not None:
        images, finish, options["num_workers"] = CachedFeatures(features, train.labels), lambda rows: rows, 0
        options["persistent_workers"] = False
    loader: Any = torch.utils.data.DataLoader(images, batch_sampler=numbered, **options)

    def epoch(number: int, start: int = 0) -> Iterator[Any]:
        numbered.set_epoch(number, start)
        return iter(loader)

    return Loading(train.num_classes, len(sampler), epoch, finish)


def _sampler(data: DataConfig, seed: int, train: Split, place: Place) -> ShuffleSampler | PKSampler:
    """Returns the sampler of this rank; ConfigError where the images do not fill its batches."""
    seeded: dict[str, Any] = {"seed": seed, "num_replicas": place.world, "rank": place.rank}
    if data.sampler == "shuffle":
        if len(train) < data.batch_size:
            raise ConfigError(
                f"{len(train)} images do not fill one batch of {data.batch_size}; lower batch_size to a part of them"
            )
        return ShuffleSampler(len(train), data.batch_size, **seeded)
    classes, rest = divmod(data.batch_size, data.images_per_class)
    if rest:
        raise ConfigError(
            f"batch_size {data.batch_size} must be a multiple of images_per_class {data.images_per_class}"
        )
    if classes > train.num_classes:
        raise ConfigError(
            f"batch_size {data.batch_size} takes {classes} classes × {data.images_per_class} images, and there "
            f"are {train.num_classes} training classes; lower batch_size, or raise images_per_class"
        )
    return PKSampler(train.labels, classes, data.images_per_class, whole_classes=data.whole_classes, **seeded)


class CachedFeatures(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """Pooled features of a frozen backbone, computed once: item (i, n) is (features ``(F,)``, label, i)."""

    def __init__(self, features: Tensor, labels: Any) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Any) -> tuple[Tensor, int, int]:
        return self.features[index[0]], int(self.labels[index[0]]), index[0]


def _stream(data: DataConfig, seed: int, transform: Any, finish: Any, options: dict[str, Any], place: Place) -> Loading:
    """Returns batches of a stream, which has no end and is read on from epoch to epoch."""
    stream = StreamDataset(
        data.stream,
        transform,
        data.stream_classes or None,
        split=data.hub_split,
        revision=data.revision or None,
        seed=seed,
        shuffle_buffer=data.shuffle_buffer,
        rank=place.rank,
        num_replicas=place.world,
    )
    loader: Any = torch.utils.data.DataLoader(stream, data.batch_size // place.world, **options)
    batches: list[Iterator[Any]] = []  # opened at the first epoch, and read on in the next

    def epoch(number: int, start: int = 0) -> Iterator[Any]:
        if not batches:  # after an interruption it begins anew, so what follows is not what would have followed
            batches.append(iter(loader))
        return itertools.islice(batches[0], data.steps_per_epoch - start)

    return Loading(stream.num_classes, data.steps_per_epoch, epoch, finish)


def _is_array(split: Split) -> bool:
    """Returns whether the images are decoded and in memory as they are."""
    images: Any = split.images
    while isinstance(images, Subset):
        images = images.images
    return isinstance(images, ArrayImages)
