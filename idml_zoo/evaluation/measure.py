"""Every metric of the protocol from an embedding that is already there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idml_zoo.data.corruptions import RememberedImages, corrupt
from idml_zoo.data.split import Split
from idml_zoo.data.transforms import TransformConfig
from idml_zoo.evaluation.clustering import cluster_metrics
from idml_zoo.evaluation.embed import embed
from idml_zoo.evaluation.retrieval_metrics import as_labels, per_query_metrics, positives
from idml_zoo.evaluation.uncertainty import aurc, auroc, calibration_error, excess_aurc, spearman
from idml_zoo.retrieval.knn import ranks, search
from idml_zoo.retrieval.scan import exact_scores
from idml_zoo.similarity import TAU
from idml_zoo.types import Embedding, Neighbours

CLUSTER_SEEDS = (0, 1, 2)
_LISTED = 32  # neighbours that are listed at most for the sake of a Recall@K; beyond, the best positive is ranked


@dataclass(frozen=True)
class Measured:
    """Metrics and what they were averaged from; ``per_query`` arrays have one value for each query."""

    metrics: dict[str, float | None]
    per_query: dict[str, np.ndarray]
    without_positive: int


def measure(
    embedding: Embedding,
    labels: Any,
    ks: Sequence[int] = (1, 2, 4, 8),
    cluster_seeds: Sequence[int] = CLUSTER_SEEDS,
    similarity: str = "cosine",
    severity: np.ndarray | None = None,
    backend: str = "auto",
    queries: np.ndarray | None = None,
    tau: float = TAU,
) -> Measured:
    """All metrics of one set of images searched in itself, or of its ``queries`` (bool ``(N,)``) in all the others.

    See :func:`evaluate_embeddings`. Clustering is always over all images.
    """
    labels = as_labels(labels)
    if len(labels) != len(embedding):
        raise ValueError(f"{len(embedding)} embeddings but {len(labels)} labels")
    if len(labels.unique()) < 2:
        raise ValueError("all images are of one class: everything retrieved is right; at least two classes are needed")
    everyone = slice(None)
    asking = everyone if queries is None else torch.from_numpy(np.flatnonzero(queries))
    asked = everyone if queries is None else torch.from_numpy(np.flatnonzero(~queries))
    question, gallery = (embedding, embedding) if queries is None else (embedding[asking], embedding[asked])
    right, known = labels[asking], labels[asked]
    within = queries is None
    r = positives(right, known, excludes_self=within)
    if not bool((r > 0).any()):
        raise ValueError("every image is alone in its class: nothing can be retrieved")
    # as many as R-Precision needs, and one of another class than the nearest for the margin between classes
    k = min(max(*(k for k in (*ks, 1) if k <= _LISTED), int(r.max()) + 2), len(known) - within)
    neighbours = search(question, gallery, k, similarity, exclude_self=within, backend=backend, tau=tau)
    listed = [n for n in ks if n <= k or k == len(known) - within]
    values = {n: v.numpy() for n, v in per_query_metrics(neighbours, right, known, listed or (1,)).items()}
    if rest := [n for n in ks if n not in listed]:
        best = _best_rank(question, gallery, neighbours, right, known, r, similarity, backend, tau)
        values |= {f"recall@{n}": np.where(r > 0, best <= n, np.nan) for n in rest}
    metrics: dict[str, float | None] = {f"recall@{n}": float(np.nanmean(values[f"recall@{n}"])) for n in ks}
    metrics |= {n: float(np.nanmean(values[n])) for n in ("r_precision", "map@r")}
    if len(cluster_seeds):
        metrics |= cluster_metrics(embedding.semantic.detach().float(), labels.numpy(), cluster_seeds)

    counted = (r > 0).numpy()
    top1 = (known[neighbours.indices[:, 0]] == right).numpy()
    scores = {"level": question.level, "top1_similarity": -neighbours.scores[:, 0]}
    scores["margin"] = -_class_margin(neighbours, question, gallery, known, similarity, backend, tau)
    if question.semantic_norm is not None:
        scores["semantic_norm"] = -question.semantic_norm
    uncertainty = {n: s.float().cpu().numpy() for n, s in scores.items()}
    for name, score in uncertainty.items():
        wrong = ~top1[counted]
        metrics[f"auroc_{name}"] = auroc(score[counted], wrong)
        metrics[f"aurc_{name}"] = aurc(score[counted], wrong)
        metrics[f"eaurc_{name}"] = excess_aurc(score[counted], wrong)
        metrics[f"ece_{name}"] = calibration_error(score[counted], wrong, right.numpy()[counted])
    if severity is not None:
        metrics["spearman_severity"] = spearman(uncertainty["level"], severity[asking])
    per_query = {"top1": top1, "r_precision": values["r_precision"], "map@r": values["map@r"]}
    return Measured(metrics, per_query | uncertainty, int((~counted).sum()))


def _best_rank(
    question: Embedding,
    gallery: Embedding,
    neighbours: Neighbours,
    right: Tensor,
    known: Tensor,
    r: Tensor,
    similarity: str,
    backend: str,
    tau: float,
) -> np.ndarray:
    """``(N,)`` rank of each query's nearest positive: read from the list, or counted where it lies beyond."""
    correct = known[neighbours.indices] == right[:, None]
    best = torch.where(correct.any(1), correct.int().argmax(1) + 1, len(known))
    rows = (~correct.any(1) & (r > 0)).nonzero().squeeze(1)
    order = known.argsort(stable=True)
    first = torch.searchsorted(known[order], right[rows])
    count = torch.searchsorted(known[order], right[rows], right=True) - first
    score, column = torch.full((len(rows),), -torch.inf), torch.zeros(len(rows), dtype=torch.int64)
    for i in range(int(count.max()) if len(rows) else 0):  # of equal scores, the first in the gallery stays
        some = (i < count).nonzero().squeeze(1)
        other = order[first[some] + i]
        doubtful = similarity == "introspective"
        u, v = (question.uncertainty, gallery.uncertainty) if doubtful else (None, None)
        mine, theirs = (None if t is None else t[i].float() for t, i in ((u, rows[some]), (v, other)))
        found = exact_scores(
            question.semantic[rows[some]].float(), gallery.semantic[other].float(), mine, theirs, tau
        ).cpu()
        if neighbours.excludes_self:
            found = found.masked_fill(other == rows[some], -torch.inf)
        nearer = found > score[some]
        score[some[nearer]], column[some[nearer]] = found[nearer], other[nearer]
    best[rows] = ranks(question, gallery, rows, column, similarity, neighbours.excludes_self, tau, backend)
    return best.numpy()


def _class_margin(
    neighbours: Neighbours,
    question: Embedding,
    gallery: Embedding,
    known: Tensor,
    similarity: str,
    backend: str,
    tau: float,
) -> Tensor:
    """``(N,)`` how much nearer the nearest image is than the nearest of another class; 0 where there is none.

    The list may hold one class alone: one of the gallery that is larger than the query's. Then the rest is searched.
    """
    found = known[neighbours.indices]
    other = found != found[:, :1]
    second = neighbours.scores.gather(1, other.int().argmax(1, keepdim=True)).squeeze(1)
    alone = ~other.any(1)
    second[alone] = neighbours.scores[alone, 0]
    for label in found[alone, 0].unique():
        rows, rest = (alone & (found[:, 0] == label)).nonzero().squeeze(1), (known != label).nonzero().squeeze(1)
        if len(rest):
            itself = neighbours.excludes_self  # it is among the rest where the list is of another class
            near = search(
                question[rows], gallery[rest], min(1 + itself, len(rest)), similarity, tau=tau, backend=backend
            )
            scores = near.scores.masked_fill(itself & (rest[near.indices] == rows[:, None]), -torch.inf).amax(1)
            second[rows] = scores.where(scores.isfinite(), second[rows])
    return neighbours.scores[:, 0] - second


def corruption_curves(
    model: nn.Module,
    split: Split,
    transform: TransformConfig | None,
    clean: Embedding,
    corruptions: Sequence[str],
    severities: Sequence[int],
    similarity: str,
    tau: float = TAU,
    **how: Any,
) -> dict[str, dict[str, dict[str, float]]]:
    """Recall@1 and mean level of corrupted queries, searched in the clean gallery without the query's own clean image.

    Args:
        model, split, transform, how: as for :func:`~idml_zoo.evaluation.embed.embed`.
        clean: embedding of the split.
        corruptions, severities: of :mod:`idml_zoo.data.corruptions`.
        similarity, tau: of the search.

    Returns:
        ``curves["blur"]["3"] == {"recall@1": …, "level": …}``.
    """
    curves: dict[str, dict[str, dict[str, float]]] = {}
    labels = as_labels(split.labels)
    asking = torch.arange(len(labels)) if split.queries is None else torch.from_numpy(np.flatnonzero(split.queries))
    asked = torch.arange(len(labels)) if split.queries is None else torch.from_numpy(np.flatnonzero(~split.queries))
    counted = positives(labels[asking], labels[asked], split.queries is None) > 0
    resize: dict[str, Any] = {"side": 256}
    if transform is not None:  # then the transform finds nothing left to resize
        side = round(transform.image_size / transform.crop_fraction)
        resize = {"side": side, "interpolation": transform.interpolation}
    if not how.get("workers"):  # workers would each remember their own, and only for one pass
        split = split.with_images(RememberedImages(split.images, **resize))
    for name in corruptions:
        for severity in severities:
            worse = corrupt(split, name, severity, **resize)
            question = embed(model, worse, transform, **how)[asking]
            near = search(question, clean[asked], 1, similarity, exclude_self=split.queries is None, tau=tau)
            hit = labels[asked][near.indices[:, 0]] == labels[asking]
            point = {"recall@1": float(hit[counted].double().mean()), "level": float(question.level.double().mean())}
            curves.setdefault(name, {})[str(severity)] = point
    return curves


def evaluate_embeddings(
    embedding: Embedding,
    labels: Any,
    ks: Sequence[int] = (1, 2, 4, 8),
    cluster_seeds: Sequence[int] = CLUSTER_SEEDS,
    similarity: str = "cosine",
    tau: float = TAU,
) -> dict[str, float | None]:
    """The benchmark's metrics from an embedding that is already there; every image queries all the others.

    Args:
        embedding: of N images.
        labels: ``(N,)`` integers.
        ks: the K of Recall@K.
        cluster_seeds: seeds of k-means; none for no clustering.
        similarity: "cosine" or "introspective", for search; clustering is always on the semantic embedding.
        tau: temperature of the introspective distance; that which the model was trained with.

    Returns:
        Fractions in [0, 1], None where not defined:

        - ``recall@K``, ``r_precision``, ``map@r``;
        - ``nmi``, ``ami``, ``f1``, with ``*_std`` over the cluster seeds;
        - of four scores, how well each tells a wrong nearest neighbour: the uncertainty ``level``, and the free
          baselines ``top1_similarity`` (minus it), ``margin`` (minus how much nearer the nearest image is than the
          nearest of another class) and ``semantic_norm`` (minus it). ``auroc_*``: area under the ROC curve;
          ``aurc_*``: under the risk–coverage curve (lower is better); ``eaurc_*``: that above the best possible;
          ``ece_*``: expected calibration error of the score made a probability on other classes.

    Raises:
        ValueError: counts that disagree, one class only, no positive for any query, NaN or inf.
    """
    return measure(embedding, labels, ks, cluster_seeds, similarity, tau=tau).metrics
