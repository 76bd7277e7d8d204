"""What a confidence costs: a search with one over the same search without, on synthetic embeddings. Run by hand.

    python tests/benchmarks/confidence.py [--sizes 0 1] [--rounds 5] [--device cuda] [--out confidence.json]

Each round times the search without and with a confidence (label-free, labelled) one after the other, so that a busy
machine slows all of them; the ratio is of medians. Without a confidence the search lists k neighbours, with one 50 at
least: the price of the longer list is in the ratio for k = 10. Each size runs in a process of its own. Memory is the
peak of that process above what it held before the first search: of the searches without, and what those with a
confidence raised it by (on a GPU as torch counts it).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import idml_zoo

SIZES = ((3_000, 3_000, 512), (13_000, 13_000, 128), (1_000, 100_000, 128), (500, 200_000, 512))  # queries, gallery, D
IMAGES_PER_CLASS = 20


def make(count: int, classes: int, dim: int, seed: int) -> tuple[idml_zoo.Embedding, torch.Tensor]:
    """Images around a centre for each class."""
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    vectors = centres[labels].add_(torch.randn(count, dim, generator=generator), alpha=1.3)
    return idml_zoo.Embedding(F.normalize(vectors), torch.zeros(count, dim)), labels


def peak(device: str) -> float:
    """MiB: highest so far."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(size: tuple[int, int, int], rounds: int, device: str) -> list[dict[str, object]]:
    """Returns a row for each k: seconds, ratios and MiB."""
    count, images, dim = size
    classes = images // IMAGES_PER_CLASS
    gallery, labels = make(images, classes, dim, seed=1)
    gallery, labels = gallery.to(device), labels.to(device)
    itself = count == images
    queries = gallery if itself else make(count, classes, dim, seed=2)[0].to(device)
    cases: dict[str, dict[str, object]] = {
        "without": {},
        "label-free": {"confidence": True},
        "labelled": {"gallery_labels": labels},
    }
    idml_zoo.search(queries[:64], gallery, 50, gallery_labels=labels)  # what is made once
    before, rows = peak(device), []
    for k in (50, 10):
        times: dict[str, list[float]] = {name: [] for name in cases}
        memory = {}
        for _ in range(rounds):
            for name, arguments in cases.items():
                start = time.perf_counter()
                idml_zoo.search(queries, gallery, k, exclude_self=itself, **arguments)  # its answer is on the CPU
                times[name].append(time.perf_counter() - start)
                memory.setdefault(name, peak(device) - before)
        seconds = {name: statistics.median(values) for name, values in times.items()}
        ratios = {name: seconds[name] / seconds["without"] for name in ("label-free", "labelled")}
        more = {"without": memory["without"], "more with confidence": memory["labelled"] - memory["without"]}
        row = {"queries": count, "gallery": images, "dim": dim, "k": k, "seconds": seconds, "ratio": ratios}
        rows.append(row | ({"mib": more} if k == 50 else {}))  # the peak never falls again
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=range(len(SIZES)), default=[*range(len(SIZES))])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.size is not None:
        print(json.dumps(measure(SIZES[args.size], args.rounds, args.device)))
        return
    rows = []
    for size in args.sizes:
        command = [sys.executable, __file__, "--size", str(size), "--rounds", str(args.rounds), "--device", args.device]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{SIZES[size]}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        for row in json.loads(done.stdout.splitlines()[-1]):
            rows.append(row)
            memory = "".join(f", {name} {value:.0f} MiB" for name, value in row.get("mib", {}).items())
            ratios = ", ".join(f"{name} {value:.2f}x" for name, value in row["ratio"].items())
            print(
                f"{row['queries']:>6,} in {row['gallery']:>7,} x {row['dim']}, k = {row['k']}: "
                f"{row['seconds']['without']:.3f} s; {ratios}{memory}",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
