"""evaluate(model, benchmark) -> Result: the one way a number comes to the leaderboard."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
from idml_zoo.evaluation.embed import Compute, MeasuredSplit, as_device, embed_split
from idml_zoo.evaluation.embedders import as_embedder
from idml_zoo.evaluation.error_prediction import open_set
from idml_zoo.evaluation.measure import CLUSTER_SEEDS, clustering, corruption_curves, measure
from idml_zoo.evaluation.old_keywords import accepts_keywords_of_01
from idml_zoo.evaluation.provenance import code_state, command, device_name, training_record, versions
from idml_zoo.evaluation.retrieval_metrics import as_labels
from idml_zoo.files import utc_now, write_file
from idml_zoo.metric import TAU, Metric
from idml_zoo.registry import benchmarks, unknown_name
from idml_zoo.results import ModelInfo, Protocol, Provenance, Result, TrainingRecord


@accepts_keywords_of_01
def evaluate(
    model: Any,
    benchmark: str | Benchmark,
    *,
    root: str | Path = "data",
    row: str | None = None,
    seed: int = 0,
    metric: Metric | str | None = None,
    transform: TransformConfig | None = None,
    cluster_seeds: Sequence[int] = CLUSTER_SEEDS,
    corruptions: Sequence[str] | Mapping[str, Sequence[int]] = (),
    split: Split | MeasuredSplit | None = None,
    training: TrainingRecord | None = None,
    **options: Any,
) -> Result:
    """Measures a model on a benchmark's test split; :func:`save_result` writes what it returns.

    Args:
        model: a model of the zoo, or your own; see :func:`~idml_zoo.evaluation.embedders.as_embedder`.
        benchmark: a registered name ("cub") or a record (see :func:`idml_zoo.table_benchmark`).
        root: the folder that holds the data.
        row: name of the leaderboard row; default head and backbone.
        seed: which seed of that row this is, at least 0.
        metric: of the search: "cosine", "introspective" (with the temperature that the model was trained with), or a
            :class:`~idml_zoo.Metric`. Default: the cosine.
        transform: preprocessing; None for the model's own.
        cluster_seeds: seeds of k-means.
        corruptions: names of :mod:`idml_zoo.data.corruptions`, at severities 1 to 5, or names with their severities:
            also measure corrupted queries in the clean gallery. Each embeds all images once more.
        split: measure this split instead of the benchmark's test split.
        training: where the weights come from; recorded, not checked. None: loaded weights say it themselves.
        options: ``open_set=True``: also measure queries whose class is not in the gallery, see
            :func:`~idml_zoo.evaluation.error_prediction.open_set`; ``batch_size``, ``workers``, ``device``,
            ``progress``: see :func:`idml_zoo.embed`.

    Raises:
        DataError: data missing, broken, or not what the benchmark expects.
        TypeError: an unknown keyword.
        ValueError: a bad argument, before anything is computed; embeddings that are not finite or not of unit norm.
    """
    with_open_set = bool(options.pop("open_set", False))
    if not set(options) <= {f.name for f in fields(Compute)}:
        raise TypeError(f"evaluate() has no argument {sorted(set(options) - {f.name for f in fields(Compute)})[0]!r}")
    record = benchmarks[benchmark] if isinstance(benchmark, str) else benchmark
    _check_names(record.name, row, seed)
    metric, severities = _metric_of(model, metric), _severities(corruptions)
    if not isinstance(split, MeasuredSplit):
        split = MeasuredSplit(record.splits(root).test if split is None else split)
    if not len(split.split):  # as the training split of a benchmark whose every class tests
        raise DataError(f"{record.name}: the {split.name} split has no images to measure")
    how = Compute(**options)
    how = replace(how, device=as_device(how.device))
    model = as_embedder(model, transform)
    transform = transform or model.transform
    training = training or training_record(model)
    job = _Job(model, record, split, transform, metric, cluster_seeds, severities, with_open_set, training, how)
    return job.run(row, seed)


@dataclass(frozen=True)
class _Job:
    """A checked call of :func:`evaluate`."""

    model: Any
    benchmark: Benchmark
    split: MeasuredSplit
    transform: TransformConfig | None
    metric: Metric
    cluster_seeds: Sequence[int]
    corruptions: Mapping[str, Sequence[int]]
    open_set: bool
    training: TrainingRecord
    compute: Compute

    def run(self, row: str | None, seed: int) -> Result:
        started = time.perf_counter()
        model, split, metric = self.model, self.split.split, self.metric
        embedding = self.split.embedding
        if embedding is None:
            embedding = embed_split(model, split, self.transform, self.compute)
        task = split.task(embedding)
        severity = split.extras.get("severity")
        if severity is not None and split.queries is not None:
            severity = severity[split.queries]
        measured = measure(task, metric, self.benchmark.ks, severity)
        clusters = clustering(embedding, as_labels(split.labels), self.cluster_seeds)
        curves = corruption_curves(model, split, self.transform, task, self.corruptions, metric, self.compute)
        unknown = open_set(task, metric) if self.open_set else {}
        seconds = {"evaluate": round(self.split.seconds + time.perf_counter() - started, 2)}
        if self.training.seconds is not None:
            seconds["train"] = round(self.training.seconds, 1)
        device, training = as_device(self.compute.device), self.training
        return Result(
            benchmark=self.benchmark.name,
            row=row or f"{model.config['head']}-{model.config['backbone']}",
            seed=seed,
            model=self._model(embedding.dim),
            protocol=self._protocol(),
            metrics=measured.metrics | clusters,
            queries=len(measured.per_query["top1"]),
            queries_without_positive=measured.without_positive,
            provenance=self._provenance(device, seconds),
            training=training.description,
            statistics=training.statistics,
            cost=embedding_cost(model, self.transform, embedding.dim, metric, device, self.compute.batch_size),
            corruptions=curves,
            open_set=unknown,
            per_query=measured.per_query,
        )

    def _model(self, dim: int) -> ModelInfo:
        model = self.model
        return ModelInfo(
            backbone=model.config["backbone"],
            head=model.config["head"],
            embedding_dim=dim,
            pooling=model.pooling,
            parameters=sum(p.numel() for p in model.parameters()),
            pretrained=self.training.pretrained,
            variant=self.training.variant,
        )

    def _protocol(self) -> Protocol:
        metric, queries = self.metric, self.split.split.queries
        return Protocol(
            **_preprocessing(self.transform),
            similarity=metric.similarity,
            kmeans=kmeans_settings(self.cluster_seeds),
            checkpoint=self.training.checkpoint,
            split=self.split.name,
            tau=metric.tau if metric.introspective and metric.tau != TAU else None,
            self_removal="by index" if queries is None else "queries are not in the gallery",
        )

    def _provenance(self, device: torch.device, seconds: dict[str, float]) -> Provenance:
        commit, dirty = code_state()
        recipe = self.training.recipe
        return Provenance(
            command=command(),
            commit=commit,
            dirty=dirty,
            versions=versions(),
            device=device_name(device),
            dtype="float32",
            threads=torch.get_num_threads(),
            seconds=seconds,
            created=utc_now(),
            data_sha256=self.split.split.fingerprint(),
            weights_sha256=self.training.weights_sha256,
            recipe=recipe,
            recipe_sha256=None if recipe is None else hashlib.sha256(recipe.encode()).hexdigest(),
            trained=self.training.trained,
        )


def _metric_of(model: Any, metric: Metric | str | None) -> Metric:
    """Returns a metric as it is, and the metric of a name with the temperature that belongs to the model."""
    return metric if isinstance(metric, Metric) else Metric(metric or "cosine", getattr(model, "tau", TAU))


def _severities(corruptions: Sequence[str] | Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    every = [int(s) for s in results.SEVERITIES]
    chosen: dict[str, Sequence[int]] = {}
    chosen |= corruptions if isinstance(corruptions, Mapping) else dict.fromkeys(corruptions, every)
    for name, severities in chosen.items():
        if name not in CORRUPTIONS:
            raise unknown_name("corruption", name, CORRUPTIONS)
        if wrong := [s for s in severities if s not in every]:
            raise ValueError(f"severities are 1 to 5, got {wrong[0]}")
    return chosen


def _check_names(benchmark: str, row: str | None, seed: int) -> None:
    results.check_name("benchmark", benchmark)
    if row is not None:
        results.check_name("row", row)
    if seed < 0:
        raise ValueError(f"seed must be an integer ≥ 0, got {seed}")


def _preprocessing(transform: TransformConfig | None) -> dict[str, Any]:
    """Returns what the protocol records of the preprocessing; a model that takes PIL images does its own."""
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
