"""Images to embeddings, in order, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from idml_zoo.data.images import ImageDataset
from idml_zoo.data.split import Split
from idml_zoo.data.transforms import TransformConfig, build_evaluation_parts
from idml_zoo.distributed import gather_dealt, rank_and_count
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
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"no device {device!r} here ({reason}); leave it out for the best there is") from error
    return found


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


@torch.no_grad()
def embed(
    model: nn.Module,
    split: Split,
    transform: TransformConfig | None,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    share: bool = False,
) -> Embedding:
    """The float32 embedding of every image of a split, in the split's order, on the CPU.

    Args:
        model: returns an Embedding for ``(B, 3, S, S)``; the modes of its modules are put back afterwards; it stays
            on ``device``, in ``channels_last``.
        split: the images.
        transform: preprocessing; the evaluation side of it. None: the model gets lists of PIL images.
        batch_size, workers: of the loader.
        device: where to compute; None for :func:`default_device`.
        progress: show a bar.
        share: every process of torch.distributed embeds its part (all must call), and all get the whole: each image
            once, however many processes there are.

    Raises:
        DataError: an image cannot be decoded.
        ValueError: an embedding has NaN, inf or no unit norm.
    """
    from rich.progress import track

    device = as_device(device)
    as_pixels, as_floats = (_untouched, _untouched) if transform is None else build_evaluation_parts(transform)
    rank, world = rank_and_count() if share else (0, 1)
    mine = ImageDataset(split, as_pixels)
    loader: Any = DataLoader(
        mine if world == 1 else torch.utils.data.Subset(mine, range(rank, len(mine), world)),
        batch_size,
        num_workers=workers,
        pin_memory=device.type == "cuda" and transform is not None,
        collate_fn=_as_lists if transform is None else None,
    )
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts: list[Embedding] = []
    with evaluating(model):
        for images, _, _ in track(loader, description="embedding", transient=True, disable=not progress):
            if transform is not None:
                images = as_floats(images.to(device, non_blocking=True))
                images = images.to(memory_format=torch.channels_last)
            parts.append(model(images).to("cpu", torch.float32))
    if world == 1:
        return Embedding.cat(parts).check_values()
    if not parts:  # fewer images than processes
        raise ValueError(f"{len(mine)} images cannot be shared out over {world} processes; measure with fewer")
    whole = Embedding.cat(parts)._map(lambda rows: gather_dealt(rows.to(device), len(mine)).cpu())
    return whole.check_values()
