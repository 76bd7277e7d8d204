"""A cache of decoded images: raw pixels in one memory-mapped file, shared by loader workers and ranks.

Decoding JPEG takes most of the time of loading small fine-grained sets. The cache keeps uint8 RGB pixels, with the
shorter side bounded: images up to the bound are kept exactly, larger ones are reduced (bicubic, anti-aliased) once. It
is for training only; numbers are always measured on the originals.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from idml_zoo.data.folders import cache_folder
from idml_zoo.data.split import ImageSource, Split

_FORMAT = 1  # part of the key: raise when the layout or the reduction changes
_CHUNK = 128  # images decoded at once, which bounds what waits in memory


class CacheWarning(UserWarning):
    """The cache could not be made; images are decoded anew in every epoch instead."""


class CachedImages:
    """Decoded images: item i is a uint8 tensor ``(3, H, W)`` over mapped pixels, in channels-last memory order.

    Not an array of PIL images: what follows (crop, resize) is several times as fast on tensors, and touches only the
    pages of the crop.
    """

    def __init__(self, folder: Path, source: ImageSource) -> None:
        self.folder, self.source = folder, source
        self._open()

    def _open(self) -> None:
        self.index = np.load(self.folder / "index.npy")  # (N, 3): offset in bytes, height, width
        # copy-on-write: torch wants writable memory, and nobody writes
        self.pixels = torch.from_numpy(np.memmap(self.folder / "pixels.u8", dtype=np.uint8, mode="c"))

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "source": self.source}  # workers map the file themselves

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Tensor:
        offset, height, width = map(int, self.index[index])
        return self.pixels[offset : offset + height * width * 3].view(height, width, 3).permute(2, 0, 1)

    def encoded(self, index: int) -> bytes:
        return self.source.encoded(index)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def fingerprint(self, index: int) -> bytes:
        return self.source.fingerprint(index)


def cache_images(split: Split, side: int, folder: str | Path | None = None, progress: bool = True) -> Split:
    """Returns the same split over cached images, for training; the first call builds the cache in ``folder``.

    Safe when several processes call it at once (one builds, the others wait) and when one is killed: a cache is used
    only once it is whole.

    Args:
        split: the images.
        side: bound of the shorter side, pixels. Images within it are kept exactly. Of larger ones, crops differ from
            those of the originals by less than 3 of 255 levels on average with twice the network's 224 pixels, by less
            than 6 with 256 (two sharp photographs of shorter side 500; a test holds both).
        folder: of all caches; default ``IDML_ZOO_CACHE``, else the user's cache folder.
        progress: show a bar while building.

    Returns:
        The split over :class:`CachedImages`; the split itself, with a :class:`CacheWarning`, where the folder cannot be
        written to or the pixels would take more than 90 % of the free space.

    Raises:
        DataError: an image cannot be decoded.
    """
    from filelock import FileLock

    parent = Path(folder) if folder is not None else cache_folder()
    key = hashlib.sha256(f"{_FORMAT}/{split.fingerprint()}/{side}".encode()).hexdigest()[:16]
    cache = parent / f"images-{key}"
    if not _is_whole(cache):
        part = parent / f".images-{key}.part"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with FileLock(parent / f".images-{key}.lock"):
                if not _is_whole(cache):
                    shutil.rmtree(part, ignore_errors=True)  # left by a killed process
                    shutil.rmtree(cache, ignore_errors=True)  # damaged since
                    part.mkdir()
                    try:
                        _build(split, side, part, progress)
                        os.replace(part, cache)
                    finally:
                        shutil.rmtree(part, ignore_errors=True)
        except OSError as error:
            reason = error.strerror or error
            warnings.warn(
                f"images are decoded anew in every epoch, for no cache can be made in {parent} ({reason}); "
                "free space, bound the images lower, or choose another folder with IDML_ZOO_CACHE",
                CacheWarning,
                stacklevel=2,
            )
            return split
    return split.with_images(CachedImages(cache, split.images))  # type: ignore[arg-type]


def _is_whole(home: Path) -> bool:
    try:
        index = np.load(home / "index.npy")
        offset, height, width = index[-1]
        return (home / "pixels.u8").stat().st_size == offset + height * width * 3
    except (OSError, ValueError, EOFError, IndexError):
        return False


def _build(split: Split, side: int, folder: Path, progress: bool) -> None:
    from rich.progress import track

    index = np.empty((len(split), 3), dtype=np.int64)
    offset = 0
    with (folder / "pixels.u8").open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        images = track(
            _decoded(split, side, pool), "decoding once", total=len(split), transient=True, disable=not progress
        )
        for i, pixels in enumerate(images):
            index[i] = offset, *pixels.shape[:2]
            offset += pixels.nbytes
            if i == min(_CHUNK, len(split)) - 1:
                _check_space(folder, offset * len(split) // (i + 1))
            file.write(pixels.data)
    np.save(folder / "index.npy", index)


def _check_space(folder: Path, expected: int) -> None:
    """Refuses early, for a full disk stops everything else on the machine too."""
    free = shutil.disk_usage(folder).free
    if expected > 0.9 * free:
        raise OSError(28, f"about {expected / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


def _decoded(split: Split, side: int, pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
    for start in range(0, len(split), _CHUNK):
        yield from pool.map(_pixels, repeat(split.images), repeat(side), range(start, min(start + _CHUNK, len(split))))


def _pixels(images: ImageSource, side: int, index: int) -> np.ndarray:
    """``(H, W, 3)`` uint8, the shorter side at most ``side``."""
    from PIL import Image

    image = images[index]
    ratio = side / min(image.size)
    if ratio < 1:
        size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.ascontiguousarray(image)
