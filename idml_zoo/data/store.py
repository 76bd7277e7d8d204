"""The one on-disk form of a prepared benchmark: Arrow shards, memory-mapped, with a manifest that is written last.

``<root>/prepared/<name>/{train,test}-00000.arrow`` hold the columns ``image`` (struct of encoded ``bytes`` and
``path``), ``label`` (a number for each class of both splits, those of train first), ``path``, ``split`` (train, test;
query and gallery where the benchmark has them) and any extras. They are what ``datasets.load_dataset("arrow", …)``
reads and streams; here they are opened without copying, so that loader workers and ranks share one copy in the page
cache, whatever the size.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from idml_zoo.data.benchmark import MANIFEST, Benchmark
from idml_zoo.data.check import Report, check_splits
from idml_zoo.data.errors import DataError
from idml_zoo.data.images import EncodedImages
from idml_zoo.data.split import Split, Splits
from idml_zoo.results import write_text
from idml_zoo.version import __version__

FORMAT = 1
SHARD_BYTES = 500_000_000
_ROWS = 200  # of a record batch: what is read or streamed at once


def prepare(
    benchmark: Benchmark,
    splits: Splits,
    root: str | Path,
    skip_broken: bool = False,
    allow_leaks: bool = False,
    progress: bool = True,
) -> tuple[Path, Report]:
    """Checks every image and writes the prepared copy, whole or not at all.

    Args:
        benchmark: its record; its counts are checked.
        splits: its images, from wherever they are.
        root: the data root; the copy goes to ``<root>/prepared/<name>``, and replaces one that is there.
        skip_broken: leave images out that cannot be decoded (they are listed in the report and in the manifest),
            instead of refusing.
        allow_leaks: accept images that are in train and in test.
        progress: show a bar.

    Returns:
        The folder and what was found.

    Raises:
        DataError: broken images, the same image in train and test, wrong counts, no space, no permission.
    """
    from filelock import FileLock

    folder = benchmark.prepared_folder(root)
    part = folder.with_name(f".{folder.name}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
            report = check_splits(splits, progress)
            _refuse(benchmark, report, skip_broken, allow_leaks)
            kept = benchmark.check(report.without_broken(splits))
            part.mkdir()
            try:
                _write_all(part, benchmark, kept, report)
                _put_in_place(part, folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot write {folder} ({error.strerror or error}); free space or choose another --root"
        ) from error
    return folder, report


def _refuse(benchmark: Benchmark, report: Report, skip_broken: bool, allow_leaks: bool) -> None:
    if report.broken and not skip_broken:
        raise DataError(f"{benchmark.name}: {report.summary_of_broken()}. Or leave them out: --skip-broken")
    if report.leaks and not allow_leaks:
        first, second = report.leaks[0]
        raise DataError(
            f"{benchmark.name}: {len(report.leaks)} images are in train and in test, the first is {first} = {second}; "
            "remove one of the two, or accept it: --allow-leaks"
        )


def _put_in_place(part: Path, folder: Path) -> None:
    """Renames the finished copy; one that was there is removed only once the new one stands."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_all(folder: Path, benchmark: Benchmark, splits: Splits, report: Report) -> None:
    """Both splits, then the manifest."""
    names = splits.train.class_names + splits.test.class_names
    manifest = {
        "format": FORMAT,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "idml_zoo": __version__,
        "origin": splits.origin,
        "splits": {
            "train": _write(folder, "train", splits.train, names, 0),
            "test": _write(folder, "test", splits.test, names, splits.train.num_classes),
        },
        "left_out": [f"{b.name}: {b.reason}" for b in report.broken],
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def _write(
    folder: Path, split_name: str, split: Split, class_names: tuple[str, ...], first_class: int
) -> dict[str, Any]:
    """Writes one split in shards; returns its entry of the manifest. Labels number the classes of both splits."""
    import datasets
    import pyarrow as pa

    kinds = {k: datasets.Value(str(v.dtype)) for k, v in split.extras.items()}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(class_names)),
            "path": datasets.Value("string"),
            "split": datasets.Value("string"),
            **kinds,
        }
    )
    schema = features.arrow_schema
    shards: list[dict[str, Any]] = []
    writer: Any = None
    try:
        for rows in _batches(len(split)):
            if writer is None:
                path = folder / f"{split_name}-{len(shards):05d}.arrow"
                writer, size = pa.ipc.new_stream(str(path), schema), 0
                shards.append({"file": path.name, "images": 0})
            content = [split.images.encoded(i) for i in rows]
            names = [split.images.name(i) for i in rows]
            roles = [_role(split_name, split, i) for i in rows]
            columns = [
                pa.array(
                    [{"bytes": c, "path": os.path.basename(n)} for c, n in zip(content, names, strict=True)],
                    schema.field("image").type,
                ),
                pa.array(split.labels[rows] + first_class, pa.int64()),
                pa.array(names),
                pa.array(roles),
                *(pa.array(v[rows]) for v in split.extras.values()),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            shards[-1]["images"] += len(rows)
            size += sum(map(len, content))
            if size >= SHARD_BYTES:
                writer.close()
                writer = None
    finally:
        if writer is not None:
            writer.close()
    for shard in shards:
        shard["bytes"] = (folder / shard["file"]).stat().st_size
    return {
        "images": len(split),
        "classes": split.num_classes,
        "fingerprint": split.fingerprint(),
        "shards": shards,
    }


def _batches(count: int) -> Iterator[np.ndarray]:
    for start in range(0, count, _ROWS):
        yield np.arange(start, min(start + _ROWS, count))


def _role(split_name: str, split: Split, index: int) -> str:
    if split.queries is None:
        return split_name
    return "query" if split.queries[index] else "gallery"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared benchmark; DataError where it is missing, unreadable or of another format."""
    path = folder / MANIFEST
    again = "prepare it again: idml-zoo data prepare"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable manifest ({error}); {again}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise DataError(f"{path} has format {found!r}, this version reads {FORMAT}; {again}")
    return manifest


def load_prepared(folder: Path) -> Splits:
    """Opens a prepared benchmark, memory-mapped. Each split's labels run from 0.

    Raises:
        DataError: a shard is missing, cut short or not what the manifest says.
    """
    manifest = read_manifest(folder)
    try:
        train, test = (_open(folder, manifest["splits"][k]) for k in ("train", "test"))
        return Splits(train, test, str(manifest["origin"]))
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / MANIFEST} lacks {error}; prepare it again: idml-zoo data prepare") from error


def _open(folder: Path, entry: dict[str, Any]) -> Split:
    files = [folder / os.path.basename(str(s["file"])) for s in entry["shards"]]
    for file, shard in zip(files, entry["shards"], strict=True):
        size = file.stat().st_size if file.is_file() else 0
        if size != shard["bytes"]:
            raise DataError(
                f"{file} has {size:,} bytes, its manifest says {shard['bytes']:,}; prepare it again: "
                "idml-zoo data prepare"
            )
    images = StoredImages(tuple(map(str, files)))
    table = images.table
    if table.num_rows != entry["images"]:
        raise DataError(f"{folder}: {table.num_rows} rows, its manifest says {entry['images']}; prepare it again")
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    known, labels = np.unique(table["label"].to_numpy(), return_inverse=True)
    roles = table["split"].to_pylist()
    fixed = {"image", "label", "path", "split"}
    return Split(
        images,
        labels.astype(np.int64),
        tuple(names[k] for k in known),
        {k: table[k].to_numpy() for k in table.column_names if k not in fixed},
        np.array([r == "query" for r in roles]) if "query" in roles else None,
    )


class StoredImages(EncodedImages):
    """Images in Arrow shards, memory-mapped; sent to another process as the names of the files."""

    table: Any

    def __init__(self, files: tuple[str, ...]) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            table = pa.concat_tables([pa.ipc.open_stream(pa.memory_map(f)).read_all() for f in files])
            super().__init__(pc.struct_field(table["image"], "bytes"), table["path"].to_pylist())
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataError(
                f"{files[0]}: not a readable shard ({error}); prepare it again: idml-zoo data prepare"
            ) from error
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "_shards", files)

    def __reduce__(self) -> Any:
        return StoredImages, (self._shards,)  # type: ignore[attr-defined]
