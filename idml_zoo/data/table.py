"""A user's images: a folder with one folder per class, Parquet files, or a Hub data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from idml_zoo.data.classes import class_range
from idml_zoo.data.errors import DataError, MissingDataError
from idml_zoo.data.split import ImageSource, Split, Splits

_ROLE = "split"  # the column that says which split a row is of
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"}


class Table(NamedTuple):
    """Images with labels, before they are split.

    Attributes:
        images: N images.
        labels: ``(N,)`` int64, contiguous from 0.
        class_names: C names.
        origin: where the images come from: a folder, a file, ``hub:user/name@commit``.
        roles: ``(N,)`` of "train", "test", "query", "gallery", from the column ``split``; None where there is none.
    """

    images: ImageSource
    labels: np.ndarray
    class_names: tuple[str, ...]
    origin: str
    roles: np.ndarray | None = None


def find_images(folder: Path) -> list[Path]:
    """Returns the image files under a folder at any depth, sorted; skips hidden files and hidden folders."""
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
        and p.is_file()
    )


def read_folder(root: Path) -> Table:
    """Returns the table of ``root/<class>/**/<image>``: images in sorted order, labels by sorted class name."""
    from idml_zoo.data.images import FileImages

    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if classes and {c.lower() for c in classes} <= _SPLITS:
        raise DataError(
            f"{root} holds the splits {', '.join(classes)}, not class folders; give one of them, or put all class "
            "folders beside each other: here splits share no class, and are made of them"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = find_images(root / name)
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
    """Returns the table of the columns ``image`` (struct of ``bytes`` and ``path``, or binary) and ``label`` (int)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        if not file.is_file():
            raise MissingDataError(f"no file {file}; give the folder that holds it as the data root")
    listed = ", ".join(map(str, files))
    names: tuple[str, ...] = ()
    try:
        schema = pq.read_schema(files[0])
        names = _class_names(schema.metadata or {}, label)
        kept = [c for c in (image, label, _ROLE) if c in schema.names]
        table = pa.concat_tables([pq.read_table(f, columns=kept, memory_map=True) for f in files])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{listed}: not readable as Parquet ({error}); get it again") from error
    return _table(table, image, label, files[0].name, listed, names)


def _class_names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...]:
    """Returns the class names that `datasets` has written into the file, by label; () where there are none."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        names = feature.get("names") or ()
    except (KeyError, ValueError, TypeError, AttributeError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def hub_id(text: str) -> tuple[str, str | None] | None:
    """Returns (name, configuration) of ``user/name`` or ``user/name:configuration``; None for a path."""
    if text.count("/") != 1 or text.startswith((".", "/")) or any(c in text for c in "*?["):
        return None
    name, _, configuration = text.partition(":")
    return name, configuration or None


def read_hub(source: str, split: str, revision: str | None, image: str = "image", label: str = "label") -> Table:
    """Returns the table of a Hub data set with an image and a label column: ``user/name[:configuration]``.

    Looks up the commit of the revision, or the latest commit without one, and reads that. The origin records it.
    """
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    name, configuration = hub_id(source) or (source, None)
    revision = _commit(name, revision) or revision
    if split == "all":
        parts = datasets.load_dataset(name, configuration, revision=revision)
        loaded = datasets.concatenate_datasets([parts[k] for k in parts])
    else:
        loaded = datasets.load_dataset(name, configuration, split=split, revision=revision)
    names = tuple(getattr(loaded.features.get(label), "names", None) or ())
    if image in loaded.features:
        loaded = loaded.cast_column(image, datasets.Image(decode=False))
    origin = f"hub:{source}" + (f"@{revision}" if revision else "")
    kept = tuple(map(str, (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)))
    return _table(loaded.with_format("arrow")[:], image, label, source, origin, names, kept)


def _commit(name: str, revision: str | None) -> str | None:
    """Returns the commit of a revision; None where the Hub cannot be reached, so that its cache must do."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError):
        return None  # load_dataset then raises the clearer error


def _table(
    table: Any,
    image: str,
    label: str,
    source: str,
    origin: str,
    names: tuple[str, ...] = (),
    within: tuple[str, ...] = (),
) -> Table:
    """Returns the table of an Arrow table; ``names`` by label; null bytes stand for files in the folders ``within``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from idml_zoo.data.images import EncodedImages

    missing = {image, label} - set(table.column_names)
    if missing:
        raise DataError(f"{source}: no column {' or '.join(sorted(missing))}; it has {', '.join(table.column_names)}")
    encoded, numbers = table[image], table[label]
    if not pa.types.is_integer(numbers.type) or numbers.null_count:
        raise DataError(f"{source}: column {label!r} must hold integers without gaps, found {numbers.type}")
    labels = numbers.to_numpy().astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise DataError(
            f"{source}: column {label!r} has {labels.min()}, which marks images without a label; leave them out"
        )
    paths: list[str | None] = [None] * len(labels)
    if pa.types.is_struct(encoded.type):
        if "path" in encoded.type.names:
            paths = pc.struct_field(encoded, "path").to_pylist()
        encoded = pc.struct_field(encoded, "bytes")
    column_type = encoded.type
    if not (pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type) or pa.types.is_null(column_type)):
        raise DataError(f"{source}: column {image!r} must hold encoded images, found {column_type}")
    label_values = np.unique(labels)
    class_names = tuple(names[int(k)] if int(k) < len(names) else str(int(k)) for k in label_values)
    titles = [f"{p or 'image'} (row {i} of {source})" for i, p in enumerate(paths)]
    images = EncodedImages(encoded, titles, paths if within else (), within)
    roles = np.array(table[_ROLE].to_pylist(), dtype=object) if _ROLE in table.column_names else None
    return Table(images, np.searchsorted(label_values, labels), class_names, origin, roles)


def disjoint_splits(
    table: Table,
    train_classes: str | Sequence[int] | None = None,
    test_classes: str | Sequence[int] | None = None,
) -> Splits:
    """Returns two splits that share no class.

    The default is the table's column ``split``, if its values "train" and "test" (or "query" and "gallery") share no
    class. Classes of other values, such as "validation", are left out. Without such a column the first half of the
    classes trains and the rest tests, as for CUB. ``test_classes="all"`` is for a model trained elsewhere: every class
    tests, and the training split is empty.

    Raises:
        DataError: the choices overlap or leave a split with fewer than two classes, or the column has other values for
            images of the classes that train or test.
    """
    count = len(table.class_names)
    if test_classes == "all":
        if train_classes is not None:
            raise DataError("test_classes='all' leaves no class to train on; leave train_classes out")
        every = Split(table.images, table.labels, table.class_names)
        return Splits(every.select_classes([]), every, table.origin)
    if count < 4:
        raise DataError(f"{count} classes cannot make two splits of at least two classes each; at least 4 are needed")
    train = None if train_classes is None else class_range(train_classes, count)
    test = None if test_classes is None else class_range(test_classes, count)
    every_class, queries = np.arange(count), None
    if train is None and test is None and (by_column := _classes_by_column(table)) is not None:
        train, test, queries = by_column
    if train is None:
        train = every_class[: count // 2] if test is None else np.setdiff1d(every_class, test)
    if test is None:
        test = np.setdiff1d(every_class, train)
    shared = np.intersect1d(train, test)
    if len(shared):
        raise DataError(
            f"class {table.class_names[shared[0]]!r} ({shared[0]}) is in train and test; the splits must be "
            "class-disjoint"
        )
    if min(len(train), len(test)) < 2:
        raise DataError(f"train has {len(train)} classes and test {len(test)}; each needs at least two")
    every = Split(table.images, table.labels, table.class_names)
    training, testing = every.select_classes(train), every.select_classes(test)
    if queries is not None:
        testing = replace(testing, queries=queries[np.isin(table.labels, test)])
    return Splits(training, testing, table.origin)


def _classes_by_column(table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
    """Returns (train, test) classes and the mask of queries by the column ``split``; None where these share classes."""
    roles = set() if table.roles is None else set(table.roles)
    tested = {"query", "gallery"} if roles >= {"query", "gallery"} else {"test"}
    if table.roles is None or not roles >= {"train"} | tested:
        return None
    train, test, others = (
        np.unique(table.labels[np.isin(table.roles, list(names))])
        for names in ({"train"}, tested, roles - {"train"} - tested)
    )
    if len(np.intersect1d(train, test)):
        return None  # a table for classification
    if len(np.intersect1d(others, np.union1d(train, test))):
        names = " or ".join(sorted(map(str, roles - {"train"} - tested)))
        raise DataError(
            f"{table.origin}: rows whose column {_ROLE!r} says {names} are of classes that train or test; leave these "
            "rows out, or choose the classes yourself (train_classes, test_classes)"
        )
    return train, test, table.roles == "query" if "query" in roles else None


def read_table(
    source: str | Path | Sequence[str | Path],
    hub_split: str = "train",
    revision: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
) -> Table:
    """Returns the table of a folder, of Parquet file(s) or, where no such path exists, of a Hub data set.

    Raises:
        DataError: the source is missing, or not readable as what its name says.
    """
    if not isinstance(source, (str, Path)):
        return read_parquet([Path(s) for s in source], image_column, label_column)
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            return read_folder(path)
        return read_parquet(files, image_column, label_column)._replace(origin=str(path))
    if path.suffix == ".parquet":
        return read_parquet([path], image_column, label_column)
    if path.exists():
        raise DataError(f"{path} is neither a folder of class folders nor a .parquet file")
    if hub_id(str(source)):
        return read_hub(str(source), hub_split, revision, image_column, label_column)
    raise MissingDataError(
        f"no folder or Parquet file {path}, and {str(source)!r} is not a Hub data set id (user/name, "
        "or user/name:configuration)"
    )
