"""In-Shop Clothes Retrieval (DeepFashion): query images are searched in a gallery of the same garments."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from idml_zoo.data.errors import DataError
from idml_zoo.data.sets.lists import as_integers, find_folder, listed_split
from idml_zoo.data.split import Splits

_LIST = "list_eval_partition.txt"
_HEADER = ["image_name", "item_id", "evaluation_status"]


def load_inshop(root: Path) -> Splits:
    """``Eval/list_eval_partition.txt`` (or beside the images) and ``img/``, which may lie under ``Img/``."""
    folder = find_folder(root, _LIST, _is_ours)
    path = folder / _LIST
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    rows = _rows(path, lines)
    status = np.array([r[2] for r in rows])
    items = as_integers((r[1].removeprefix("id_") for r in rows), path)
    names = np.array([r[0] for r in rows])
    unknown = set(status) - {"train", "query", "gallery"}
    if unknown:
        raise DataError(f"{path}: status {str(min(unknown))!r}; expected train, query or gallery")
    base = next(
        (b for b in (folder, folder.parent, folder / "Img", folder.parent / "Img") if (b / "img").is_dir()), None
    )
    if base is None:
        raise DataError(f"no folder img beside {folder} (or under Img); extract img.zip of In-Shop there")
    train, test = status == "train", status != "train"
    if set(items[train]) & set(items[test]):
        raise DataError(f"{path}: an item is in train and test; not the official list")
    titles = {int(i): f"id_{i:08d}" for i in np.unique(items)}
    return Splits(
        listed_split(base, names[train].tolist(), items[train], titles),
        listed_split(base, names[test].tolist(), items[test], titles, queries=status[test] == "query"),
        str(base),
    )


def _is_ours(path: Path) -> bool:
    """CelebA and other parts of DeepFashion have a file of this name too, with other columns."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.readline().strip().isdigit() and file.readline().split() == _HEADER


def _rows(path: Path, lines: list[str]) -> list[list[str]]:
    rows = [line.split() for line in lines[2:] if line.strip()]
    wrong = next((n for n, r in enumerate(rows, 3) if len(r) != 3), None)
    if wrong is not None:
        raise DataError(f"{path}, line {wrong}: expected 3 columns; not the official file")
    if len(rows) != int(lines[0]):
        raise DataError(f"{path} announces {int(lines[0])} images and lists {len(rows)}; the file is cut short")
    return rows
