"""Image sources: files, encoded bytes, arrays. And the torch data set over a split."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from idml_zoo.data.errors import BrokenImageError
from idml_zoo.data.split import Split

# common formats of photographs; not those for which PIL starts other programs or rare parsers
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")
FORMATS += ("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()
MAX_RATIO = 100  # of the sides
MAX_PIXELS = 89_478_485  # where PIL too suspects a decompression bomb: a quarter of a GiB, decoded


def _to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image of any PIL mode as RGB: 16 bits are scaled to 8 (PIL would clip them), alpha is dropped."""
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("pixels are floats, whose range is not known; save it with 8 or 16 bits a channel")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _whole(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}×{height} pixels; at most {MAX_PIXELS:,} are decoded")
    if max(width, height) > MAX_RATIO * min(width, height):  # resized by its shorter side it would be immense
        raise ValueError(f"{width}×{height} pixels: more than {MAX_RATIO} times as long as wide")
    if min(width, height) < 2:
        raise ValueError(f"{width}×{height} pixels: a placeholder, no photograph")
    image.load()
    return _to_rgb(ImageOps.exif_transpose(image))


def decode(stream: Any, name: str) -> Image.Image:
    """Returns an RGB image, decoded whole (a truncated file fails here), upright by its EXIF tag.

    Args:
        stream: a file, a stream, or an image of PIL that is not loaded yet.
        name: for the error.

    Raises:
        BrokenImageError: not an image of :data:`FORMATS`, truncated, larger than 89 million pixels, one pixel wide or
            high, more than 100 times as long as wide, or floats.
    """
    try:
        if isinstance(stream, Image.Image):
            return _whole(stream)
        with Image.open(stream, formats=FORMATS) as image:
            return _whole(image)
    except (
        *(OSError, SyntaxError, ValueError, MemoryError, struct.error, IndexError, KeyError, TypeError, AttributeError),
        *(RuntimeError, EOFError, OverflowError, AssertionError),
        *(zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
    ) as error:  # hostile headers make PIL's parsers fail in all these ways
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None)
        raise BrokenImageError(name, str(reason or error)) from error


@dataclass(frozen=True)
class FileImages:
    """Image files, by path."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return decode(self.paths[index], self.name(index))

    def encoded(self, index: int) -> bytes:
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise BrokenImageError(self.name(index), f"{error.strerror}; the copy is incomplete") from error

    def name(self, index: int) -> str:  # names that are not UTF-8 are shown and stored too
        return str(self.paths[index]).encode("utf-8", "backslashreplace").decode()

    def fingerprint(self, index: int) -> bytes:
        return hashlib.sha256(self.encoded(index)).digest()


@dataclass(frozen=True)
class EncodedImages:
    """Encoded images in memory or memory-mapped (a Parquet or Arrow column), with their names."""

    column: Any  # sequence of bytes
    names: Sequence[str]
    files: Sequence[str | None] = ()  # the file of an image whose bytes are null, as in data sets of the Hub
    within: Sequence[str] = ()  # folders that may hold such files: a stranger's table must not read others

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, index: int) -> bytes:
        value = self.column[index]
        data = value.as_py() if hasattr(value, "as_py") else value
        if data is None and self.files and self.files[index]:
            file = Path(str(self.files[index])).resolve()
            if not file.is_file() or not any(file.is_relative_to(Path(f).resolve()) for f in self.within):
                raise BrokenImageError(self.name(index), "no bytes, and no file in the cache of the Hub")
            try:
                return file.read_bytes()
            except OSError as error:
                raise BrokenImageError(self.name(index), str(error.strerror)) from error
        if data is None:
            raise BrokenImageError(self.name(index), "no bytes: the table was written without embedding its images")
        return data

    def __getitem__(self, index: int) -> Image.Image:
        return decode(io.BytesIO(self.encoded(index)), self.name(index))

    def name(self, index: int) -> str:
        return self.names[index]

    def fingerprint(self, index: int) -> bytes:
        return hashlib.sha256(self.encoded(index)).digest()


@dataclass(frozen=True)
class ArrayImages:
    """Grey images as one ``(N, H, W)`` uint8 array."""

    array: np.ndarray
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index]).convert("RGB")

    def encoded(self, index: int) -> bytes:
        out = io.BytesIO()
        Image.fromarray(self.array[index]).save(out, "PNG")
        return out.getvalue()

    def name(self, index: int) -> str:
        return self.names[index]

    def fingerprint(self, index: int) -> bytes:
        return hashlib.sha256(self.array[index].tobytes()).digest()


@dataclass(frozen=True)
class LoadedImages:
    """PIL images that are in memory."""

    images: Sequence[Image.Image]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return decode(self.images[index], self.name(index))

    def encoded(self, index: int) -> bytes:
        out = io.BytesIO()
        self.images[index].save(out, "PNG")
        return out.getvalue()

    def name(self, index: int) -> str:
        return f"image {index}"

    def fingerprint(self, index: int) -> bytes:
        return hashlib.sha256(self.encoded(index)).digest()


class ImageDataset(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """A split as a torch data set: item i is (image ``(3, H, W)``, label, i).

    Args:
        split: the images, with labels.
        transform: image (PIL, or uint8 ``(3, H, W)`` where the split's images are cached) to tensor.
    """

    def __init__(self, split: Split, transform: Callable[[Any], Tensor]) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(self.split.images[index]), int(self.split.labels[index]), index


class DrawnImages(ImageDataset):
    """A split whose augmentation depends on nothing but a seed and the number of the draw.

    Item ``(i, n)``, as :class:`~idml_zoo.data.loading.sampler.Numbered` yields them, is (image i as draw n augments it,
    label, i): the same with any number of loader workers and processes, and in a run that was interrupted.

    Args:
        split, transform: as in :class:`ImageDataset`; the transform draws from torch's global generator.
        seed: 0 or more.
    """

    def __init__(self, split: Split, transform: Callable[[Any], Tensor], seed: int) -> None:
        super().__init__(split, transform)
        self.seed = seed

    def __getitem__(self, index: Any) -> tuple[Tensor, int, int]:
        image, draw = index
        before = torch.get_rng_state()
        # of the CPU alone: torch.manual_seed would queue a call for each GPU in every worker
        torch.default_generator.manual_seed(_mixed(self.seed, draw))
        try:
            return super().__getitem__(image)
        finally:
            torch.set_rng_state(before)


def _mixed(seed: int, draw: int) -> int:
    """Returns 63 bits mixed by splitmix64, as a Mersenne twister's consecutive seeds give similar streams."""
    value = (seed * 0x9E3779B97F4A7C15 + draw + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return (value ^ value >> 31) >> 1
