"""What the neighbourhood of a query says of its answer: numbers from the list of neighbours and their vectors alone.

Nothing else of the gallery is read, so that the cost does not grow with it and any engine that lists neighbours will do.
In place of a second search (of each nearest neighbour's own list), the nearest neighbour is compared with the other
neighbours of the query: its own ten nearest among these stand for its list.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from idml_zoo.types import Embedding

LISTED = 50  # neighbours that the features look at
CLOSE = 10  # those that count as close
LABEL_FREE = (
    "distance",
    "log_range",
    "distance_ratio",
    "close_distance_ratio",
    "gap_2",
    "gap_10",
    "overlap",
    "kinship",
    "log_rank",
    "cohesion",
)
LABELLED = (
    "margin",
    "relative_margin",
    "log_first_other",
    "posterior_40",
    "posterior_3",
    "posterior_5",
    "class_agreement",
    "class_precision",
    "agreement_3",
    "agreement_10",
    "purity",
    "class_purity",
)
UNCERTAINTY = ("query_level", "nearest_level")
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
        excludes_self: whether queries and gallery are the same images: a query then counts for no class.

    Returns:
        ``(N,)`` float32 arrays by name; s₁ ≥ … ≥ s_k are the cosines of the query with its neighbours, g₁ the nearest.

        Without labels:

        - ``distance``: √(2 − 2s₁); ``log_range``: ln(s₁ − s_k);
        - ``distance_ratio``, ``close_distance_ratio``: of the distance of the first to that of the last, and the tenth;
        - ``gap_2``, ``gap_10``: s₁ − s₂ and s₁ − s₁₀;
        - ``overlap``: log odds of the share of g₁'s ten nearest among the neighbours that are the query's nearest too;
        - ``kinship``: s₁ minus the similarity of g₁ and the tenth of these;
        - ``log_rank``: ln of the query's rank among g₁'s neighbours;
        - ``cohesion``: mean similarity of g₁ with its ten nearest, minus that of the query with its own.

        With labels, *agreeing* means of the class of g₁:

        - ``margin``: s₁ minus the similarity of the first that does not agree; ``relative_margin``: over s₁ − s_k;
          ``log_first_other``: ln of its place, from 0, at least 1;
        - ``posterior_40``: log odds of the share of exp(40 s) that agrees; ``posterior_3``, ``posterior_5``: of
          exp(t·s/(s₁ − s_k));
        - ``class_agreement``, ``class_precision``: log odds of the share that agrees among as many as the class has images
          in the gallery, and of MAP@R for that class;
        - ``agreement_3``, ``agreement_10``: log odds of the share of the first that agrees;
        - ``purity``, ``class_purity``: the same among g₁'s ten nearest, and among as many as its class has.

        Where one of the images has an uncertainty: ``query_level``, ``nearest_level``: share of the gallery with a lower
        level ‖u‖, minus one half; else 0.

        (Margin and posterior: as in the k-nearest-neighbour classifiers of the literature. The rest: ours.)
    """
    indices = indices[:, :LISTED].to(queries.device)
    labels = None if gallery_labels is None else gallery_labels.to(queries.device).unique(return_inverse=True)[1]
    sizes = None if labels is None else torch.bincount(labels) - int(excludes_self)
    parts: list[Tensor] = []
    rows_at_once = max(1, _HELD // max(1, indices.shape[1]))
    for start in range(0, len(indices), rows_at_once):
        near = indices[start : start + rows_at_once]
        cos, kin = _similarities(queries.semantic.detach()[start : start + len(near)], gallery.semantic.detach(), near)
        columns = _label_free(cos, kin)
        if labels is not None and sizes is not None:
            classes = labels[near]
            columns += _labelled(cos, kin, classes == classes[:, :1], sizes[classes[:, 0]])
        parts.append(torch.stack(columns))
    names = LABEL_FREE + (LABELLED if labels is not None else ())
    values = torch.cat(parts, 1).cpu().numpy() if parts else np.empty((len(names), 0), dtype=np.float32)
    return dict(zip(names, values, strict=True)) | _levels(queries, gallery, indices)


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
    return (cos[:, 0] - cos[:, -1]).clamp(min=_LEAST)


def _at(values: Tensor, place: int) -> Tensor:
    """Returns the column of a place from 1, or the last."""
    return values[:, min(place, values.shape[1]) - 1]


def _own_nearest(kin: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the similarities of the nearest neighbour with its own close ones, and their places in the list."""
    close = kin.topk(min(CLOSE, kin.shape[1]), dim=1)
    return close.values, close.indices + 1


def _label_free(cos: Tensor, kin: Tensor) -> list[Tensor]:
    """Returns the columns of :data:`LABEL_FREE`, ``(B,)`` each, of ``(B, k)`` and ``(B, k − 1)`` similarities."""
    first, distance = cos[:, 0], _distance(cos)
    columns = [
        distance[:, 0],
        _range(cos).log(),
        distance[:, 0] / distance[:, -1],
        distance[:, 0] / _at(distance, CLOSE),
        first - _at(cos, 2),
        first - _at(cos, CLOSE),
    ]
    if kin.shape[1] == 0:  # nothing to compare the nearest with
        return [*columns, *(torch.zeros_like(first) for _ in range(4))]
    nearest, places = _own_nearest(kin)
    return [
        *columns,
        _log_odds((places < CLOSE).float().mean(1)),
        first - nearest[:, -1],
        (1 + (kin > first[:, None]).sum(1)).float().log(),
        nearest.mean(1) - cos[:, 1 : CLOSE + 1].mean(1),
    ]


def _labelled(cos: Tensor, kin: Tensor, agrees: Tensor, size: Tensor) -> list[Tensor]:
    """Returns the columns of :data:`LABELLED`, ``(B,)`` each.

    Args:
        cos, kin: as of :func:`_label_free`.
        agrees: ``(B, k)`` whether a neighbour is of the class of the first.
        size: ``(B,)`` images of that class in the gallery.
    """
    k, first, spread = cos.shape[1], cos[:, 0], _range(cos)
    other = ~agrees
    place = torch.where(other.any(1), other.int().argmax(1), k - 1)
    margin = first - cos.gather(1, place[:, None]).squeeze(1)
    columns = [margin, margin / spread, place.clamp(min=1).float().log()]
    for temperature in (torch.full_like(spread, 40.0), 3 / spread, 5 / spread):
        weight = torch.exp(temperature[:, None] * (cos - cos[:, :1]))
        columns.append(_log_odds((weight * agrees).sum(1) / weight.sum(1)))
    size = size.clamp(1, k)
    count = agrees.float().cumsum(1)
    ranks = torch.arange(1, k + 1, device=cos.device)
    precision = (count / ranks * agrees * (ranks <= size[:, None])).sum(1) / size
    columns += [_log_odds(count.gather(1, size[:, None] - 1).squeeze(1) / size), _log_odds(precision)]
    columns += [_log_odds(_at(count, n) / min(n, k)) for n in (3, CLOSE)]
    if k == 1:
        return [*columns, *(torch.zeros_like(first) for _ in range(2))]
    places = _own_nearest(kin)[1]
    columns.append(_log_odds(agrees.gather(1, places).float().mean(1)))
    by_kinship = agrees.gather(1, kin.argsort(dim=1, descending=True, stable=True) + 1).float().cumsum(1)
    mates = (size - 1).clamp(1, k - 1)
    return [*columns, _log_odds(by_kinship.gather(1, mates[:, None] - 1).squeeze(1) / mates)]


def _levels(queries: Embedding, gallery: Embedding, indices: Tensor) -> dict[str, np.ndarray]:
    """Returns the levels of each query and its nearest neighbour, as places among those of the gallery."""
    query, levels = (e.level.detach().float().cpu() for e in (queries, gallery))
    if not len(levels) or float(levels.max() - levels.min()) == 0:
        return {n: np.zeros(len(query), dtype=np.float32) for n in UNCERTAINTY}
    ordered = levels.sort().values
    places = torch.searchsorted(ordered, torch.cat([query, levels[indices[:, 0].cpu()]])) / len(levels) - 0.5
    return dict(zip(UNCERTAINTY, places.numpy().reshape(2, -1), strict=True))
