"""Parquet tables made up for tests."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encoded(colour: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (10, 12), (colour, 0, 0)).save(out, "PNG")
    return out.getvalue()


def make_parquet(path, labels=(0, 0, 1, 1, 2, 2, 3, 3), **columns):
    images = [{"bytes": encoded(10 * i), "path": f"{i}.png"} for i in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": list(labels)} | columns), path)
    return path
