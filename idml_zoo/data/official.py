"""CUB-200-2011, Cars196 and Stanford Online Products in their official, extracted layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from idml_zoo.data.errors import DataError
from idml_zoo.data.split import Split, Splits


def _find(root: Path, *candidates: str) -> Path:
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    raise DataError(f"no {' or '.join(candidates)} under {root.resolve()}; extract the official archive there")


def _lines(path: Path, columns: int) -> list[list[str]]:
    rows = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise DataError(f"{path}, line {number}: expected {columns} columns, found {len(row)}")
    return rows


def _split(root: Path, names: list[str], labels: np.ndarray, class_names: dict[int, str]) -> Split:
    from idml_zoo.data.images import FileImages

    known = np.unique(labels)
    titles = tuple(class_names.get(int(k), str(int(k))) for k in known)
    return Split(FileImages([root / n for n in names]), np.searchsorted(known, labels), titles)


def _by_class(root: Path, names: list[str], labels: np.ndarray, first_test: int, class_names: dict[int, str]) -> Splits:
    train = [n for n, y in zip(names, labels, strict=True) if y < first_test]
    test = [n for n, y in zip(names, labels, strict=True) if y >= first_test]
    if not train or not test:
        raise DataError(f"{root}: all images lie on one side of class {first_test}; the list files are incomplete")
    return Splits(
        _split(root, train, labels[labels < first_test], class_names),
        _split(root, test, labels[labels >= first_test], class_names),
    )


def load_cub(root: Path) -> Splits:
    """``CUB_200_2011/images.txt, image_class_labels.txt, images/``: classes 1–100 train, 101–200 test."""
    base = _find(root, "CUB_200_2011", "images.txt")
    base = base if base.is_dir() else root
    images = dict(_lines(_find(base, "images.txt"), 2))
    labels = dict(_lines(_find(base, "image_class_labels.txt"), 2))
    if images.keys() != labels.keys():
        raise DataError(
            f"{base}: images.txt lists {len(images)} images, image_class_labels.txt {len(labels)}; damaged copy"
        )
    names = list(images.values())
    class_names = {int(n.split(".", 1)[0]): n.split("/", 1)[0].split(".", 1)[1] for n in names}
    return _by_class(base / "images", names, np.array([int(labels[i]) for i in images]), 101, class_names)


def load_cars196(root: Path) -> Splits:
    """``cars_annos.mat`` and ``car_ims/``: classes 1–98 train, 99–196 test."""
    from scipy.io import loadmat

    base = root if (root / "cars_annos.mat").exists() else _find(root, "cars196", "Cars196", "CARS196", "cars")
    path = _find(base, "cars_annos.mat")
    try:
        content = loadmat(path, squeeze_me=True)
        records = content["annotations"]
        names = [str(n) for n in records["relative_im_path"]]
        labels = records["class"].astype(np.int64)
        class_names = {i: str(n) for i, n in enumerate(content["class_names"], 1)}
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise DataError(f"{path} is not the Cars196 annotation file ({error})") from error
    return _by_class(base, names, labels, 99, class_names)


def load_sop(root: Path) -> Splits:
    """``Stanford_Online_Products/Ebay_train.txt, Ebay_test.txt``: the official class-disjoint split."""
    base = root if (root / "Ebay_train.txt").exists() else _find(root, "Stanford_Online_Products")

    def read(name: str) -> Split:
        rows = _lines(_find(base, name), 4)[1:]  # header: image_id class_id super_class_id path
        return _split(base, [r[3] for r in rows], np.array([int(r[1]) for r in rows], dtype=np.int64), {})

    return Splits(read("Ebay_train.txt"), read("Ebay_test.txt"))
