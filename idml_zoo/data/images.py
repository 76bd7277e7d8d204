"""Image sources: files, encoded bytes, arrays. And the torch data set over a split."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from idml_zoo.data.errors import DataError
from idml_zoo.data.split import Split


def _decode(stream: Any, name: str) -> Image.Image:
    """Decodes fully (a truncated file fails here, not in a worker), turns by EXIF, converts to RGB."""
    try:
        with Image.open(stream) as image:
            image.load()
            turned = ImageOps.exif_transpose(image)
            return turned if turned.mode == "RGB" else turned.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image {name} cannot be read ({error}); repair it, or remove it and its label") from error


@dataclass(frozen=True)
class FileImages:
    """Image files, by path."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return _decode(self.paths[index], self.name(index))

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def fingerprint(self, index: int) -> bytes:
        """Name and size: reading every byte of a large benchmark at each start would cost minutes."""
        path = self.paths[index]
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(
                f"image {path} is listed but cannot be read ({error.strerror}); the copy is incomplete"
            ) from error
        return f"{path.parent.name}/{path.name}:{size}\n".encode()


@dataclass(frozen=True)
class EncodedImages:
    """Encoded images in memory (a Parquet or Arrow column), with their names."""

    encoded: Any  # sequence of bytes
    names: Sequence[str]
    files: Sequence[str | None] = ()  # where bytes are null: the file, as data sets of the Hub have it

    def __len__(self) -> int:
        return len(self.names)

    def _bytes(self, index: int) -> bytes:
        value = self.encoded[index]
        data = value.as_py() if hasattr(value, "as_py") else value
        if data is None and self.files and self.files[index]:
            try:
                return Path(str(self.files[index])).read_bytes()
            except OSError as error:
                raise DataError(f"image {self.name(index)} cannot be read ({error.strerror})") from error
        if data is None:
            raise DataError(
                f"image {self.name(index)} has no bytes; the table was written without embedding its images"
            )
        return data

    def __getitem__(self, index: int) -> Image.Image:
        return _decode(io.BytesIO(self._bytes(index)), self.name(index))

    def name(self, index: int) -> str:
        return self.names[index]

    def fingerprint(self, index: int) -> bytes:
        return hashlib.sha256(self._bytes(index)).digest()


@dataclass(frozen=True)
class ArrayImages:
    """Grey images as one ``(N, H, W)`` uint8 array."""

    array: np.ndarray
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index]).convert("RGB")

    def name(self, index: int) -> str:
        return self.names[index]

    def fingerprint(self, index: int) -> bytes:
        return hashlib.sha256(self.array[index].tobytes()).digest()


class ImageDataset(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """A split as a torch data set: item i is (image ``(3, H, W)``, label, i).

    Args:
        split: the images.
        transform: PIL image to tensor.
    """

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(self.split.images[index]), int(self.split.labels[index]), index
