"""Class numbers as people write them: "0-99", "0-9,20" or a list. Imports no numpy until an array is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from idml_zoo.data.errors import DataError

if TYPE_CHECKING:
    import numpy as np


def class_numbers(classes: str | Sequence[int]) -> list[int]:
    """Returns the class numbers of "0-2,7" or [0, 1, 2, 7]; raises DataError where the text is neither."""
    if not isinstance(classes, str):
        return [int(c) for c in classes]
    try:
        ends = [part.strip().partition("-") for part in classes.split(",")]
        return [c for first, _, last in ends for c in range(int(first), int(last or first) + 1)]
    except ValueError as error:
        raise DataError(f"classes must look like '0-99' or '0-9,20', got {classes!r}") from error


def class_range(classes: str | Sequence[int], count: int) -> np.ndarray:
    """Returns the class numbers as an int64 array.

    Args:
        classes: as for :func:`class_numbers`.
        count: number of classes there are.

    Raises:
        DataError: a number that is not in [0, count), or one that comes twice.
    """
    import numpy as np

    numbers = class_numbers(classes)
    outside = [c for c in numbers if not 0 <= c < count]
    if outside or len(set(numbers)) != len(numbers):
        raise DataError(
            f"classes {classes!r}: must be different numbers in 0–{count - 1}"
            + (f"; {outside[0]} is not" if outside else "")
        )
    return np.array(numbers, dtype=np.int64)
