"""CUB-200-2011: classes 1–100 train, 101–200 test. The official train_test_split.txt shares classes and is not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from idml_zoo.data.errors import DataError
from idml_zoo.data.sets.lists import as_integers, find_folder, listed_split, read_rows
from idml_zoo.data.split import Splits


def load_cub(root: Path) -> Splits:
    """The extracted archive: ``images.txt``, ``image_class_labels.txt``, ``images/``."""
    base = find_folder(root, "image_class_labels.txt")
    images, labels = dict(read_rows(base / "images.txt", 2)), dict(read_rows(base / "image_class_labels.txt", 2))
    if images.keys() != labels.keys():
        raise DataError(
            f"{base}: images.txt lists {len(images)} images, image_class_labels.txt {len(labels)}; damaged copy"
        )
    names = np.array(list(images.values()))
    classes = as_integers((labels[i] for i in images), base / "image_class_labels.txt")
    titles = {int(c): n.split("/", 1)[0].partition(".")[2] or str(c) for n, c in zip(names, classes, strict=True)}
    train, test = classes <= 100, classes > 100
    return Splits(
        listed_split(base / "images", names[train].tolist(), classes[train], titles),
        listed_split(base / "images", names[test].tolist(), classes[test], titles),
        str(base),
    )
