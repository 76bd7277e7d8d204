"""Every metric of the protocol from an embedding that is already there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idml_zoo.data.corruptions import RememberedImages, corrupt
from idml_zoo.data.split import Split
from idml_zoo.data.transforms import TransformConfig
from idml_zoo.evaluation.clustering import cluster_metrics
from idml_zoo.evaluation.embed import Compute, embed_split
from idml_zoo.evaluation.error_prediction import error_prediction, error_scores
from idml_zoo.evaluation.retrieval_metrics import as_labels, per_query_metrics, positives
from idml_zoo.evaluation.uncertainty import spearman
from idml_zoo.metric import Metric, accepts_similarity_and_tau, as_metric
from idml_zoo.retrieval.answer_features import LISTED
from idml_zoo.retrieval.knn import positive_ranks, search
from idml_zoo.types import Embedding, RetrievalTask

CLUSTER_SEEDS = (0, 1, 2)
_LISTED = 32  # neighbours that are listed at most for the sake of a Recall@K; beyond, the best positive is ranked


@dataclass(frozen=True)
class Measured:
    """Metrics and what they were averaged from; ``per_query`` arrays have one value for each query."""

    metrics: dict[str, float | None]
    per_query: dict[str, np.ndarray]
    without_positive: int


def measure(
    task: RetrievalTask,
    metric: Metric,
    ks: Sequence[int] = (1, 2, 4, 8),
    severity: np.ndarray | None = None,
    backend: str = "auto",
) -> Measured:
    """Measures retrieval, and how well each score predicts a wrong nearest neighbour.

    Args:
        task: queries, gallery and their labels.
        metric: of the search.
        ks: the K of Recall@K.
        severity: ``(Q,)`` known degradation of each query, for its rank correlation with the level; None without.
        backend: of :func:`~idml_zoo.search`.

    Returns:
        The metrics of :func:`evaluate_embeddings` but for the clustering, and the values of every query.

    Raises:
        ValueError: one class only, no positive for any query, NaN or inf.
    """
    query_labels, gallery_labels, same = task.query_labels, task.gallery_labels, task.same_images
    if len(torch.cat([query_labels, gallery_labels]).unique()) < 2:
        raise ValueError("all images are of one class: every answer is correct; at least two classes are needed")
    counts = positives(query_labels, gallery_labels, excludes_self=same)
    if not bool((counts > 0).any()):
        raise ValueError("every image is alone in its class: nothing can be retrieved")
    # as many as R-Precision needs, and one of another class than the nearest for the margin between classes
    available = len(gallery_labels) - same
    k = min(max(*(k for k in (*ks, 1) if k <= _LISTED), int(counts.max()) + 2, LISTED), available)
    neighbours = search(task.queries, task.gallery, k, metric, exclude_self=same, backend=backend)
    listed = [n for n in ks if n <= k or k == available]
    by_query = per_query_metrics(neighbours, query_labels, gallery_labels, listed or (1,))
    values = {n: v.numpy() for n, v in by_query.items()}
    if beyond := [n for n in ks if n not in listed]:
        rank = positive_ranks(task, neighbours, counts, metric, backend).numpy()
        values |= {f"recall@{n}": np.where(counts > 0, rank <= n, np.nan) for n in beyond}
    metrics: dict[str, float | None] = {f"recall@{n}": float(np.nanmean(values[f"recall@{n}"])) for n in ks}
    metrics |= {n: float(np.nanmean(values[n])) for n in ("r_precision", "map@r")}

    counted = (counts > 0).numpy()
    top1 = (gallery_labels[neighbours.indices[:, 0]] == query_labels).numpy()
    scores = error_scores(task, neighbours, metric, backend)
    of_counted = {n: s[counted] for n, s in scores.items()}
    metrics |= error_prediction(of_counted, ~top1[counted], query_labels.numpy()[counted])
    if severity is not None:
        metrics["spearman_severity"] = spearman(scores["level"], severity)
    per_query = {"top1": top1, "r_precision": values["r_precision"], "map@r": values["map@r"]}
    return Measured(metrics, per_query | scores, int((~counted).sum()))


def corruption_curves(
    model: nn.Module,
    split: Split,
    transform: TransformConfig | None,
    task: RetrievalTask,
    corruptions: Mapping[str, Sequence[int]],
    metric: Metric,
    compute: Compute,
) -> dict[str, dict[str, dict[str, float]]]:
    """Measures Recall@1 and mean level of corrupted queries, in the clean gallery without the query's own clean image.

    Args:
        model, split, transform, compute: as for :func:`~idml_zoo.evaluation.embed.embed_split`.
        task: of the clean embedding of the split.
        corruptions: of :mod:`idml_zoo.data.corruptions`, with their severities from 1 to 5.
        metric: of the search.

    Returns:
        ``curves["blur"]["3"] == {"recall@1": …, "level": …}``.
    """
    curves: dict[str, dict[str, dict[str, float]]] = {}
    is_query = slice(None) if split.queries is None else torch.from_numpy(split.queries)
    counted = positives(task.query_labels, task.gallery_labels, task.same_images) > 0
    resize: dict[str, Any] = {"side": 256}
    if transform is not None:  # then the transform finds nothing left to resize
        side = round(transform.image_size / transform.crop_fraction)
        resize = {"side": side, "interpolation": transform.interpolation}
    if not compute.workers:  # workers would each remember their own, and only for one pass
        split = split.with_images(RememberedImages(split.images, **resize))
    for name, severities in corruptions.items():
        for severity in severities:
            worse = corrupt(split, name, severity, **resize)
            queries = embed_split(model, worse, transform, compute)[is_query]
            near = search(queries, task.gallery, 1, metric, exclude_self=task.same_images)
            hit = task.gallery_labels[near.indices[:, 0]] == task.query_labels
            point = {"recall@1": float(hit[counted].double().mean()), "level": float(queries.level.double().mean())}
            curves.setdefault(name, {})[str(severity)] = point
    return curves


@accepts_similarity_and_tau
def evaluate_embeddings(
    embedding: Embedding,
    labels: Any,
    ks: Sequence[int] = (1, 2, 4, 8),
    cluster_seeds: Sequence[int] = CLUSTER_SEEDS,
    metric: Metric | str = "cosine",
) -> dict[str, float | None]:
    """Returns the benchmark's metrics from an embedding that is already there; every image queries all the others.

    Args:
        embedding: of N images.
        labels: ``(N,)`` integers.
        ks: the K of Recall@K.
        cluster_seeds: seeds of k-means; none for no clustering.
        metric: "cosine", "introspective" or a :class:`~idml_zoo.Metric`, for search; clustering is always on the
            semantic embedding.

    Returns:
        Fractions in [0, 1], None where not defined:

        - ``recall@K``, ``r_precision``, ``map@r``;
        - ``nmi``, ``ami``, ``f1``, with ``*_std`` over the cluster seeds;
        - of each score of :func:`~idml_zoo.evaluation.error_prediction.error_scores` (the uncertainty level, free
          baselines, confidence with and without labels), how well it predicts a wrong nearest neighbour. ``auroc_*``:
          area under the ROC curve; ``aurc_*``: under the risk–coverage curve (lower is better); ``eaurc_*``: that above
          the best possible; ``ece_*``: expected calibration error; ``coverage5_*``, ``coverage10_*``: share of queries
          that are answered where at most 5 or 10 % of the answers are wrong.

    Raises:
        ValueError: counts that disagree, one class only, no positive for any query, NaN or inf.
    """
    labels = as_labels(labels)
    metrics = measure(RetrievalTask.of(embedding, labels), as_metric(metric), ks).metrics
    return metrics | clustering(embedding, labels, cluster_seeds)


def clustering(embedding: Embedding, labels: Tensor, seeds: Sequence[int]) -> dict[str, float | None]:
    """Returns the clustering metrics of all images, on the semantic embedding; none without seeds."""
    if not len(seeds):
        return {}
    return dict(cluster_metrics(embedding.semantic.detach().float(), labels.numpy(), seeds))
