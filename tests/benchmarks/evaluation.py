"""The whole evaluation at SOP's size, ours against others': 60,502 × 512, 11,316 classes. Run by hand, ~6 minutes.

    python tests/benchmarks/evaluation.py [--scale 0.1 …] [--rounds 1] [--only ours pml] [--out evaluation.json]

Contenders, each in a process of its own, on the same embeddings and with the same number of threads:

ours     idml_zoo.evaluate_embeddings: R@1, 10, 100, 1000, RP, MAP@R, NMI, AMI, F1 and the uncertainty metrics
parts    ours, in parts: search alone, k-means alone (with their objective)
pml      pytorch-metric-learning's AccuracyCalculator: R@1, RP, MAP@R, NMI (it has no more of these)
faiss    flat search (k = 13, and k = 1001 apart) and faiss k-means until it no longer improves, no metrics
sklearn  kNN and KMeans at 6,000 images and 832 clusters: what it takes, for an extrapolation

Embeddings are synthetic: a centre for each class and images around it, with a falling spectrum. Memory is the peak of
the process above what it held after loading them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IMAGES, CLASSES, DIM = 60_502, 11_316, 512
CONTENDERS = ("ours", "parts", "pml", "faiss", "sklearn")


def make(folder: Path, scale: float, dim: int = DIM) -> None:
    """Embeddings and labels: classes of 2 to 12 images, as many in all as asked for."""
    rng = np.random.default_rng(0)
    classes, images = round(CLASSES * scale), round(IMAGES * scale)
    sizes = rng.integers(2, 9, classes)
    while sizes.sum() != images:
        step = 1 if sizes.sum() < images else -1
        free = np.flatnonzero((sizes + step >= 2) & (sizes + step <= 12))
        chosen = rng.choice(free, min(len(free), abs(images - sizes.sum())), replace=False)
        sizes[chosen] += step
    labels = np.repeat(np.arange(classes), sizes)
    spectrum = np.arange(1, dim + 1) ** -0.35
    centres = rng.standard_normal((classes, dim), dtype=np.float32)
    vectors = (centres[labels] + 1.3 * rng.standard_normal((images, dim), dtype=np.float32)) * spectrum
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    levels = 0.2 * rng.random((images, 1)) / dim**0.5
    np.save(folder / "semantic.npy", vectors.astype(np.float32))
    np.save(folder / "uncertainty.npy", (levels * rng.standard_normal((images, dim))).astype(np.float32))
    np.save(folder / "labels.npy", labels)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def clocked(times: dict[str, float], name: str, call):  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    out = call()
    times[name] = time.perf_counter() - start
    return out


def objective(x: np.ndarray, found: np.ndarray) -> float:
    """Mean squared distance to the mean of each cluster."""
    total = np.zeros((found.max() + 1, x.shape[1]))
    np.add.at(total, found, x)
    means = total / np.maximum(np.bincount(found), 1)[:, None]
    return float(
        np.mean([((x[i : i + 4096] - means[found[i : i + 4096]]) ** 2).sum(1).mean() for i in range(0, len(x), 4096)])
    )


def contend(name: str, folder: Path) -> dict[str, object]:
    """Runs one contender; what it found, seconds by part, MiB above the embeddings."""
    x, labels = np.load(folder / "semantic.npy"), np.load(folder / "labels.npy")
    clusters, times, found = int(labels.max()) + 1, {}, {}
    if name in ("ours", "parts"):
        import torch

        import idml_zoo
        from idml_zoo.evaluation.kmeans import kmeans
        from idml_zoo.retrieval import knn

        bank = idml_zoo.Embedding(torch.from_numpy(x), torch.from_numpy(np.load(folder / "uncertainty.npy")))
        before = peak()
        if name == "ours":
            ks = (1, 10, 100, 1000)
            found = clocked(times, "all", lambda: idml_zoo.evaluate_embeddings(bank, labels, ks, cluster_seeds=(0,)))
        else:
            dtype = knn.scan_dtype("auto", bank.device)
            for similarity in ("cosine", "introspective"):
                clocked(times, similarity, lambda s=similarity: idml_zoo.search(bank, bank, 13, s, exclude_self=True))
            result = clocked(times, "kmeans", lambda: kmeans(bank.semantic, clusters, dtype=dtype))
            found = {"iterations": result.iterations, "objective": result.objective, "scan": str(dtype)}
    elif name == "pml":
        import torch
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        torch.set_num_threads(os.cpu_count() or 1)
        calculator = AccuracyCalculator(
            ("precision_at_1", "r_precision", "mean_average_precision_at_r", "NMI"),
            k="max_bin_count",
            device=torch.device("cpu"),
        )
        q, y = torch.from_numpy(x), torch.from_numpy(labels)
        before = peak()
        found = clocked(times, "all", lambda: calculator.get_accuracy(q, y))
    elif name == "faiss":
        import faiss

        index = faiss.IndexFlatIP(x.shape[1])
        before = peak()
        index.add(x)
        for k in (13, 1001):
            clocked(times, f"search, k = {k}", lambda k=k: index.search(x, min(k, len(x))))
        means = faiss.Kmeans(
            x.shape[1], clusters, niter=17, seed=0, min_points_per_centroid=1, max_points_per_centroid=len(x)
        )

        def cluster() -> np.ndarray:
            means.train(x)
            return means.index.search(x, 1)[1][:, 0]

        found = {"objective": objective(x, clocked(times, "kmeans, 17 iterations", cluster))}
    else:
        from sklearn.cluster import KMeans
        from sklearn.neighbors import NearestNeighbors

        x, clusters = x[:6000], min(832, clusters)
        before = peak()
        clocked(times, "kneighbors, 6,000", lambda: NearestNeighbors(n_neighbors=13).fit(x).kneighbors(x))
        clocked(times, "KMeans, 6,000, 832 clusters", lambda: KMeans(clusters, n_init=1, random_state=0).fit(x))
    return {"contender": name, "seconds": times, "mib": peak() - before, "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scale", type=float, nargs="+", default=[1.0], help="of the number of images and classes (default 1)"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(contend(args.contender, args.folder), default=float))
        return
    environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())}
    rows = []
    for scale in args.scale:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), scale)
            for name in list(args.only) * args.rounds:
                command = [sys.executable, __file__, "--contender", name, "--folder", folder]
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                if done.returncode:
                    print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    continue
                rows.append({"images": round(IMAGES * scale)} | json.loads(done.stdout.splitlines()[-1]))
                print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
