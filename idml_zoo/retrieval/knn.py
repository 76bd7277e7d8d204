"""Exact nearest neighbours, ties by gallery index, the query itself removed by index.

A score is *defined* as the float64 value of two float32 embeddings, rounded to float32: so duplicates tie exactly, and
two machines print the same neighbours. It is found in two steps. A fast scan (one matrix product, in bfloat16 where the
machine is faster at it) bounds every score from above; the best candidates are scored exactly; and whatever the bound
does not rule out is scored exactly too. For the introspective distance the scan is the same: D = α·exp(−β/(τα)) grows
with α and falls with β = ‖u_q + u_g‖ ≤ ‖u_q‖ + ‖u_g‖, so the semantic product and the two levels bound it from below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from idml_zoo.metric import Metric, accepts_similarity_and_tau, as_metric
from idml_zoo.registry import unknown_name
from idml_zoo.reliability.reliability import Reliability
from idml_zoo.retrieval.answer_features import LISTED
from idml_zoo.retrieval.answers import Judge
from idml_zoo.retrieval.scan import Scan, ordered
from idml_zoo.types import Embedding, Neighbours, RetrievalTask

BACKENDS = ("auto", "half", "float32")
_SCANNED = 1 << 25  # scores of a scan held at once
_ROWS = 64  # queries at least, or the products would be slow


def _fast_half(device: torch.device) -> torch.dtype | None:
    """Returns the 16-bit type that the device multiplies faster than float32, if any."""
    if device.type == "cuda":
        return torch.float16  # as fast as bfloat16 and eight times as fine
    if device.type == "cpu" and any(
        getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile")
    ):
        return torch.bfloat16
    return None


@accepts_similarity_and_tau
def search(
    queries: Embedding,
    gallery: Embedding,
    k: int = 10,
    metric: Metric | str = "cosine",
    exclude_self: bool = False,
    backend: str = "auto",
    max_uncertainty: float | None = None,
    confidence: bool = False,
    gallery_labels: Tensor | None = None,
    reliability: Reliability | None = None,
    max_risk: float | None = None,
) -> Neighbours:
    """Finds the k nearest gallery images of each query, exactly, in memory that is linear in the number of images.

    Args:
        queries, gallery: embeddings of N and M images of the same width.
        k: neighbours, 1 ≤ k ≤ M (M − 1 with ``exclude_self``).
        metric: "cosine" of the semantic embeddings, "introspective" (ascending introspective distance with τ = 5), or a
            :class:`~idml_zoo.Metric`, which has a temperature of its own.
        exclude_self: queries and gallery are the same images in the same order; query i may not find itself. Removed
            by index, so that its exact duplicates still count.
        backend: of the scan; all give the same answer. "half" (bfloat16, on a GPU float16) or "float32" products, or
            "auto": half where the machine is faster at it.
        max_uncertainty: abstain: queries with a level ‖u‖ above it are marked in ``declined``.
        confidence: also say how far each answer is to be believed; at least 50 neighbours are then looked at.
        gallery_labels, reliability, max_risk: for the confidence, see :func:`~idml_zoo.assess`; each asks for it.

    Returns:
        Neighbours, nearest first; equal scores by ascending gallery index. Scores are the cosine, or −D.

    Raises:
        ValueError: k out of range, widths that differ, NaN, inf, or semantic vectors without unit norm; labels that do
            not belong to the gallery.
        UnknownNameError: unknown similarity or backend.
        ReliabilityError, RiskNotReachable: see :func:`~idml_zoo.assess`.
    """
    metric = as_metric(metric)
    _check_search(queries, gallery, k, exclude_self, backend, max_uncertainty)
    judge, listed = None, k
    if confidence or any(x is not None for x in (gallery_labels, reliability, max_risk)):
        judge = Judge.of(len(gallery), gallery_labels, reliability, max_risk)
        listed = min(max(k, LISTED), len(gallery) - exclude_self)
    (q, query_u), (g, gallery_u) = (_tensors(e, metric) for e in (queries, gallery))
    scan = Scan(g, gallery_u, metric.tau, scan_dtype(backend, q.device))
    everyone = torch.arange(len(queries), device=queries.device)
    indices = torch.empty(len(queries), listed, dtype=torch.int64)
    scores = torch.empty(len(queries), listed)
    for rows in _blocks(everyone, len(gallery)):
        u = None if query_u is None else query_u[rows]
        nearest = scan.nearest(q[rows], listed, u, rows if exclude_self else None)
        block = slice(int(rows[0]), int(rows[-1]) + 1)
        indices[block], scores[block] = nearest[0].cpu(), nearest[1].cpu()
    declined = None if max_uncertainty is None else (queries.level > max_uncertainty).cpu()
    near = Neighbours(indices, scores, exclude_self, declined)
    if judge is None:
        return near
    near = judge.judge(queries, gallery, near)
    return replace(near, indices=indices[:, :k].contiguous(), scores=scores[:, :k].contiguous())


def _check_search(
    queries: Embedding, gallery: Embedding, k: int, exclude_self: bool, backend: str, max_uncertainty: float | None
) -> None:
    if backend not in BACKENDS:
        raise unknown_name("search backend", backend, BACKENDS)
    if queries.dim != gallery.dim:
        raise ValueError(f"queries are {queries.dim}-d and the gallery {gallery.dim}-d; they must come from one model")
    if exclude_self and len(queries) != len(gallery):
        raise ValueError(
            f"exclude_self needs the same images twice, got {len(queries)} queries and {len(gallery)} in the gallery"
        )
    most = len(gallery) - exclude_self
    if not 1 <= k <= most:
        raise ValueError(f"k must be in 1–{most} (the gallery has {len(gallery)} images), got {k}")
    if max_uncertainty is not None and not max_uncertainty >= 0:
        raise ValueError(f"max_uncertainty must be a level, at least 0, got {max_uncertainty}")
    queries.check_values()
    if gallery is not queries:
        gallery.check_values()


def _tensors(e: Embedding, metric: Metric) -> tuple[Tensor, Tensor | None]:
    """Returns what a search needs of an embedding, in float32: vectors, and uncertainties where they count."""
    return e.semantic.detach().float(), e.uncertainty.detach().float() if metric.introspective else None


def merge(parts: Sequence[Neighbours], offsets: Sequence[int], k: int) -> Neighbours:
    """The neighbours in a gallery that was searched in parts, on other machines perhaps: the same as in the whole.

    Args:
        parts: the same queries' neighbours in each part of the gallery; each ``k``, or as many as the part has.
        offsets: row of the whole gallery that each part begins with.
        k: neighbours wanted.

    Raises:
        ValueError: parts of different queries, or too few neighbours in all.
    """
    if len(parts) != len(offsets) or len({len(p) for p in parts}) != 1:
        counts = sorted({len(p) for p in parts})
        raise ValueError(
            f"needs one offset for each part and the same queries in all, got {len(parts)} parts, {len(offsets)} "
            f"offsets and {counts} queries"
        )
    indices = torch.cat([p.indices + offset for p, offset in zip(parts, offsets, strict=True)], 1)
    if not 1 <= k <= indices.shape[1]:
        raise ValueError(f"k must be in 1–{indices.shape[1]} (neighbours of all parts), got {k}")
    indices, scores = ordered(indices, torch.cat([p.scores for p in parts], 1))
    return Neighbours(indices[:, :k].contiguous(), scores[:, :k].contiguous(), declined=parts[0].declined)


def ranks(
    queries: Embedding,
    gallery: Embedding,
    rows: Tensor,
    columns: Tensor,
    metric: Metric,
    exclude_self: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Returns the exact rank, from 1, of one gallery image among all neighbours of a query: cheaper than a long list.

    Args:
        queries, gallery, metric, exclude_self, backend: as in :func:`search`, which has checked them.
        rows, columns: ``(P,)`` the query and the gallery image of each pair.

    Returns:
        ``(P,)`` int64 on the CPU.
    """
    (q, query_u), (g, gallery_u) = (_tensors(e, metric) for e in (queries, gallery))
    scan = Scan(g, gallery_u, metric.tau, scan_dtype(backend, q.device))
    return _ranks(scan, q, query_u, rows, columns, exclude_self)


def _ranks(scan: Scan, q: Tensor, query_u: Tensor | None, rows: Tensor, columns: Tensor, exclude_self: bool) -> Tensor:
    rows, columns = rows.to(q.device), columns.to(q.device)
    parts = [torch.empty(0, dtype=torch.int64)]
    for part in _blocks(torch.arange(len(rows), device=q.device), 4 * len(scan.gallery)):
        row = rows[part]
        u = None if query_u is None else query_u[row]
        parts.append(scan.rank(q[row], columns[part], u, row if exclude_self else None).cpu())
    return torch.cat(parts)


def positive_ranks(
    task: RetrievalTask, neighbours: Neighbours, counts: Tensor, metric: Metric, backend: str = "auto"
) -> Tensor:
    """Returns the ``(Q,)`` rank of each query's nearest positive: read from the list, or counted where it lies beyond.

    Args:
        task, metric, backend: of the search.
        neighbours: its answer.
        counts: ``(Q,)`` positives of each query; without any, the rank is the size of the gallery.
    """
    labels = task.gallery_labels
    correct = labels[neighbours.indices] == task.query_labels[:, None]
    best = torch.where(correct.any(1), correct.int().argmax(1) + 1, len(labels))
    rows = (~correct.any(1) & (counts > 0)).nonzero().squeeze(1)
    if not len(rows):
        return best
    (q, query_u), (g, gallery_u) = (_tensors(e, metric) for e in (task.queries, task.gallery))
    scan = Scan(g, gallery_u, metric.tau, scan_dtype(backend, q.device))
    order = labels.argsort(stable=True)
    first = torch.searchsorted(labels[order], task.query_labels[rows])
    count = torch.searchsorted(labels[order], task.query_labels[rows], right=True) - first
    score, column = torch.full((len(rows),), -torch.inf), torch.zeros(len(rows), dtype=torch.int64)
    for i in range(int(count.max())):  # of equal scores, the first in the gallery stays
        pairs = (i < count).nonzero().squeeze(1)
        positive = order[first[pairs] + i]
        positive_score = scan.exact(q, query_u, rows[pairs].to(q.device), positive.to(q.device)).cpu()
        if task.same_images:
            positive_score = positive_score.masked_fill(positive == rows[pairs], -torch.inf)
        nearer = positive_score > score[pairs]
        score[pairs[nearer]], column[pairs[nearer]] = positive_score[nearer], positive[nearer]
    best[rows] = _ranks(scan, q, query_u, rows, column, task.same_images)
    return best


def class_margin(task: RetrievalTask, neighbours: Neighbours, metric: Metric, backend: str = "auto") -> Tensor:
    """Returns ``(Q,)`` how much nearer the nearest image is than the nearest of another class; 0 where there is none.

    The list may hold a single class: one of the gallery that is larger than the query's. Then the rest is searched.
    """
    labels = task.gallery_labels
    classes = labels[neighbours.indices]
    other = classes != classes[:, :1]
    second = neighbours.scores.gather(1, other.int().argmax(1, keepdim=True)).squeeze(1)
    single = ~other.any(1)
    second[single] = neighbours.scores[single, 0]
    for label in classes[single, 0].unique():
        rows = (single & (classes[:, 0] == label)).nonzero().squeeze(1)
        rest = (labels != label).nonzero().squeeze(1)
        if len(rest):
            itself = neighbours.excludes_self  # the query is among the rest where the list is of another class
            queries, gallery = task.queries[rows], task.gallery[rest]
            near = search(queries, gallery, min(1 + itself, len(rest)), metric, backend=backend)
            scores = near.scores.masked_fill(itself & (rest[near.indices] == rows[:, None]), -torch.inf).amax(1)
            second[rows] = scores.where(scores.isfinite(), second[rows])
    return neighbours.scores[:, 0] - second


def _blocks(rows: Tensor, width: int) -> tuple[Tensor, ...]:
    return rows.split(max(_ROWS, _SCANNED // width)) if len(rows) else ()


def scan_dtype(backend: str, device: torch.device) -> torch.dtype:
    """What a backend of :func:`search` multiplies in, on a device."""
    fast = _fast_half(device)
    if backend == "float32" or (backend == "auto" and fast is None):
        return torch.float32
    return fast or torch.bfloat16
