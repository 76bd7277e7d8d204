"""Writes the prepared copy of a benchmark after a check of every image; :mod:`idml_zoo.data.store` has its form."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from idml_zoo.data.benchmark import Benchmark
from idml_zoo.data.errors import DataError
from idml_zoo.data.folders import MANIFEST
from idml_zoo.data.preparation.check import Report, check_splits
from idml_zoo.data.split import Split, Splits
from idml_zoo.data.store import FORMAT
from idml_zoo.files import write_file
from idml_zoo.version import __version__

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
        splits: its images.
        root: the data root; the copy goes to ``<root>/prepared/<name>``, and replaces an existing one.
        skip_broken: leave images out that cannot be decoded (they are listed in the report and in the manifest),
            instead of refusing.
        allow_leaks: accept images that are in train and in test.
        progress: show a bar.

    Returns:
        The folder and the report of the check.

    Raises:
        DataError: broken images, the same image in train and test, wrong counts, no class to train on, no space, no
            permission.
    """
    from filelock import FileLock

    if not len(splits.train):
        raise DataError(f"{benchmark.name}: every class tests; a prepared copy holds classes to train on too")
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
        fix = "Or leave them out: --skip-broken" if benchmark.counts is None else "Get these files again"
        raise DataError(f"{benchmark.name}: {report.summary_of_broken()}. {fix}")
    if report.leaks and not allow_leaks:
        first, second = report.leaks[0]
        raise DataError(
            f"{benchmark.name}: {len(report.leaks)} images are in train and in test, the first is {first} = {second}; "
            "remove one of the two, or accept it: --allow-leaks"
        )


def _put_in_place(part: Path, folder: Path) -> None:
    """Renames the finished copy; removes the old one only once the new one is in its place."""
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
        "origin": os.path.abspath(splits.origin) if os.path.exists(splits.origin) else splits.origin,
        "choices": dict(benchmark.choices),
        "splits": {
            "train": _write(folder, "train", splits.train, names, 0),
            "test": _write(folder, "test", splits.test, names, splits.train.num_classes),
        },
        "left_out": [f"{b.name}: {b.reason}" for b in report.broken],
    }
    write_file(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


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
