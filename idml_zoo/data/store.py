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
from pathlib import Path
from typing import Any

import numpy as np

from idml_zoo.data.errors import DataError
from idml_zoo.data.folders import MANIFEST
from idml_zoo.data.images import EncodedImages
from idml_zoo.data.split import Split, Splits

FORMAT = 1


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a prepared benchmark; raises DataError if it cannot be used."""
    path = folder / MANIFEST
    again = "prepare it again: idml-zoo data prepare"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable manifest ({error}); {again}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        version = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise DataError(f"{path} has format {version!r}, this version reads {FORMAT}; {again}")
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
    label_values, labels = np.unique(table["label"].to_numpy(), return_inverse=True)
    roles = table["split"].to_pylist()
    fixed = {"image", "label", "path", "split"}
    return Split(
        images,
        labels.astype(np.int64),
        tuple(names[k] for k in label_values),
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
