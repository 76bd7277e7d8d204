"""Search in a million images: exact, and approximate by faiss with its lists on disk. Run by hand, ~15 minutes.

    python tests/benchmarks/large.py [--images 1000000] [--dim 128] [--queries 1000] [--out large.json]

Prints for each index: seconds to build, milliseconds for a query (all of them at once), bytes for an image, the share
of the exact ten neighbours that it finds, and the peak memory of the process so far.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch

import idml_zoo
from idml_zoo.retrieval.knn import search

K = 10


def make(images: int, dim: int, seed: int = 0) -> np.ndarray:
    """Unit vectors in classes of 20, with a falling spectrum."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, dim + 1, dtype=np.float32) ** -0.35
    centres = rng.standard_normal((-(-images // 20), dim), dtype=np.float32)
    out = np.empty((images, dim), dtype=np.float32)
    for start in range(0, images, 100_000):
        rows = np.arange(start, min(images, start + 100_000))
        part = (centres[rows // 20] + rng.standard_normal((len(rows), dim), dtype=np.float32)) * spectrum
        out[rows] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return out


def on_disk(index: faiss.IndexIVF, folder: Path) -> faiss.IndexIVF:
    """The same index with its lists in a mapped file, so that memory holds only what is being searched."""
    faiss.write_index(index, str(folder / "index.faiss"))
    return faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--lists", type=int, default=4096, help="of the inverted file")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    x = make(args.images, args.dim)
    rows = np.random.default_rng(1).choice(args.images, args.queries, replace=False)
    noisy = x[rows] + 0.3 * np.random.default_rng(2).standard_normal((args.queries, args.dim)) * args.dim**-0.5
    q = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
    found = []

    def report(name: str, build: float, seconds: float, size: float, indices: np.ndarray) -> None:
        hits = [len(set(a) & set(b)) for a, b in zip(indices.tolist(), truth.tolist(), strict=True)]
        entry = {"index": name, "build_s": round(build, 1), "ms_per_query": round(1000 * seconds / args.queries, 3)}
        entry |= {"bytes_per_image": round(size), "recall@10": float(np.mean(hits) / K)}
        entry["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        found.append(entry)
        print(json.dumps(entry), flush=True)

    bank, asked = (idml_zoo.Embedding(t, torch.zeros_like(t)) for t in (torch.from_numpy(x), torch.from_numpy(q)))
    start = time.perf_counter()
    truth = search(asked, bank, K).indices.numpy()
    report("exact (idml_zoo)", 0, time.perf_counter() - start, 4 * args.dim, truth)
    coder = args.dim // 4
    for name, described, size in (
        ("IVF", f"IVF{args.lists},Flat", 4 * args.dim + 8),
        ("IVF + PQ", f"IVF{args.lists},PQ{coder}", coder + 8),
    ):
        start = time.perf_counter()
        index = faiss.index_factory(args.dim, described, faiss.METRIC_INNER_PRODUCT)
        index.train(x[np.random.default_rng(3).choice(args.images, min(args.images, 40 * args.lists), replace=False)])
        for at in range(0, args.images, 100_000):
            index.add(x[at : at + 100_000])
        build = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            index = on_disk(index, Path(folder))
            for probes in (8, 32, 128):
                index.nprobe = probes
                start = time.perf_counter()
                indices = index.search(q, K)[1]
                report(f"{name}, {probes} lists probed", build, time.perf_counter() - start, size, indices)
            del index
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
