"""k-means clusters against the classes: NMI, AMI and pairwise F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from idml_zoo.evaluation.kmeans import kmeans
from idml_zoo.retrieval.knn import scan_dtype

ITERATIONS = 100


def kmeans_settings(seeds: Sequence[int]) -> dict[str, Any]:
    """What the protocol records of the clustering."""
    settings = {"implementation": "idml_zoo, exact Lloyd", "init": "random points", "points": "all"}
    return settings | {"iterations": ITERATIONS, "restarts": 1, "seeds": list(seeds)}


def expected_mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """The mean mutual information, in nats, of two partitions of the same sizes whose members are drawn at random.

    E = Σ_ab Σ_n (n/N)·log(N·n/(a·b))·P(n), P hypergeometric (Vinh, Epps and Bailey, JMLR 2010). It depends on the sizes
    alone, of which few differ: a sum over distinct sizes, where scikit-learn's is over all pairs of clusters.

    Args:
        first, second: ``(A,)`` and ``(B,)`` sizes of the parts, ≥ 1, with the same sum N.
    """
    from scipy.special import gammaln

    total = int(first.sum())
    (sizes_a, count_a), (sizes_b, count_b) = (np.unique(s, return_counts=True) for s in (first, second))
    log_factorial = gammaln(np.arange(total + 1) + 1.0)
    information = 0.0
    for a, times_a in zip(sizes_a.tolist(), count_a.tolist(), strict=True):
        for b, times_b in zip(sizes_b.tolist(), count_b.tolist(), strict=True):
            n = np.arange(max(1, a + b - total), min(a, b) + 1)
            log_p = log_factorial[[a, b, total - a, total - b]].sum() - log_factorial[total]
            log_p = log_p - (log_factorial[n] + log_factorial[a - n] + log_factorial[b - n])
            log_p -= log_factorial[total - a - b + n]
            information += times_a * times_b * float((n / total * np.log(total * n / (a * b)) * np.exp(log_p)).sum())
    return information


def adjusted_mutual_information(labels: np.ndarray, clusters: np.ndarray) -> float:
    """AMI with the arithmetic mean of the entropies (Vinh et al.); at most 1, about 0 for a random clustering."""
    from scipy.stats import entropy
    from sklearn.metrics import mutual_info_score

    sizes = [np.unique(x, return_counts=True)[1] for x in (labels, clusters)]
    if len(sizes[0]) == len(sizes[1]) in (1, len(labels)):  # the same partition, and no other of these sizes
        return 1.0
    expected = expected_mutual_information(*sizes)
    room = float(np.mean([entropy(s) for s in sizes])) - expected
    return float(mutual_info_score(labels, clusters) - expected) / max(room, np.finfo(float).eps)


def pairwise_f1(labels: np.ndarray, clusters: np.ndarray) -> float:
    """F1 of "these two images share a class" judged by "they share a cluster", over all pairs; in [0, 1]."""
    from sklearn.metrics import pair_confusion_matrix

    ((_, false_positive), (false_negative, true_positive)) = pair_confusion_matrix(labels, clusters).astype(float)
    denominator = 2 * true_positive + false_positive + false_negative
    return float(2 * true_positive / denominator) if denominator else 0.0


def cluster_metrics(
    vectors: np.ndarray | torch.Tensor, labels: np.ndarray, seeds: Sequence[int] = (0,)
) -> dict[str, float]:
    """NMI (arithmetic), AMI and F1 of k-means with K = number of classes: mean, and ``*_std`` over ``seeds``.

    Args:
        vectors: ``(N, D)`` unit vectors, array or tensor; k-means computes where they are.
        labels: ``(N,)`` integers.
        seeds: of k-means; the standard deviation is the sample's (0 for one seed).
    """
    from sklearn.metrics import normalized_mutual_info_score

    rows = []
    points = torch.as_tensor(vectors, dtype=torch.float32)
    for seed in seeds:
        dtype = scan_dtype("auto", points.device)
        clusters = kmeans(points, len(np.unique(labels)), seed, ITERATIONS, dtype).clusters.cpu().numpy()
        # chance level is 0 and may be undershot by noise; 1 may be overshot by rounding
        ami = min(1.0, max(0.0, adjusted_mutual_information(labels, clusters)))
        nmi = min(1.0, normalized_mutual_info_score(labels, clusters))
        rows.append((nmi, ami, pairwise_f1(labels, clusters)))
    values = np.array(rows)
    spread = values.std(0, ddof=1) if len(rows) > 1 else np.zeros(3)
    names = ("nmi", "ami", "f1")
    return {n: float(v) for n, v in zip(names, values.mean(0), strict=True)} | {
        f"{n}_std": float(v) for n, v in zip(names, spread, strict=True)
    }
