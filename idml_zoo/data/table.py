"""Anyone's own images: a folder with one folder per class, Parquet files, or a Hub data set."""

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
        origin: where it all is from.
        roles: ``(N,)`` of "train", "test", "query", "gallery", from the column ``split``; None where there is none.
    """

    images: ImageSource
    labels: np.ndarray
    class_names: tuple[str, ...]
    origin: str
    roles: np.ndarray | None = None


def find_images(folder: Path) -> list[Path]:
    """The image files under a folder, in all its depth, sorted; without hidden ones and those in hidden folders."""
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
        and p.is_file()
    )


def read_folder(root: Path) -> Table:
    """``root/<class>/**/<image>``: images in sorted order, labels by sorted class name."""
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
    """Columns ``image`` (struct with ``bytes`` and ``path``, or binary) and ``label`` (integers)."""
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
    """Those that `datasets` has written into the file, by label; none where it has not."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        names = feature.get("names") or ()
    except (KeyError, ValueError, TypeError, AttributeError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def hub_id(text: str) -> tuple[str, str | None] | None:
    """Name and configuration of a Hub data set: of ``user/name`` or ``user/name:configuration``; None for a path."""
    if text.count("/") != 1 or text.startswith((".", "/")) or any(c in text for c in "*?["):
        return None
    name, _, configuration = text.partition(":")
    return name, configuration or None


def read_hub(source: str, split: str, revision: str | None, image: str = "image", label: str = "label") -> Table:
    """A data set of the Hub with an image and a label column, at one commit: ``user/name`` or, of several
    configurations, ``user/name:configuration``.

    The commit of the revision (without one: of the latest state) is looked up and used, and the origin records it.
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
    """The commit that a revision stands for; None where the Hub cannot be asked, and its cache must do."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError):
        return None  # what load_dataset then says is the clearer message


def _table(
    table: Any,
    image: str,
    label: str,
    source: str,
    origin: str,
    names: tuple[str, ...] = (),
    within: tuple[str, ...] = (),
) -> Table:
    """From an Arrow table; ``names`` by label, ``within``: null bytes stand for files in these folders."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from idml_zoo.data.images import EncodedImages

    missing = {image, label} - set(table.column_names)
    if missing:
        raise DataError(f"{source}: no column {' or '.join(sorted(missing))}; it has {', '.join(table.column_names)}")
    pictures, numbers = table[image], table[label]
    if not pa.types.is_integer(numbers.type) or numbers.null_count:
        raise DataError(f"{source}: column {label!r} must hold integers without gaps, found {numbers.type}")
    labels = numbers.to_numpy().astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise DataError(
            f"{source}: column {label!r} has {labels.min()}, which marks images without a label; leave them out"
        )
    paths: list[str | None] = [None] * len(labels)
    if pa.types.is_struct(pictures.type):
        if "path" in pictures.type.names:
            paths = pc.struct_field(pictures, "path").to_pylist()
        pictures = pc.struct_field(pictures, "bytes")
    kind = pictures.type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)):
        raise DataError(f"{source}: column {image!r} must hold encoded images, found {kind}")
    known = np.unique(labels)
    class_names = tuple(names[int(k)] if int(k) < len(names) else str(int(k)) for k in known)
    titles = [f"{p or 'image'} (row {i} of {source})" for i, p in enumerate(paths)]
    images = EncodedImages(pictures, titles, paths if within else (), within)
    roles = np.array(table[_ROLE].to_pylist(), dtype=object) if _ROLE in table.column_names else None
    return Table(images, np.searchsorted(known, labels), class_names, origin, roles)


def disjoint_splits(
    table: Table,
    train_classes: str | Sequence[int] | None = None,
    test_classes: str | Sequence[int] | None = None,
) -> Splits:
    """Two splits that share no class.

    Default: what the table's column ``split`` says, if it makes class-disjoint splits of "train" and "test" (or "query"
    and "gallery"); classes of other values, such as "validation", are left out. Else the first half of the classes
    trains, and the rest tests (as for CUB). ``test_classes="all"``, for a model trained elsewhere: every class tests,
    and the training split is empty.

    Raises:
        DataError: if the choices overlap or leave a split with fewer than two classes, or the column has other values
            for images of the classes that train or test.
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
    if train is None and test is None and (own := _own_classes(table)) is not None:
        train, test, queries = own
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


def _own_classes(table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
    """(train, test) classes and who is a query, by the table's own column; None where that shares classes."""
    found = set() if table.roles is None else set(table.roles)
    tested = {"query", "gallery"} if found >= {"query", "gallery"} else {"test"}
    if table.roles is None or not found >= {"train"} | tested:
        return None
    train, test, others = (
        np.unique(table.labels[np.isin(table.roles, list(names))])
        for names in ({"train"}, tested, found - {"train"} - tested)
    )
    if len(np.intersect1d(train, test)):
        return None  # a table for classification
    if len(np.intersect1d(others, np.union1d(train, test))):
        names = " or ".join(sorted(map(str, found - {"train"} - tested)))
        raise DataError(
            f"{table.origin}: rows whose column {_ROLE!r} says {names} are of classes that train or test; leave these "
            "rows out, or choose the classes yourself (train_classes, test_classes)"
        )
    return train, test, table.roles == "query" if "query" in found else None


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
