"""From images to embeddings, in order, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from idml_zoo.data.errors import DataError
from idml_zoo.data.images import FileImages, ImageDataset, LoadedImages
from idml_zoo.data.split import ImageSource, Split
from idml_zoo.data.transforms import TransformConfig, build_evaluation_parts
from idml_zoo.distributed import gather_dealt, rank_and_count
from idml_zoo.evaluation.embedders import as_embedder
from idml_zoo.types import Embedding


def default_device() -> torch.device:
    """The first CUDA device, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def as_device(device: torch.device | str | None) -> torch.device:
    """The device itself, :func:`default_device` for None; ValueError where this machine has none like it."""
    if device is None:
        return default_device()
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"no device {device!r} here ({reason}); leave it out for the best there is") from error
    return chosen


@dataclass(frozen=True)
class Compute:
    """How embeddings are computed; it does not change what they are but for rounding.

    Attributes:
        batch_size: images at once.
        workers: processes that decode images, 0 for none beside this one.
        device: where to compute; None for :func:`default_device`.
        progress: show a bar.
    """

    batch_size: int = 64
    workers: int = 0
    device: torch.device | str | None = None
    progress: bool = True


def _untouched(image: Any) -> Any:
    return image


def _as_lists(items: list[tuple[Any, int, int]]) -> tuple[list[Any], ...]:
    return tuple(list(part) for part in zip(*items, strict=True))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class MeasuredSplit:
    """A split to measure, and what of it is there already.

    Attributes:
        split: labelled images.
        name: of the split, for the protocol: "test", or "validation" while developing.
        embedding: of the split by this model, where it is there already (for a second similarity); None to compute it.
        seconds: that the embedding took, which count as evaluation.
    """

    split: Split
    name: str = "test"
    embedding: Embedding | None = None
    seconds: float = 0.0


def embed(
    model: Any,
    images: Any,
    transform: TransformConfig | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    share: bool = False,
) -> Embedding:
    """Embeds images with a model: N images to an Embedding of N rows, float32, in the same order, on the CPU.

    Args:
        model: a model of the zoo, a timm network, a callable of ``(B, 3, S, S)`` images, or an object with
            ``encode(list of PIL images)``; see :func:`~idml_zoo.evaluation.embedders.as_embedder`. The modes of its
            modules are put back afterwards; it stays on ``device``, in ``channels_last``.
        images: image files (a path or several), a folder of images at any depth (in the order of sorted paths), PIL
            images, or a :class:`~idml_zoo.data.split.Split`.
        transform: preprocessing, of which the evaluation side is taken; None for the model's own.
        batch_size: images at once.
        workers: processes that decode images, 0 for none beside this one.
        device: where to compute; None for the first CUDA device, else Apple's, else the CPU.
        progress: show a bar.
        share: every process of torch.distributed embeds its part (all must call), and all get the whole: each image
            once, however many processes there are.

    Raises:
        DataError: no image there, or one that cannot be decoded; it names the file.
        TypeError: something that is neither a model nor images.
        ValueError: an embedding has NaN, inf or no unit norm.
    """
    model = as_embedder(model, transform)
    compute = Compute(batch_size, workers, device, progress)
    return embed_split(model, as_split(images), transform or model.transform, compute, share)


def as_split(images: Any) -> Split | Unlabelled:
    """Returns a split as it is; files, a folder or PIL images as images that belong to no class."""
    from PIL.Image import Image

    if isinstance(images, Split):
        return images
    if isinstance(images, (str, Path)):
        from idml_zoo.data.table import find_images

        path = Path(images)
        if not path.exists():
            raise DataError(f"no file or folder {path}")
        images = find_images(path) if path.is_dir() else [path]
        if not images:
            raise DataError(f"{path} has no image files")
    if not isinstance(images, Sequence) or not images:
        raise TypeError(f"images must be a Split, a folder, image files or PIL images, got {type(images).__name__}")
    if all(isinstance(i, Image) for i in images):
        return Unlabelled(LoadedImages(images))
    if not all(isinstance(i, (str, Path)) for i in images):
        raise TypeError(f"images must be all paths or all PIL images, got {type(images[0]).__name__} first")
    return Unlabelled(FileImages([Path(i) for i in images]))


class Unlabelled:
    """Images without classes: what embedding needs of a :class:`~idml_zoo.data.split.Split`.

    Attributes:
        images: N images.
        labels: ``(N,)`` zeros, which nobody reads.
    """

    def __init__(self, images: ImageSource) -> None:
        self.images, self.labels = images, np.zeros(len(images), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.images)


@torch.no_grad()
def embed_split(
    model: nn.Module,
    split: Split | Unlabelled,
    transform: TransformConfig | None,
    compute: Compute,
    share: bool = False,
) -> Embedding:
    """Embeds a split; as :func:`embed`, of which it is the part that computes.

    Args:
        model: returns an Embedding for ``(B, 3, S, S)`` images.
        split: the images.
        transform: preprocessing; None: the model gets lists of PIL images.
        compute: how.
        share: see :func:`embed`.
    """
    from rich.progress import track

    device = as_device(compute.device)
    as_pixels, as_floats = (_untouched, _untouched) if transform is None else build_evaluation_parts(transform)
    rank, world = rank_and_count() if share else (0, 1)
    images: Any = ImageDataset(split, as_pixels)  # type: ignore[arg-type]
    total = len(images)
    loader: Any = DataLoader(
        images if world == 1 else torch.utils.data.Subset(images, range(rank, total, world)),
        compute.batch_size,
        num_workers=compute.workers,
        pin_memory=device.type == "cuda" and transform is not None,
        collate_fn=_as_lists if transform is None else None,
    )
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts: list[Embedding] = []
    with evaluating(model):
        for batch, _, _ in track(loader, description="embedding", transient=True, disable=not compute.progress):
            if transform is not None:
                batch = as_floats(batch.to(device, non_blocking=True))
                batch = batch.to(memory_format=torch.channels_last)
            parts.append(model(batch).to("cpu", torch.float32))
    if world == 1:
        return Embedding.cat(parts).check_values()
    if not parts:  # fewer images than processes
        raise ValueError(f"{total} images cannot be shared out over {world} processes; measure with fewer")
    return Embedding.cat(parts).map(lambda rows: gather_dealt(rows.to(device), total).cpu()).check_values()
