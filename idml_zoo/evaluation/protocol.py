"""evaluate(model, benchmark) -> Result: the one way a number comes to the leaderboard."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from idml_zoo import results
from idml_zoo.data.benchmark import Benchmark
from idml_zoo.data.corruptions import CORRUPTIONS
from idml_zoo.data.errors import DataError
from idml_zoo.data.split import Split
from idml_zoo.data.transforms import TransformConfig
from idml_zoo.evaluation.clustering import kmeans_settings
from idml_zoo.evaluation.cost import embedding_cost
from idml_zoo.evaluation.embed import as_device, embed
from idml_zoo.evaluation.embedders import as_embedder
from idml_zoo.evaluation.measure import CLUSTER_SEEDS, corruption_curves, measure
from idml_zoo.evaluation.provenance import code_state, command, device_name, versions
from idml_zoo.files import utc_now, write_file
from idml_zoo.registry import benchmarks, unknown_name
from idml_zoo.results import ModelInfo, Protocol, Provenance, Result
from idml_zoo.retrieval.knn import SIMILARITIES
from idml_zoo.similarity import TAU, check_tau
from idml_zoo.types import Embedding


def evaluate(
    model: Any,
    benchmark: str | Benchmark,
    *,
    root: str | Path = "data",
    transform: TransformConfig | None = None,
    row: str | None = None,
    seed: int = 0,
    similarity: str = "cosine",
    tau: float | None = None,
    cluster_seeds: Sequence[int] = CLUSTER_SEEDS,
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str | None = None,
    split: Split | None = None,
    split_name: str = "test",
    embedding: Embedding | None = None,
    embed_seconds: float = 0.0,
    variant: str | None = None,
    pretrained: str | None = None,
    checkpoint: str | None = None,
    training: str | None = None,
    train_seconds: float | None = None,
    recipe: str | None = None,
    weights_sha256: str | None = None,
    statistics: dict[str, float] | None = None,
    trained: dict[str, str] | None = None,
    progress: bool = True,
) -> Result:
    """Measures a model on a benchmark's test split.

    Args:
        model: a model of the zoo, or one's own: a callable of ``(B, 3, S, S)`` images, a timm network, or an object
            with ``encode(list of PIL images)``; it returns vectors, or pairs of vectors and uncertainties (see
            ``idml_zoo.evaluation.embedders``).
        benchmark: a registered name ("cub") or a record (see ``idml_zoo.table_benchmark``).
        root: the folder that holds the data.
        transform: preprocessing; None for the model's own.
        row: name of the leaderboard row; default head and backbone.
        seed: which seed of that row this is.
        similarity: what search uses, "cosine" or "introspective".
        tau: temperature of the introspective distance; None for that which the model was trained with (its ``tau``,
            else 5).
        cluster_seeds: seeds of k-means.
        corruptions: names of ``idml_zoo.data.corruptions``: also measure corrupted queries in the clean gallery, at
            each of ``severities``; every one embeds all images once more.
        batch_size, workers, device, progress: how to compute the embeddings.
        split, split_name: measure this split of the benchmark instead of its test split.
        embedding: of that split, by this model, where it is there already (for a second similarity); it took
            ``embed_seconds``, which count as evaluation.
        variant, pretrained, checkpoint, training, train_seconds, recipe, weights_sha256, statistics, trained: where
            the model comes from; recorded in the result, not checked. Where they are not given, loaded weights say it
            themselves, and of a model of one's own ``variant`` and ``pretrained`` are "unknown".

    Returns:
        A Result; :func:`save_result` writes it.

    Raises:
        DataError: data missing, broken, or not what the benchmark expects.
        ValueError: embeddings that are not finite or not of unit norm; a model that returns something else; an
            argument that is none, before anything is computed.
    """
    record = benchmarks[benchmark] if isinstance(benchmark, str) else benchmark
    _check_arguments(record.name, row, seed, similarity, tau, corruptions, severities)
    split = record.splits(root).test if split is None else split
    if not len(split):  # as the training split of a benchmark whose every class tests
        raise DataError(f"{record.name}: the {split_name} split has no images to measure")
    device = as_device(device)
    started = time.perf_counter()
    model = as_embedder(model, transform)
    tau = getattr(model, "tau", TAU) if tau is None else tau
    known = _history(model)
    weights_sha256 = known["weights_sha256"] if weights_sha256 is None else weights_sha256
    transform = transform or model.transform
    how: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "device": device, "progress": progress}
    if embedding is None:
        embedding = embed(model, split, transform, **how)
    severity = split.extras.get("severity")
    measured = measure(
        embedding, split.labels, record.ks, cluster_seeds, similarity, severity, queries=split.queries, tau=tau
    )
    curves = corruption_curves(model, split, transform, embedding, corruptions, severities, similarity, tau, **how)
    seconds = {"evaluate": round(embed_seconds + time.perf_counter() - started, 2)}
    if train_seconds is not None:
        seconds["train"] = round(train_seconds, 1)
    commit, dirty = code_state()
    return Result(
        benchmark=record.name,
        row=row or f"{model.config['head']}-{model.config['backbone']}",
        seed=seed,
        model=ModelInfo(
            backbone=model.config["backbone"],
            head=model.config["head"],
            embedding_dim=embedding.dim,
            pooling=model.pooling,
            parameters=sum(p.numel() for p in model.parameters()),
            pretrained=known["pretrained"] if pretrained is None else pretrained,
            variant=known["variant"] if variant is None else variant,
        ),
        protocol=Protocol(
            **_preprocessing(transform),
            similarity=similarity,
            kmeans=kmeans_settings(cluster_seeds),
            checkpoint=known["checkpoint"] if checkpoint is None else checkpoint,
            split=split_name,
            tau=tau if similarity == "introspective" and tau != TAU else None,
            self_removal="by index" if split.queries is None else "queries are not in the gallery",
        ),
        metrics=measured.metrics,
        queries=len(measured.per_query["top1"]),
        queries_without_positive=measured.without_positive,
        provenance=Provenance(
            command=command(),
            commit=commit,
            dirty=dirty,
            versions=versions(),
            device=device_name(device),
            dtype="float32",
            threads=torch.get_num_threads(),
            seconds=seconds,
            created=utc_now(),
            data_sha256=split.fingerprint(),
            weights_sha256=weights_sha256,
            recipe=recipe,
            recipe_sha256=None if recipe is None else hashlib.sha256(recipe.encode()).hexdigest(),
            trained=trained or {},
        ),
        training=known["training"] if training is None else training,
        statistics=statistics or {},
        cost=embedding_cost(model, transform, embedding.dim, similarity, device, batch_size),
        corruptions=curves,
        per_query=measured.per_query,
    )


def _history(model: Any) -> dict[str, Any]:
    """What a model says itself of where it comes from."""
    if origin := getattr(model, "origin", None):
        return dict(origin.about(model))
    source = getattr(model, "backbone_source", "unknown")
    variant = "unknown" if source == "unknown" else "none"
    return {"pretrained": source, "variant": variant, "checkpoint": "none", "training": "", "weights_sha256": None}


def _check_arguments(
    benchmark: str,
    row: str | None,
    seed: int,
    similarity: str,
    tau: float | None,
    corruptions: Sequence[str],
    severities: Sequence[int],
) -> None:
    results.check_name("benchmark", benchmark)
    if row is not None:
        results.check_name("row", row)
    if seed < 0:
        raise ValueError(f"seed must be an integer ≥ 0, got {seed}")
    if similarity not in SIMILARITIES:
        raise unknown_name("search similarity", similarity, SIMILARITIES)
    if tau is not None:
        check_tau(tau)
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise unknown_name("corruption", name, CORRUPTIONS)
    if wrong := [s for s in severities if str(s) not in results.SEVERITIES]:
        raise ValueError(f"severities are 1 to 5, got {wrong[0]}")


def _preprocessing(transform: TransformConfig | None) -> dict[str, Any]:
    """What the protocol records of it; a model that takes PIL images does its own."""
    if transform is None:
        return {"image_size": 0, "crop_fraction": 1.0, "interpolation": "the model's own", "mean": [], "std": []}
    mean, std = list(transform.mean), list(transform.std)
    return {
        "image_size": transform.image_size,
        "crop_fraction": transform.crop_fraction,
        "interpolation": transform.interpolation,
        "mean": mean,
        "std": std,
    }


def save_result(result: Result, root: str | Path) -> Path:
    """Writes a result and its per-query values under a results folder; the JSON last, so that it is never half there.

    Raises:
        FileError: the folder cannot be written to.
    """
    path = result.path(root)
    if result.per_query:
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, **{k: v if v.dtype == bool else v.astype(np.float32) for k, v in result.per_query.items()}
        )
        write_file(path.with_suffix(".queries.npz"), buffer.getvalue())
        result = replace(result, queries_sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
    write_file(path, result.to_json())
    return path
