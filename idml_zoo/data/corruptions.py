"""Corrupted images at severities 1 to 5, to measure retrieval on worse input, on any benchmark.

Strengths are ImageNet-C's (Hendrycks & Dietterich, ICLR 2019, arXiv:1903.12261; the authors' make_imagenet_c.py) where
it has the corruption; occlusion is ours. Unlike theirs, results are rounded to uint8, not cut off, and are not written
to disk as JPEG of quality 85. They resize the shorter side to 256 pixels, crop 224 and corrupt: so blur's σ is in
pixels of a shorter side of 256, and grows with the side here; the other strengths do not depend on the size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from idml_zoo.data.errors import DataError
from idml_zoo.data.split import ImageSource, Split
from idml_zoo.registry import unknown_name

_REFERENCE_SIDE = 256  # pixels: the shorter side that a σ in pixels is for
_RECIPE = "1"  # raise when a corruption's pixels change: it is part of every fingerprint
_RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("bilinear", "bicubic", "nearest", "lanczos")}
_Recipe = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _unit(image: Image.Image) -> np.ndarray:
    """Returns ``(H, W, 3)`` float32 in [0, 1]."""
    return np.asarray(image, dtype=np.float32) / 255


def _image(pixels: np.ndarray) -> Image.Image:
    """Returns the image of ``(H, W, 3)`` floats, clipped to [0, 1]."""
    return Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))


def _blur(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian of ``sigma`` pixels at the reference side; Pillow's three box passes come close to it but at borders."""
    return image.filter(ImageFilter.GaussianBlur(sigma * min(image.size) / _REFERENCE_SIDE))


def _noise(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Independent normal noise of standard deviation ``sigma`` (of range 1) in each pixel and channel."""
    pixels = _unit(image)
    return _image(pixels + sigma * rng.standard_normal(pixels.shape, dtype=np.float32))


def _jpeg(image: Image.Image, quality: float, rng: np.random.Generator) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=int(quality), comment=b"")  # a file's own long comment would make Pillow refuse
    with Image.open(out) as decoded:
        return decoded.convert("RGB")


def _brightness(image: Image.Image, amount: float, rng: np.random.Generator) -> Image.Image:
    """HSV value + ``amount``, at most 1. With hue and saturation kept, RGB grows in proportion; black turns grey."""
    pixels = np.maximum(_unit(image), 1e-6)  # so that black has a proportion too
    value = pixels.max(axis=2, keepdims=True)
    return _image(pixels * (np.minimum(value + amount, 1) / value))


def _contrast(image: Image.Image, factor: float, rng: np.random.Generator) -> Image.Image:
    """Distances from each channel's mean, times ``factor``."""
    pixels = _unit(image)
    means = pixels.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    return _image(factor * pixels + (1 - factor) * means)


def _occlusion(image: Image.Image, area: float, rng: np.random.Generator) -> Image.Image:
    """A rectangle of one colour, each side √``area`` of the image's (rounded, at least 1 pixel), uniformly placed.

    What is drawn does not depend on ``area``; with the same draws a larger rectangle contains a smaller one.
    """
    (x, y), colour = rng.random(2), rng.integers(0, 256, 3)
    width, height = (max(1, round(area**0.5 * side)) for side in image.size)
    left, top = int(x * (image.width - width + 1)), int(y * (image.height - height + 1))
    out = image.copy()
    out.paste((int(colour[0]), int(colour[1]), int(colour[2])), (left, top, left + width, top + height))
    return out


def _downscale(image: Image.Image, factor: float, rng: np.random.Generator) -> Image.Image:
    """ImageNet-C's "pixelate": each side times ``factor`` (rounded down, at least 1 pixel) and back, by box filters."""
    small = image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BOX)


# What each corruption does, and its strengths at severities 1 to 5. A kind's place in this order seeds its random
# numbers: add new ones at the end.
_KINDS: dict[str, tuple[_Recipe, tuple[float, ...]]] = {
    "blur": (_blur, (1, 2, 3, 4, 6)),  # σ, pixels of an image of shorter side 256
    "noise": (_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),  # σ, of range 1
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),  # quality
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),  # added to HSV value
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),  # factor around the mean
    "occlusion": (_occlusion, (0.1, 0.2, 0.3, 0.4, 0.5)),  # of the image's area; ours, not ImageNet-C's
    "downscale": (_downscale, (0.6, 0.5, 0.4, 0.3, 0.25)),  # of each side
}
CORRUPTIONS: tuple[str, ...] = tuple(_KINDS)


def _check(kind: str, severity: int) -> None:
    if kind not in _KINDS:
        raise unknown_name("corruption", kind, _KINDS)
    if severity not in range(1, 6):
        raise DataError(f"severity must be 1, 2, 3, 4 or 5, got {severity}; for clean images, leave the split as it is")


def corrupt_image(image: Image.Image, kind: str, severity: int, rng: np.random.Generator) -> Image.Image:
    """Returns a corrupted copy of an RGB ``image``, of the same size.

    Blur, occlusion and downscale scale with the image's sides; noise is per pixel and JPEG's blocks are 8×8 pixels.
    Only "noise" and "occlusion" draw from ``rng``, the same numbers at each severity.

    Raises:
        UnknownNameError: ``kind`` is not one of ``CORRUPTIONS``.
        DataError: ``severity`` is not 1 (weakest) to 5.
    """
    _check(kind, severity)
    recipe, strengths = _KINDS[kind]
    return recipe(image, strengths[severity - 1], rng)


def _resized(image: Image.Image, side: int, interpolation: str) -> Image.Image:
    shorter, longer = side, int(side * max(image.size) / min(image.size))
    size = (shorter, longer) if image.width <= image.height else (longer, shorter)
    return image if size == image.size else image.resize(size, _RESAMPLING[interpolation])


class RememberedImages:
    """Images resized to one shorter side, each once: an ImageSource for several passes in one process.

    As :class:`CorruptedImages` would resize them, so its images over these are those over the originals.

    Args:
        images: N RGB images.
        side, interpolation: as in :class:`CorruptedImages`.
        memory: bytes of pixels to keep, of the images that are read first; the others are decoded each time.
    """

    def __init__(self, images: ImageSource, side: int, interpolation: str = "bilinear", memory: int = 2 << 30) -> None:
        self.images, self.side, self.interpolation = images, side, interpolation
        self._room, self._kept = memory, dict[int, np.ndarray]()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        if (kept := self._kept.get(index)) is not None:
            return Image.fromarray(kept)
        image = _resized(self.images[index], self.side, self.interpolation)
        pixels = np.asarray(image)
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[index] = pixels
        return image

    def encoded(self, index: int) -> bytes:
        return self.images.encoded(index)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def fingerprint(self, index: int) -> bytes:
        return self.images.fingerprint(index)


@dataclass(frozen=True)
class CorruptedImages:
    """Images resized to one shorter side, then corrupted in those pixels: an ImageSource.

    ImageNet-C corrupts after down-scaling too; a severity then means the same whatever an original's resolution. With
    ``side = round(image_size / crop_fraction)`` and the same interpolation, the evaluation transform's own resize
    finds nothing left to do.

    Image i's random numbers are a function of (``seed``, ``kind``, i) alone, never of order, worker or time (a new
    NumPy may draw others), and the same at each severity, so that an occluder only grows. "Image i" is the position in
    ``images``: with a ``Subset``, the row in that, so an image that is in two splits may be corrupted differently.

    Attributes:
        images: N clean RGB images.
        kind: one of ``CORRUPTIONS``.
        severity: 1 (weakest) to 5.
        side: the shorter side, pixels, ≥ 1; the longer one is ``int(side * longer / shorter)``, as in torchvision's
            Resize. An image that has this side already is not resized.
        seed: ≥ 0.
        interpolation: "bilinear", "bicubic", "nearest" or "lanczos".

    Unknown names are an UnknownNameError, numbers out of range a DataError.
    """

    images: ImageSource
    kind: str
    severity: int
    side: int
    seed: int = 0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        _check(self.kind, self.severity)
        if self.side < 1:
            raise DataError(f"side must be ≥ 1 pixel, got {self.side}; use round(image_size / crop_fraction)")
        if self.seed < 0:
            raise DataError(f"seed must be ≥ 0, got {self.seed}; any other number will do")
        if self.interpolation not in _RESAMPLING:
            raise unknown_name("interpolation", self.interpolation, _RESAMPLING)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        index = range(len(self))[index]  # -1 and N - 1 are the same image
        image = _resized(self.images[index], self.side, self.interpolation)
        rng = np.random.default_rng([self.seed, CORRUPTIONS.index(self.kind), index])
        return corrupt_image(image, self.kind, self.severity, rng)

    def encoded(self, index: int) -> bytes:
        """Returns the corrupted image as PNG, which loses nothing."""
        out = io.BytesIO()
        Image.fromarray(np.asarray(self[index])).save(out, "PNG")  # the pixels alone, no colour profile
        return out.getvalue()

    def name(self, index: int) -> str:
        return f"{self.images.name(index)} ({self.kind}, severity {self.severity}, at {self.side} pixels)"

    def fingerprint(self, index: int) -> bytes:
        """Returns the sha256 of the clean image's fingerprint and of every parameter of its corruption."""
        parameters = (
            _RECIPE,
            self.kind,
            self.severity,
            self.side,
            self.seed,
            self.interpolation,
            range(len(self))[index],
        )
        return hashlib.sha256(self.images.fingerprint(index) + " ".join(map(str, parameters)).encode()).digest()


def corrupt(split: Split, kind: str, severity: int, side: int, seed: int = 0, interpolation: str = "bilinear") -> Split:
    """Returns ``split`` over :class:`CorruptedImages`, which has the errors; labels and class names stay."""
    return dataclasses.replace(split, images=CorruptedImages(split.images, kind, severity, side, seed, interpolation))
