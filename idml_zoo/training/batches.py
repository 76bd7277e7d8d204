"""From a configuration to batches: which split is trained on, how it is sampled, cached or streamed."""

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
from idml_zoo.training.config import Config, ConfigError


def load_benchmark(config: Config) -> tuple[Benchmark, Split, Split, Split | None]:
    """The benchmark's record, the training split, the split to measure, and the one to validate on.

    Measured are the test classes, or held-out training classes; validated on are the same held-out ones, or None where
    none are held out. What is held out is not trained on.
    """
    if config.source:
        benchmark = table_benchmark(
            config.benchmark,
            Path(config.source).absolute() if Path(config.source).exists() else config.source,
            config.train_classes or None,
            config.test_classes or None,
            hub_split=config.hub_split,
            revision=config.revision or None,
        )
    else:
        benchmark = benchmarks[config.benchmark]
    splits = benchmark.splits(config.data_root)
    if not len(splits.train) and not config.stream:
        raise ConfigError(f"{benchmark.name}: test_classes={config.test_classes} leaves no class to train on")
    if config.evaluate_on == "test" and not config.validate_every:
        return benchmark, splits.train, splits.test, None
    if config.stream:
        raise ConfigError("validation holds out classes of the benchmark's training split, not of a stream")
    if config.val_folds:
        train, held_out = class_folds(splits.train, config.val_folds)[config.val_fold]
    else:
        train, held_out = hold_out_classes(splits.train, config.val_classes)
    return benchmark, train, splits.test if config.evaluate_on == "test" else held_out, held_out


@dataclass(frozen=True)
class Loading:
    """What the loop needs.

    Attributes:
        num_classes: of the labels that come.
        steps: batches in an epoch, the same on every rank.
        epoch: ``epoch(e, start)``: the batches of epoch e from the given one on, as (images, labels, indices).
        finish: what is left to do to a batch of images on the device.
    """

    num_classes: int
    steps: int
    epoch: Callable[[int, int], Iterator[Any]]
    finish: Callable[[Tensor], Tensor]


def build_loading(
    config: Config,
    train: Split,
    transform: TransformConfig,
    workers: int,
    rank: int,
    world: int,
    progress: bool,
    features: Tensor | None = None,
) -> Loading:
    """Batches of the training split, or of a stream: this rank's part of each global batch.

    With ``features`` ``(N, F)`` of the training images, batches of these instead.
    """
    if config.augment_on_device:
        on_worker, finish = build_device_transforms(transform)
    else:
        on_worker, finish = build_transforms(transform)[0], lambda images: images
    options: dict[str, Any] = {
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
        "persistent_workers": workers > 0,
        "generator": torch.Generator().manual_seed(config.seed),
    }
    if config.stream:
        return _stream(config, on_worker, finish, options, rank, world)
    if config.cache and features is None and not _is_array(train):
        train = cache_images(train, config.cache_side or 2 * transform.image_size, progress=progress)
    seeded: dict[str, Any] = {"seed": config.seed, "num_replicas": world, "rank": rank}
    sampler: ShuffleSampler | PKSampler
    if config.sampler == "pk":
        classes, rest = divmod(config.batch_size, config.images_per_class)
        if rest:
            raise ConfigError(
                f"batch_size {config.batch_size} must be a multiple of images_per_class {config.images_per_class}"
            )
        if classes > train.num_classes:
            raise ConfigError(
                f"batch_size {config.batch_size} takes {classes} classes × {config.images_per_class} images, and there "
                f"are {train.num_classes} training classes; lower batch_size, or raise images_per_class"
            )
        sampler = PKSampler(
            train.labels, classes, config.images_per_class, whole_classes=config.whole_classes, **seeded
        )
    else:
        if len(train) < config.batch_size:
            raise ConfigError(
                f"{len(train)} images do not fill one batch of {config.batch_size}; lower batch_size to a part of them"
            )
        sampler = ShuffleSampler(len(train), config.batch_size, **seeded)
    numbered = Numbered(sampler, config.batch_size)
    images: Any = DrawnImages(train, on_worker, config.seed)
    if features is not None:
        images, finish, options["num_workers"] = CachedFeatures(features, train.labels), lambda rows: rows, 0
        options["persistent_workers"] = False
    loader: Any = torch.utils.data.DataLoader(images, batch_sampler=numbered, **options)

    def epoch(number: int, start: int = 0) -> Iterator[Any]:
        numbered.set_epoch(number, start)
        return iter(loader)

    return Loading(train.num_classes, len(sampler), epoch, finish)


class CachedFeatures(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """Pooled features of a frozen backbone, computed once: item (i, n) is (features ``(F,)``, label, i)."""

    def __init__(self, features: Tensor, labels: Any) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Any) -> tuple[Tensor, int, int]:
        return self.features[index[0]], int(self.labels[index[0]]), index[0]


def _stream(config: Config, transform: Any, finish: Any, options: dict[str, Any], rank: int, world: int) -> Loading:
    stream = StreamDataset(
        config.stream,
        transform,
        config.stream_classes or None,
        split=config.hub_split,
        revision=config.revision or None,
        seed=config.seed,
        shuffle_buffer=config.shuffle_buffer,
        rank=rank,
        num_replicas=world,
    )
    loader: Any = torch.utils.data.DataLoader(stream, config.batch_size // world, **options)
    batches: list[Iterator[Any]] = []  # opened at the first epoch, and read on in the next

    def epoch(number: int, start: int = 0) -> Iterator[Any]:
        if not batches:  # after an interruption it begins anew, so what follows is not what would have followed
            batches.append(iter(loader))
        return itertools.islice(batches[0], config.steps_per_epoch - start)

    return Loading(stream.num_classes, config.steps_per_epoch, epoch, finish)


def _is_array(split: Split) -> bool:
    """Whether the images are decoded and in memory as they are."""
    images: Any = split.images
    while isinstance(images, Subset):
        images = images.images
    return isinstance(images, ArrayImages)
