"""Cars196: classes 1–98 train, 99–196 test, over the union of both official halves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from idml_zoo.data.errors import DataError, MissingDataError
from idml_zoo.data.sets.lists import as_integers, find_folder, listed_split, read_mat
from idml_zoo.data.split import Splits

_UNION = "cars_annos.mat"
_TRAIN, _TEST = "cars_train_annos.mat", "cars_test_annos_withlabels.mat"


def load_cars196(root: Path) -> Splits:
    """``cars_annos.mat`` with ``car_ims/``, or the devkit's two annotation files with ``cars_train/``, ``cars_test/``.

    The devkit's own ``cars_test_annos.mat`` has no labels: its ``…_withlabels.mat`` is what is needed.
    """
    try:
        base = find_folder(root, _UNION)
    except MissingDataError as error:
        if not _find(root, _TRAIN):
            raise MissingDataError(f"{error}; or put the devkit's {_TRAIN} and {_TEST} beside its images") from error
        base, names, classes, titles = _devkit(root)
    else:
        content = read_mat(base / _UNION)
        names, classes = _fields(content, "relative_im_path", base / _UNION)
        titles = _titles(content, base / _UNION)
    chosen = np.array(names)
    train, test = classes <= 98, classes > 98
    return Splits(
        listed_split(base, chosen[train].tolist(), classes[train], titles),
        listed_split(base, chosen[test].tolist(), classes[test], titles),
        str(base),
    )


def _find(root: Path, name: str) -> Path | None:
    """A file anywhere up to two folders below root; the first in the order of paths."""
    paths = [p for pattern in (name, f"*/{name}", f"*/*/{name}") for p in sorted(root.glob(pattern))]
    return paths[0] if paths else None


def _devkit(root: Path) -> tuple[Path, list[str], np.ndarray, dict[int, str]]:
    names: list[str] = []
    classes = []
    for listing, folder in ((_TRAIN, "cars_train"), (_TEST, "cars_test")):
        path = _find(root, listing)
        if path is None:
            hint = ""
            if _find(root, "cars_test_annos.mat"):
                hint = "; cars_test_annos.mat is there, but has no labels: the file with labels was published apart"
            raise DataError(f"no {listing} under {root.resolve()}{hint}")
        files, labels = _fields(read_mat(path), "fname", path)
        first = _find(root, f"{folder}/{files[0]}")  # mirrors nest cars_train/cars_train
        if first is None:
            raise DataError(f"no {folder}/{files[0]} under {root.resolve()}; extract {folder}.tgz there")
        names += [str((first.parent / f).relative_to(root)) for f in files]
        classes.append(labels)
    meta = _find(root, "cars_meta.mat")
    return root, names, np.concatenate(classes), _titles(read_mat(meta), meta) if meta else {}


def _fields(content: dict, column: str, path: Path) -> tuple[list[str], np.ndarray]:
    try:
        records = np.atleast_1d(content["annotations"])
        return [str(n) for n in records[column]], as_integers(records["class"], path)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise DataError(f"{path} is not the Cars196 annotation file ({error}); get it again") from error


def _titles(content: dict, path: Path) -> dict[int, str]:
    try:
        return {i: str(n) for i, n in enumerate(np.atleast_1d(content["class_names"]), 1)}
    except KeyError as error:
        raise DataError(f"{path} has no class_names; get it again") from error
