"""What decoding once is worth, and whether a loader's memory stays flat. Run by hand.

    python tests/benchmarks/loader.py [--images 2000] [--seconds 8]

Images are crops of the two photographs that scikit-learn ships, saved as JPEG of the size that CUB's images have
(500×375, quality 92). Everything runs on one core: images/s per core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2

from idml_zoo.data.benchmark import table_benchmark
from idml_zoo.data.images import ImageDataset
from idml_zoo.data.loading.cache import cache_images
from idml_zoo.data.split import Split
from idml_zoo.data.transforms import TransformConfig, build_device_transforms, build_transforms


def photographs(folder: Path, count: int) -> Split:
    """``count`` JPEG files of 500×375 in four classes of folders; the training split is half of them."""
    rng = np.random.default_rng(0)
    sources = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    for i in range(2 * count):
        place = folder / f"class_{i * 4 // (2 * count)}"
        place.mkdir(parents=True, exist_ok=True)
        left, top = (int(rng.integers(0, room)) for room in (141, 53))
        sources[i % 2].crop((left, top, left + 500, top + 375)).save(place / f"{i}.jpg", quality=92)
    return table_benchmark("photographs", folder).splits().train


def rate(data: ImageDataset, seconds: float) -> float:
    """Images per second over shuffled indices."""
    order = np.random.default_rng(0).permutation(len(data))
    for i in order[:50]:
        data[int(i)]
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        data[int(order[done % len(order)])]
        done += 1
    return done / (time.perf_counter() - start)


def resident(kind: str, processes: list[int]) -> float:
    """MiB of a kind of memory ("Private_Dirty" or "Pss") over processes."""
    total = 0
    for pid in processes:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                total += int(line.split()[1])
    return total / 1024


def memory(data: ImageDataset) -> str:
    """Private memory of two loader workers together at the end of each of eight epochs, MiB."""
    loader = torch.utils.data.DataLoader(data, 50, shuffle=True, num_workers=2, persistent_workers=True)
    found = []
    for _ in range(8):
        for step, _ in enumerate(loader):
            if step == len(loader) - 3:
                found.append(resident("Private_Dirty", [w.pid for w in loader._iterator._workers]))  # type: ignore[union-attr]
    return " ".join(f"{f:.0f}" for f in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = TransformConfig(image_size=224)
    train, _ = build_transforms(config)
    to_bytes, _ = build_device_transforms(config)
    pil = v2.Compose(
        [
            v2.RandomResizedCrop(224, scale=config.scale),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(config.mean), list(config.std)),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        split = photographs(Path(folder) / "images", args.images)
        start = time.perf_counter()
        exact = cache_images(split, 448, Path(folder) / "cache", progress=False)
        built = time.perf_counter() - start
        small = cache_images(split, 256, Path(folder) / "cache", progress=False)
        cases = {
            "decode, crop with PIL": ImageDataset(split, pil),
            "decode, crop as tensor (cache=false)": ImageDataset(split, train),
            "cache, kept exactly (default)": ImageDataset(exact, train),
            "cache, shorter side 256": ImageDataset(small, train),
            "cache, floats on the device": ImageDataset(exact, to_bytes),
        }
        base = None
        for name, data in cases.items():
            found = rate(data, args.seconds)
            base = base or found
            print(f"{name:<38} {found:6.0f} images/s  ({found / base:.1f}x)", flush=True)
        print(f"built once: {len(split)} images in {built:.1f} s, all cores")
        for name in ("decode, crop as tensor (cache=false)", "cache, kept exactly (default)"):
            print(f"private memory of two workers, after each of eight epochs, MiB: {memory(cases[name])}  ({name})")


if __name__ == "__main__":
    main()
