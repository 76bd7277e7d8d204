"""Does the recipe for Stanford Online Products run at its size, and for how long? Run by hand.

    python tests/benchmarks/sop_scale.py [--steps 100] [--folder DIR] [key=value …]

Generates JPEG images in the shape of the data set, once: 59,551 of 11,318 classes to train and 60,502 of 11,316 others
to measure, 2 to 12 of a class, 224 px and about 10 kB each. Then runs recipes/sop_resnet50.yaml on them for some steps,
and its whole evaluation. Pictures are smooth colours with noise, of one layout for each class: what is learned means
nothing. Overrides go to the recipe. Without the Hub: backbone_weights=none lr=1e-6, for at the recipe's rate a random
network collapses. Without a GPU: mixed_precision=bf16 and 24 GiB. In minutes: backbone=test_resnet image_size=64.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[2]
SHAPE = ((11_318, 59_551), (11_316, 60_502))  # classes, images of the training and the test split


def sizes(classes: int, images: int, rng: np.random.Generator) -> np.ndarray:
    """Images of each class, 2 to 12, that sum up."""
    count = rng.integers(2, 9, classes)
    while (off := images - count.sum()) != 0:
        some = rng.choice(
            np.flatnonzero(count < 12 if off > 0 else count > 2), min(abs(off), classes // 2), replace=False
        )
        count[some] += np.sign(off)
    return count


def generate(path: Path) -> None:
    """The Parquet file."""
    rng = np.random.default_rng(0)
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()})
    part, label, start = path.with_suffix(".part"), 0, time.perf_counter()
    with pq.ParquetWriter(part, schema) as writer:
        for classes, images in SHAPE:
            rows: list[tuple[bytes, int]] = []
            for count in sizes(classes, images, rng):
                layout = rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)
                smooth = np.asarray(Image.fromarray(layout).resize((224, 224), Image.Resampling.BICUBIC), np.int16)
                for _ in range(count):
                    noise = np.kron(rng.integers(-25, 25, (56, 56, 1)), np.ones((4, 4, 1), np.int64))
                    buffer = io.BytesIO()
                    Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=75)
                    rows.append((buffer.getvalue(), label))
                label += 1
                if len(rows) > 5000 or label in (SHAPE[0][0], SHAPE[0][0] + SHAPE[1][0]):
                    pictures = [{"bytes": b, "path": f"{label}-{i}.jpg"} for i, (b, _) in enumerate(rows)]
                    writer.write_table(pa.table({"image": pictures, "label": [c for _, c in rows]}, schema))
                    rows = []
    part.rename(path)
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB in {time.perf_counter() - start:.0f} s", flush=True)


def most_memory(process: subprocess.Popen[bytes], found: list[int]) -> None:
    """The most that a process and its children hold, in bytes, looked at twice a second."""
    while process.poll() is None:
        try:
            main = psutil.Process(process.pid)
            found.append(sum(p.memory_info().rss for p in [main, *main.children(recursive=True)]))
        except psutil.Error:
            pass
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sop_scale")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    table = args.folder / "sop_shape.parquet"
    if not table.exists():
        generate(table)
    settings = [f"source={table}", "benchmark=sop_shape", "train_classes=0-11317", "test_classes=11318-22633"]
    settings += [f"max_steps={args.steps}", "resume=no", "log_every=10", "name=scale"]
    settings += ["warmup_epochs=0"]  # the first steps would train the head alone, several times as fast
    settings += [f"output={args.folder / 'runs'}", f"leaderboard={args.folder / 'board'}", *args.overrides]
    command = [sys.executable, "recipes/train.py", "--config", "recipes/sop_resnet50.yaml", *settings]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "IDML_ZOO_CACHE": str(args.folder / "cache")})
    held: list[int] = []
    watcher = threading.Thread(target=most_memory, args=(process, held))
    watcher.start()
    if process.wait():
        sys.exit(process.returncode)
    watcher.join()
    whole = time.perf_counter() - start
    log = list(csv.DictReader((args.folder / "runs" / "sop_shape" / "scale" / "seed0" / "log.csv").open()))
    result = json.loads((args.folder / "board" / "results" / "sop_shape" / "scale" / "seed0.json").read_text())
    rates = [float(row["images_per_second"]) for row in log[1:]]  # the first step warms up
    seconds = result["provenance"]["seconds"]
    print(f"{result['provenance']['device']}, {result['provenance']['threads']} threads: {' '.join(args.overrides)}")
    print(f"training: {args.steps} steps in {seconds['train']:.0f} s, {np.median(rates):.1f} images/s")
    epoch = 496 * 120 / np.median(rates)
    print(f"an epoch of 496 steps would take {epoch / 60:.1f} min; 60 epochs, 5 of them of the head alone, less than")
    print(f"{60 * epoch / 3600:.1f} h")
    print(f"evaluation of {result['queries']:,} images: {seconds['evaluate']:.0f} s; everything: {whole:.0f} s")
    print(f"most memory: {max(held) / 2**30:.1f} GiB resident (mapped pixels included)")
    print(f"device: {float(log[-1]['gib']):.1f} GiB")


if __name__ == "__main__":
    main()
