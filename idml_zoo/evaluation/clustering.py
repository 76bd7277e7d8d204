"""k-means clusters against the classes: NMI, AMI and pairwise F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from idml_zoo.evaluation.knn import has_faiss

ITERATIONS = 25


def kmeans_settings(seeds: Sequence[int]) -> dict[str, Any]:
    """What the protocol records of the clustering."""
    if has_faiss():
        settings: dict[str, Any] = {"implementation": "faiss", "init": "random points", "points": "all"}
    else:
        settings = {"implementation": "scikit-learn", "init": "random points", "points": "all"}
    return settings | {"iterations": ITERATIONS, "restarts": 1, "seeds": list(seeds)}


def kmeans(vectors: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """``(N,)`` cluster of each of ``(N, D)`` float32 vectors; faiss, or scikit-learn where faiss is absent."""
    if has_faiss():
        import faiss

        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        # faiss would warn below 39 points a cluster and sub-sample above 256 unless told otherwise
        means = faiss.Kmeans(
            vectors.shape[1],
            clusters,
            niter=ITERATIONS,
            nredo=1,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=len(vectors),
        )
        means.train(vectors)
        return means.index.search(vectors, 1)[1][:, 0]
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # fewer distinct points than clusters is no reason to fail
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(clusters, init="random", n_init=1, max_iter=ITERATIONS, random_state=seed).fit_predict(vectors)


def pairwise_f1(labels: np.ndarray, clusters: np.ndarray) -> float:
    """F1 of "these two images share a class" judged by "they share a cluster", over all pairs; in [0, 1]."""
    from sklearn.metrics import pair_confusion_matrix

    ((_, false_positive), (false_negative, true_positive)) = pair_confusion_matrix(labels, clusters).astype(float)
    denominator = 2 * true_positive + false_positive + false_negative
    return float(2 * true_positive / denominator) if denominator else 0.0


def cluster_metrics(vectors: np.ndarray, labels: np.ndarray, seeds: Sequence[int] = (0,)) -> dict[str, float]:
    """NMI (arithmetic), AMI and F1 of k-means with K = number of classes: mean, and ``*_std`` over ``seeds``.

    Args:
        vectors: ``(N, D)`` unit vectors.
        labels: ``(N,)`` integers.
        seeds: of k-means; the standard deviation is the sample's (0 for one seed).
    """
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    rows = []
    for seed in seeds:
        found = kmeans(vectors, len(np.unique(labels)), seed)
        ami = max(0.0, adjusted_mutual_info_score(labels, found))  # chance level is 0 and may be undershot by noise
        rows.append((normalized_mutual_info_score(labels, found), ami, pairwise_f1(labels, found)))
    values = np.array(rows)
    spread = values.std(0, ddof=1) if len(rows) > 1 else np.zeros(3)
    names = ("nmi", "ami", "f1")
    return {n: float(v) for n, v in zip(names, values.mean(0), strict=True)} | {
        f"{n}_std": float(v) for n, v in zip(names, spread, strict=True)
    }
