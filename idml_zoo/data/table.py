"""Anyone's own images: a folder with one folder per class, Parquet files, or a Hub data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from idml_zoo.data.errors import DataError
from idml_zoo.data.split import ImageSource, Split, Splits

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"}


class Table(NamedTuple):
    """Images with labels, before they are split: N images, ``(N,)`` int64 labels, C names, and where it all is from."""

    images: ImageSource
    labels: np.ndarray
    class_names: tuple[str, ...]
    origin: str


def read_folder(root: Path) -> Table:
    """``root/<class>/**/<image>``: images in sorted order, labels by sorted class name."""
    from idml_zoo.data.images import FileImages

    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(
            p for p in (root / name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
        )
        if not files:
            raise DataError(
                f"class folder {root / name} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}); fill or remove it"
            )
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise DataError(f"{root} has no class folders; expected {root}/<class name>/<image>")
    return Table(FileImages(paths), np.array(labels, dtype=np.int64), tuple(classes), str(root))


def read_parquet(files: Sequence[Path], image: str = "image", label: str = "label") -> Table:
    """Columns ``image`` (struct with ``bytes`` and ``path``, or binary) and ``label`` (integers)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        if not file.is_file():
            raise DataError(f"no file {file}; give the folder that holds it as the data root")
    listed = ", ".join(map(str, files))
    try:
        table = pa.concat_tables([pq.read_table(f, columns=[image, label], memory_map=True) for f in files])
        columns = table[image], table[label]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{listed}: not readable as Parquet with columns {image!r} and {label!r} ({error})") from error
    return _columns(*columns, files[0].name, listed)


def read_hub(name: str, split: str, revision: str | None, image: str = "image", label: str = "label") -> Table:
    """A data set of the Hub with an image and a label column, at one commit.

    Without a revision the latest commit is looked up and used, so that its origin says which one it was.
    """
    import datasets

    revision = revision or _latest_commit(name)
    if split == "all":
        parts = datasets.load_dataset(name, revision=revision)
        loaded = datasets.concatenate_datasets([parts[k] for k in parts])
    else:
        loaded = datasets.load_dataset(name, split=split, revision=revision)
    missing = {image, label} - set(loaded.column_names)
    if missing:
        raise DataError(f"{name}: no column {' or '.join(sorted(missing))}; it has {', '.join(loaded.column_names)}")
    table = loaded.cast_column(image, datasets.Image(decode=False)).with_format("arrow")[:]
    names = tuple(getattr(loaded.features[label], "names", None) or ())
    origin = f"hub:{name}" + (f"@{revision}" if revision else "")
    return _columns(table[image], table[label], name, origin, names, local=True)


def _latest_commit(name: str) -> str | None:
    """The commit of a data set's main branch; None where the Hub cannot be asked, and its cache must do."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(name).sha
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError):
        return None  # what load_dataset then says is the clearer message


def _columns(
    image: Any, label: Any, source: str, origin: str, names: tuple[str, ...] = (), local: bool = False
) -> Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    from idml_zoo.data.images import EncodedImages

    if not pa.types.is_integer(label.type) or label.null_count:
        raise DataError(f"{source}: column 'label' must hold integers without gaps, found {label.type}")
    labels = label.to_numpy().astype(np.int64)
    paths: list[str | None] = [None] * len(labels)
    if pa.types.is_struct(image.type):
        if "path" in image.type.names:
            paths = pc.struct_field(image, "path").to_pylist()
        image = pc.struct_field(image, "bytes")
    if not (pa.types.is_binary(image.type) or pa.types.is_large_binary(image.type) or pa.types.is_null(image.type)):
        raise DataError(f"{source}: the image column must hold encoded images, found {image.type}")
    known = np.unique(labels)
    class_names = tuple(names[int(k)] if names else str(int(k)) for k in known)
    titles = [f"{p or 'image'} (row {i} of {source})" for i, p in enumerate(paths)]
    images = EncodedImages(image, titles, paths if local else ())
    return Table(images, np.searchsorted(known, labels), class_names, origin)


def class_range(text: str | Sequence[int], count: int) -> np.ndarray:
    """Classes from "0-99", "0-9,20", or a list of numbers; DataError where one is not in [0, count)."""
    chosen: list[int] = []
    if isinstance(text, str):
        try:
            for part in text.split(","):
                first, _, last = part.strip().partition("-")
                chosen += range(int(first), int(last or first) + 1)
        except ValueError as error:
            raise DataError(f"classes must look like '0-99' or '0-9,20', got {text!r}") from error
    else:
        chosen = [int(c) for c in text]
    wrong = [c for c in chosen if not 0 <= c < count]
    if wrong or len(set(chosen)) != len(chosen):
        raise DataError(
            f"classes {text!r}: must be different numbers in 0–{count - 1}" + (f"; {wrong[0]} is not" if wrong else "")
        )
    return np.array(chosen, dtype=np.int64)


def disjoint_splits(
    images: ImageSource,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    train_classes: str | Sequence[int] | None = None,
    test_classes: str | Sequence[int] | None = None,
    origin: str = "",
) -> Splits:
    """Two splits that share no class. Default: the first half of the classes trains, the rest tests (as for CUB).

    Raises:
        DataError: if the choices overlap or leave a split with fewer than two classes.
    """
    count = len(class_names)
    if count < 4:
        raise DataError(f"{count} classes cannot make two splits of at least two classes each; at least 4 are needed")
    train = None if train_classes is None else class_range(train_classes, count)
    test = None if test_classes is None else class_range(test_classes, count)
    every_class = np.arange(count)
    if train is None:
        train = every_class[: count // 2] if test is None else np.setdiff1d(every_class, test)
    if test is None:
        test = np.setdiff1d(every_class, train)
    shared = np.intersect1d(train, test)
    if len(shared):
        raise DataError(
            f"class {class_names[shared[0]]!r} ({shared[0]}) is in train and test; the splits must be class-disjoint"
        )
    if min(len(train), len(test)) < 2:
        raise DataError(f"train has {len(train)} classes and test {len(test)}; each needs at least two")
    every = Split(images, labels, class_names)
    return Splits(every.select_classes(train), every.select_classes(test), origin)


def read_table(
    source: str | Path | Sequence[str | Path],
    hub_split: str = "train",
    revision: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
) -> Table:
    """A table from a folder, Parquet file(s), or, where no such path exists, a Hub data set.

    Raises:
        DataError: nothing there, or not readable as what it looks like.
    """
    if not isinstance(source, (str, Path)):
        return read_parquet([Path(s) for s in source], image_column, label_column)
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        return read_parquet(files, image_column, label_column) if files else read_folder(path)
    if path.suffix == ".parquet":
        return read_parquet([path], image_column, label_column)
    if path.exists():
        raise DataError(f"{path} is neither a folder of class folders nor a .parquet file")
    if str(source).count("/") == 1 and not str(source).startswith((".", "/")):
        return read_hub(str(source), hub_split, revision, image_column, label_column)
    raise DataError(f"no folder or Parquet file {path}, and {str(source)!r} is not a Hub data set id (user/name)")
