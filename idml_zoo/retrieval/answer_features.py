"""What the neighbourhood of a query says of its answer: numbers from the list of neighbours and their vectors alone.

Nothing else of the gallery is read, so that the cost does not grow with it and any engine that lists neighbours will
do. In place of a second search (of each nearest neighbour's own list), the nearest neighbour is compared with the other
neighbours of the query: its own ten nearest among these stand for its list.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from idml_zoo.reliability.names import LABEL_FREE, LABELLED, UNCERTAINTY
from idml_zoo.types import Embedding

LISTED = 50  # neighbours that the features look at
CLOSE = 10  # those that count as close
_HELD = 1 << 20  # similarities held at once
_GATHERED = {"cpu": 1 << 19}  # values of neighbours' vectors held at once: what a core's cache holds
_GATHERED_ELSEWHERE = 1 << 26  # a GPU has more of it, and starts slowly
_LEAST = 1e-6  # range of similarities below which neighbours count as equally near


def answer_features(
    queries: Embedding,
    gallery: Embedding,
    indices: Tensor,
    gallery_labels: Tensor | None = None,
    excludes_self: bool = False,
) -> dict[str, np.ndarray]:
    """Returns the features of each query's answer, its nearest neighbour.

    Args:
        queries, gallery: embeddings of N and M images.
        indices: ``(N, k)`` their neighbours, nearest first; 50 are looked at, fewer say less.
        gallery_labels: ``(M,)`` int64 classes; None for the features that need none.
        excludes_self: whether the queries are images of the gallery that were left out of their own lists: every class
            then counts one image less.

    Returns:
        ``(N,)`` float32 arrays by name, never NaN. s₁, …, s_k are the cosines of the query with its neighbours in the
        order of the list, from the nearest, g₁; r is the largest of them minus the smallest, at least 10⁻⁶. Where the
        list is shorter than a place, its last counts; of equally similar ones, the first in the list.

        Without labels:

        - ``distance``: √(2 − 2s₁), as all distances at least 10⁻³; ``log_range``: ln r;
        - ``distance_ratio``: of the distance of the first to that of the last; ``gap_10``: s₁ − s₁₀;
        - ``overlap``: log odds of the share of g₁'s ten nearest in the list that are the query's ten nearest too;
        - ``kinship``: s₁ minus the similarity of g₁ and the tenth of these;
        - ``log_rank``: ln of the query's rank from 1 among g₁'s neighbours.

        The last three are 0 where g₁ is the only neighbour.

        With labels, *agreeing* means of the class of g₁:

        - ``margin``: s₁ minus the similarity of the first that does not agree, or of the last; ``relative_margin``:
          over r; ``log_first_other``: ln of the number before it;
        - ``posterior_40``, ``posterior_3``: log odds of the share of exp(40 s) and of exp(3 s/r) that agrees;
        - ``class_agreement``: of the share that agrees among as many neighbours as the class has images in the gallery;
        - ``agreement_10``: of the share of the ten nearest that agrees;
        - ``purity``: of the share of g₁'s ten nearest that agrees; 0 where g₁ is the only neighbour.

        Log odds are bounded: of 0.02 + 0.96·share.

        ``query_level``, ``nearest_level``: share of the gallery with a level ‖u‖ below that of the query and of g₁,
        minus one half; 0 where all of the gallery has the same level.

        (Margin and posterior: as in the k-nearest-neighbour classifiers of the literature. The rest: ours.)
    """
    indices = indices[:, :LISTED].to(queries.device)
    labels = None if gallery_labels is None else gallery_labels.to(queries.device)
    sizes = None
    if labels is not None:
        labels = labels.unique(return_inverse=True)[1]
        sizes = torch.bincount(labels) - int(excludes_self)
    names = LABEL_FREE + (LABELLED if labels is not None else ())
    values = _columns(queries.semantic.detach(), gallery.semantic.detach(), indices, labels, sizes, len(names))
    return dict(zip(names, values.numpy(), strict=True)) | _levels(queries, gallery, indices)


def _columns(
    asked: Tensor, vectors: Tensor, indices: Tensor, labels: Tensor | None, sizes: Tensor | None, count: int
) -> Tensor:
    """Returns all but the levels, ``(count, N)`` on the CPU in the order of their names, a block at a time."""
    parts = [torch.empty(count, 0)]
    rows_at_once = max(1, _HELD // indices.shape[1])
    for start in range(0, len(indices), rows_at_once):
        near = indices[start : start + rows_at_once]
        cos, kin = _similarities(asked[start : start + rows_at_once], vectors, near)
        kinship, places = _by_kinship(kin)
        columns = _label_free(cos, kinship, places)
        if labels is not None and sizes is not None:
            classes = labels[near]
            columns += _labelled(cos, places, classes == classes[:, :1], sizes[classes[:, 0]])
        parts.append(torch.stack(columns).cpu())
    return torch.cat(parts, 1)


def _similarities(asked: Tensor, vectors: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cosines of B queries with their neighbours, ``(B, k)``, and of the nearest with the others."""
    k, step = indices.shape[1], _GATHERED.get(asked.device.type, _GATHERED_ELSEWHERE)
    both = torch.empty(len(asked), k, 2, device=asked.device)
    step = max(1, step // (k * asked.shape[1]))
    for start in range(0, len(asked), step):
        part = slice(start, start + step)
        near = vectors.index_select(0, indices[part].flatten()).float().view(-1, k, asked.shape[1])
        torch.bmm(near, torch.stack([asked[part].float(), near[:, 0]], 2), out=both[part])
    return both[:, :, 0], both[:, 1:, 1]


def _log_odds(share: Tensor) -> Tensor:
    """Log odds of a share in [0, 1], bounded by those of 0.02 and 0.98."""
    inside = 0.02 + 0.96 * share.clamp(0, 1)
    return (inside / (1 - inside)).log()


def share_of(log_odds: np.ndarray) -> np.ndarray:
    """Returns the shares in [0, 1] whose log odds a feature is."""
    return ((1 / (1 + np.exp(-log_odds)) - 0.02) / 0.96).astype(np.float32)


def _distance(cos: Tensor) -> Tensor:
    return (2 - 2 * cos).clamp(min=_LEAST).sqrt()


def _range(cos: Tensor) -> Tensor:
    return (cos.amax(1) - cos.amin(1)).clamp(min=_LEAST)  # by another metric, the first need not be the largest


def _at(values: Tensor, place: int) -> Tensor:
    """Returns the column of a place from 1, or the last."""
    return values[:, min(place, values.shape[1]) - 1]


def _by_kinship(kin: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the similarities of the nearest neighbour with the others, largest first, and the places of these."""
    ordered = kin.sort(dim=1, descending=True, stable=True)
    return ordered.values, ordered.indices + 1


def _label_free(cos: Tensor, kinship: Tensor, places: Tensor) -> list[Tensor]:
    """Returns the columns of :data:`LABEL_FREE`, ``(B,)`` each.

    Args:
        cos: ``(B, k)`` similarities of the query.
        kinship, places: ``(B, k − 1)`` of :func:`_by_kinship`.
    """
    first, distance = cos[:, 0], _distance(cos)
    columns = [
        distance[:, 0],
        _range(cos).log(),
        distance[:, 0] / distance[:, -1],
        first - _at(cos, CLOSE),
    ]
    if kinship.shape[1] == 0:  # nothing to compare the nearest with
        return [*columns, *(torch.zeros_like(first) for _ in range(3))]
    nearest = kinship[:, :CLOSE]
    return [
        *columns,
        _log_odds((places[:, :CLOSE] < CLOSE).float().mean(1)),
        first - nearest[:, -1],
        (1 + (kinship > first[:, None]).sum(1)).float().log(),
    ]


def _labelled(cos: Tensor, places: Tensor, agrees: Tensor, size: Tensor) -> list[Tensor]:
    """Returns the columns of :data:`LABELLED`, ``(B,)`` each.

    Args:
        cos, places: as of :func:`_label_free`.
        agrees: ``(B, k)`` whether a neighbour is of the class of the first.
        size: ``(B,)`` images of that class in the gallery.
    """
    k, first, spread = cos.shape[1], cos[:, 0], _range(cos)
    other = ~agrees
    place = torch.where(other.any(1), other.int().argmax(1), k - 1)
    margin = first - cos.gather(1, place[:, None]).squeeze(1)
    columns = [margin, margin / spread, place.clamp(min=1).float().log()]
    for temperature in (torch.full_like(spread, 40.0), 3 / spread):
        weight = torch.exp(temperature[:, None] * (cos - cos.amax(1, keepdim=True)))
        columns.append(_log_odds((weight * agrees).sum(1) / weight.sum(1)))
    size, count = size.clamp(1, k), agrees.float().cumsum(1)
    columns.append(_log_odds(count.gather(1, size[:, None] - 1).squeeze(1) / size))
    columns.append(_log_odds(_at(count, CLOSE) / min(CLOSE, k)))
    if k == 1:
        return [*columns, torch.zeros_like(first)]
    return [*columns, _log_odds(agrees.gather(1, places[:, :CLOSE]).float().mean(1))]


def _levels(queries: Embedding, gallery: Embedding, indices: Tensor) -> dict[str, np.ndarray]:
    """Returns the levels of each query and its nearest neighbour, as places among those of the gallery."""
    query, levels = (e.level.detach().float().cpu() for e in (queries, gallery))
    if not len(levels) or float(levels.max() - levels.min()) == 0:
        return {n: np.zeros(len(query), dtype=np.float32) for n in UNCERTAINTY}
    ordered = levels.sort().values
    places = torch.searchsorted(ordered, torch.cat([query, levels[indices[:, 0].cpu()]])) / len(levels) - 0.5
    return dict(zip(UNCERTAINTY, places.numpy().reshape(2, -1), strict=True))
