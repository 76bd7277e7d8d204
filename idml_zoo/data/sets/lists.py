"""Official list files: find them, read them, and check that the images they name are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from idml_zoo.data.errors import DataError, MissingDataError
from idml_zoo.data.split import Split


def find_folder(root: Path, marker: str, is_it: Callable[[Path], bool] = Path.is_file) -> Path:
    """Returns the folder that holds ``marker``: ``root`` or one at most two levels below it, whatever its name.

    Copies in circulation call it CUB-200-2011, Standford_Online_Products, cars and so on, so the list file decides.

    Raises:
        MissingDataError: there is none.
        DataError: there are several.
    """
    patterns = (marker, f"*/{marker}", f"*/*/{marker}")
    for pattern in patterns:
        markers = sorted(p for p in root.glob(pattern) if is_it(p))
        if len(markers) > 1:
            raise DataError(
                f"several {marker} under {root.resolve()}: {', '.join(map(str, markers))}; give one's folder"
            )
        if markers:
            return markers[0].parent
    raise MissingDataError(
        f"no {marker} under {root.resolve()} (looked two folders deep); extract the official archive there"
    )


def read_rows(path: Path, columns: int) -> list[list[str]]:
    """Returns the rows of a list file, split at white space; a byte-order mark and Windows line ends are accepted.

    Raises:
        DataError: the file cannot be read, or a row has another number of columns.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); extract the official archive again") from error
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, row in rows:
        if len(row) != columns:
            raise DataError(
                f"{path}, line {number}: expected {columns} columns, found {len(row)}; not the official file"
            )
    return [row for _, row in rows]


def as_integers(values: Iterable[Any], path: Path) -> np.ndarray:
    """Returns ``(N,)`` int64; raises DataError, naming the file, where a value is not an integer."""
    try:
        return np.array([int(v) for v in values], dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: a class or index is not an integer ({error}); not the official file") from error


def read_mat(path: Path) -> dict[str, Any]:
    """Returns the content of a MATLAB 5 file, squeezed; raises DataError if it is not one."""
    from scipy.io import loadmat

    try:
        return dict(loadmat(path, squeeze_me=True))
    except (ValueError, TypeError, OSError, NotImplementedError) as error:
        raise DataError(f"{path} is not a readable annotation file ({error}); get it again") from error


def listed_split(
    base: Path,
    names: Sequence[str],
    labels: np.ndarray,
    class_names: dict[int, str] | None = None,
    queries: np.ndarray | None = None,
) -> Split:
    """Returns a split of listed files under ``base``, with labels made contiguous.

    Raises:
        DataError: files listed twice, missing or empty (how many, and the first of them); a path that leaves ``base``.
    """
    from idml_zoo.data.images import FileImages

    if len(set(names)) != len(names):
        seen: set[str] = set()
        twice = next(n for n in names if n in seen or seen.add(n))  # type: ignore[func-returns-value]
        raise DataError(f"{base}: {twice} is listed twice; the list file is not the official one")
    outside = [n for n in names if Path(n).is_absolute() or ".." in Path(n).parts]
    if outside:
        raise DataError(
            f"{base}: the list names {outside[0]}, outside of its folder; the list file is not the official one"
        )
    paths = [base / n for n in names]
    absent = [p for p in paths if not _has_content(p)]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(paths)} listed images are missing or empty under {base}, the first is "
            f"{absent[0].relative_to(base)}; the copy is incomplete: extract the official archive again"
        )
    label_values, contiguous = np.unique(labels, return_inverse=True)
    titles = tuple((class_names or {}).get(int(k), str(int(k))) for k in label_values)
    return Split(FileImages(paths), contiguous.astype(np.int64), titles, queries=queries)


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
