"""Exact nearest neighbours, ties by gallery index, the query itself removed by index."""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor

from idml_zoo.registry import unknown_name
from idml_zoo.similarity import TAU, introspective_distance
from idml_zoo.types import Embedding, Neighbours

SIMILARITIES = ("cosine", "introspective")
_BLOCK = 1 << 24  # scores held at once


def has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


def search(
    queries: Embedding,
    gallery: Embedding,
    k: int = 10,
    similarity: str = "cosine",
    exclude_self: bool = False,
    tau: float = TAU,
    backend: str = "auto",
) -> Neighbours:
    """The k nearest gallery images of each query, exactly.

    Args:
        queries, gallery: embeddings of N and M images of one width.
        k: neighbours, 1 ≤ k ≤ M (M − 1 with ``exclude_self``).
        similarity: "cosine" of the semantic embeddings, or "introspective": ascending introspective distance.
        exclude_self: queries and gallery are the same images in the same order; query i may not find itself. Removed
            by index, so that its exact duplicates still count.
        tau: temperature of the introspective distance.
        backend: "faiss" (cosine only), "torch", or "auto": faiss where it is installed and serves.

    Returns:
        Neighbours, nearest first; equal scores by ascending gallery index. Scores are the cosine, or −D.

    Raises:
        ValueError: k out of range, widths that differ, NaN, inf, or semantic vectors without unit norm.
        UnknownNameError: unknown similarity or backend.
    """
    if similarity not in SIMILARITIES:
        raise unknown_name("search similarity", similarity, SIMILARITIES)
    if backend not in ("auto", "faiss", "torch"):
        raise unknown_name("search backend", backend, ("auto", "faiss", "torch"))
    if queries.dim != gallery.dim:
        raise ValueError(f"queries are {queries.dim}-d and the gallery {gallery.dim}-d; they must come from one model")
    if exclude_self and len(queries) != len(gallery):
        raise ValueError(
            f"exclude_self needs the same images twice, got {len(queries)} queries and {len(gallery)} in the gallery"
        )
    most = len(gallery) - exclude_self
    if not 1 <= k <= most:
        raise ValueError(f"k must be in 1–{most} (the gallery has {len(gallery)} images), got {k}")
    queries.check_values()
    gallery.check_values()
    queries, gallery = queries.detach().to(torch.float32), gallery.detach().to(torch.float32)
    if backend == "faiss" and similarity != "cosine":
        raise ValueError("faiss has no index for the introspective distance; use backend='torch' (or 'auto')")
    if similarity == "cosine" and (
        backend == "faiss" or (backend == "auto" and queries.device.type == "cpu" and has_faiss())
    ):
        return _search_faiss(queries, gallery, k, exclude_self)
    return _search_torch(queries, gallery, k, similarity, exclude_self, tau, torch.arange(len(queries)))


def _scores(queries: Embedding, gallery: Embedding, similarity: str, tau: float) -> Tensor:
    if similarity == "cosine":
        return queries.semantic @ gallery.semantic.T
    return -introspective_distance(queries, gallery, tau)


def _ordered(scores: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Rows sorted by descending score, equal scores by ascending index."""
    by_index = indices.argsort(dim=1)
    indices, scores = indices.gather(1, by_index), scores.gather(1, by_index)
    by_score = scores.argsort(dim=1, descending=True, stable=True)
    return indices.gather(1, by_score), scores.gather(1, by_score)


def _search_torch(
    queries: Embedding, gallery: Embedding, k: int, similarity: str, exclude_self: bool, tau: float, rows: Tensor
) -> Neighbours:
    """``rows``: for ``exclude_self``, the gallery row of each query."""
    found_i, found_s = [], []
    step = max(1, _BLOCK // len(gallery))
    for start in range(0, len(queries), step):
        scores = _scores(queries[start : start + step], gallery, similarity, tau)
        if exclude_self:
            scores[torch.arange(len(scores)), rows[start : start + step]] = -torch.inf
        top = scores.topk(min(k + 1, scores.shape[1]))
        indices, values = top.indices, top.values
        if indices.shape[1] > k:
            # topk chooses freely among equals: where the cut goes through a tie, a full stable sort settles it
            tied = (values[:, k - 1] == values[:, k]).nonzero().squeeze(1)
            if len(tied):
                full = scores[tied].sort(dim=1, descending=True, stable=True)
                indices[tied], values[tied] = full.indices[:, : k + 1], full.values[:, : k + 1]
        indices, values = _ordered(values[:, :k], indices[:, :k])
        found_i.append(indices.cpu())
        found_s.append(values.cpu())
    return Neighbours(torch.cat(found_i), torch.cat(found_s), excludes_self=exclude_self)


def _search_faiss(queries: Embedding, gallery: Embedding, k: int, exclude_self: bool) -> Neighbours:
    import faiss

    q, g = (np.ascontiguousarray(e.semantic.cpu().numpy()) for e in (queries, gallery))
    index = faiss.IndexFlatIP(g.shape[1])
    index.add(g)
    fetch = min(k + 1 + exclude_self, len(g))
    values, indices = (torch.from_numpy(a) for a in index.search(q, fetch))
    if exclude_self:  # push the query itself to the end; where it was not fetched, its duplicates fill the list
        own = indices == torch.arange(len(q))[:, None]
        values = values.masked_fill(own, -torch.inf)
    indices, values = _ordered(values, indices)
    if fetch > k:
        tied = (values[:, k - 1] == values[:, k]).nonzero().squeeze(1)
        if len(tied):
            exact = _search_torch(queries[tied], gallery, k, "cosine", exclude_self, TAU, tied)
            indices[tied, :k], values[tied, :k] = exact.indices, exact.scores
    return Neighbours(indices[:, :k].contiguous(), values[:, :k].contiguous(), excludes_self=exclude_self)
