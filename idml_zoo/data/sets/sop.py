"""Stanford Online Products: the official class-disjoint split."""

from __future__ import annotations

from pathlib import Path

from idml_zoo.data.errors import DataError
from idml_zoo.data.sets.lists import as_integers, find_folder, listed_split, read_rows
from idml_zoo.data.split import Split, Splits

_HEADER = ["image_id", "class_id", "super_class_id", "path"]


def load_sop(root: Path) -> Splits:
    """The extracted archive: ``Ebay_train.txt``, ``Ebay_test.txt`` and the twelve folders of images."""
    base = find_folder(root, "Ebay_train.txt")

    def read(name: str) -> Split:
        rows = read_rows(base / name, 4)
        if not rows or rows[0] != _HEADER:
            raise DataError(f"{base / name}: the first line must be '{' '.join(_HEADER)}'; not the official file")
        return listed_split(base, [r[3] for r in rows[1:]], as_integers((r[1] for r in rows[1:]), base / name))

    train, test = read("Ebay_train.txt"), read("Ebay_test.txt")
    shared = set(train.class_names) & set(test.class_names)
    if shared:
        raise DataError(f"{base}: class {min(shared)} is in Ebay_train.txt and Ebay_test.txt; not the official lists")
    return Splits(train, test, str(base))
