"""Recall@K, R-Precision and MAP@R from neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idml_zoo.types import Neighbours


def as_labels(labels: object, name: str = "labels") -> Tensor:
    """Returns ``(N,)`` int64 from a tensor, array or list; raises ValueError for anything else."""
    tensor = torch.as_tensor(labels)
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(f"{name} must be one-dimensional integers, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    return tensor.to(torch.int64).cpu()


def positives(query_labels: Tensor, gallery_labels: Tensor, excludes_self: bool) -> Tensor:
    """Returns ``(N,)`` R: how many gallery images share each query's class, the query itself not counted."""
    classes, query_class = torch.cat([gallery_labels, query_labels]).unique(return_inverse=True)
    counts = torch.bincount(query_class[: len(gallery_labels)], minlength=len(classes))
    return counts[query_class[len(gallery_labels) :]] - int(excludes_self)


def per_query_metrics(
    neighbours: Neighbours, query_labels: Tensor, gallery_labels: Tensor, ks: Sequence[int] = (1, 2, 4, 8)
) -> dict[str, Tensor]:
    """Returns values of every query, ``(N,)`` float64 each; NaN for a query without positive.

    With R positives of a query in the gallery: ``recall@K`` = 1 if any of the K nearest is of its class;
    ``r_precision`` = correct among the R nearest / R; ``map@r`` = (1/R) Σ_{i≤R} P(i)·[i correct], with P(i) the
    precision among the first i (Musgrave et al., "A Metric Learning Reality Check", ECCV 2020).

    Raises:
        ValueError: labels of the wrong length, fewer neighbours than K or R ask for, or a K below 1.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be one or more numbers ≥ 1, got {tuple(ks)}")
    query_labels, gallery_labels = as_labels(query_labels, "query_labels"), as_labels(gallery_labels, "gallery_labels")
    if len(query_labels) != len(neighbours):
        raise ValueError(f"{len(neighbours)} queries but {len(query_labels)} query labels")
    if int(neighbours.indices.max()) >= len(gallery_labels):
        raise ValueError(
            f"a neighbour has index {int(neighbours.indices.max())}, but there are {len(gallery_labels)} gallery labels"
        )
    r = positives(query_labels, gallery_labels, neighbours.excludes_self)
    available = len(gallery_labels) - int(neighbours.excludes_self)
    needed = min(max(*ks, int(r.max())), available)
    if neighbours.k < needed:
        raise ValueError(
            f"Recall@{max(ks)} and R-Precision (R up to {int(r.max())}) need {needed} neighbours, got {neighbours.k}; "
            f"search with k={needed}"
        )
    correct = gallery_labels[neighbours.indices] == query_labels[:, None]
    rank = torch.arange(1, neighbours.k + 1)
    hits = correct.cumsum(1)
    within = correct & (rank <= r[:, None])
    divisor = r.double().masked_fill(r == 0, torch.nan)
    out = {f"recall@{k}": (hits[:, min(k, neighbours.k) - 1] > 0).double() + 0 * divisor for k in ks}
    out["r_precision"] = within.sum(1) / divisor
    out["map@r"] = (within * hits / rank.double()).sum(1) / divisor
    return out


def retrieval_metrics(
    neighbours: Neighbours, query_labels: Tensor, gallery_labels: Tensor, ks: Sequence[int] = (1, 2, 4, 8)
) -> dict[str, float]:
    """Returns means over the queries that have a positive, as fractions in [0, 1]; see :func:`per_query_metrics`.

    Raises:
        ValueError: as there, and where no query has a positive at all.
    """
    values = per_query_metrics(neighbours, query_labels, gallery_labels, ks)
    if bool(torch.isnan(values["map@r"]).all()):
        raise ValueError("no query has another image of its class in the gallery: nothing can be retrieved")
    return {name: float(v.nanmean()) for name, v in values.items()}
