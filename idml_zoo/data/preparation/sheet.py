"""A contact sheet: images of some classes of a benchmark as one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from idml_zoo.data.errors import DataError
from idml_zoo.data.split import Split

if TYPE_CHECKING:
    from PIL.Image import Image

_MARGIN, _TEXT = 4, 16  # pixels


def contact_sheet(split: Split, classes: int = 8, images: int = 8, size: int = 112, seed: int = 0) -> Image:
    """Returns a picture with a row for each of some classes: its name above some of its images, whole, on squares.

    Queries have a red frame where the benchmark fixes them.

    Args:
        split: the images.
        classes: number of rows; the classes are drawn evenly from the split.
        images: number of columns; a class with fewer leaves its row short. Drawn with ``seed``.
        size: of a square, pixels.

    Raises:
        DataError: classes, images or size below 1; an image that cannot be decoded.
    """
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    if min(classes, images, size) < 1:
        raise DataError(f"classes, images and size must be at least 1, got {classes}, {images} and {size}")
    chosen = np.unique(np.linspace(0, split.num_classes - 1, min(classes, split.num_classes)).astype(int))
    step, row_height = size + _MARGIN, size + _MARGIN + _TEXT
    sheet = Image.new("RGB", (_MARGIN + images * step, _MARGIN + len(chosen) * row_height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, label in enumerate(chosen):
        top = _MARGIN + row * row_height
        members = np.flatnonzero(split.labels == label)
        drawn = np.sort(np.random.default_rng([seed, int(label)]).permutation(members)[:images])
        draw.text((_MARGIN, top), f"{split.class_names[label]}  ({len(members)} images)", fill="black", font=font)
        for column, index in enumerate(drawn):
            corner = (_MARGIN + column * step, top + _TEXT)
            tile = ImageOps.pad(split.images[int(index)], (size, size), color="#dddddd")
            sheet.paste(tile, corner)
            is_query = split.queries is not None and bool(split.queries[index])
            frame = (*corner, corner[0] + size - 1, corner[1] + size - 1)
            draw.rectangle(frame, outline="#d02020" if is_query else "#cccccc", width=2 if is_query else 1)
    return sheet
