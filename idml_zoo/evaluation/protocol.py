"""evaluate(model, benchmark) -> Result: the one way a number comes to the leaderboard."""

from __future__ import annotations

import hashlib
import io
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from idml_zoo import results
from idml_zoo.data.benchmark import Benchmark
from idml_zoo.data.split import Split
from idml_zoo.evaluation.clustering import kmeans_settings
from idml_zoo.evaluation.embed import default_device, embed
from idml_zoo.evaluation.measure import CLUSTER_SEEDS, measure
from idml_zoo.model import IDMLModel
from idml_zoo.registry import benchmarks
from idml_zoo.results import ModelInfo, Protocol, Provenance, Result
from idml_zoo.version import __version__


@lru_cache(maxsize=1)
def code_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout this package runs from and whether it is dirty; (None, None) where it is installed.

    Remembered from the first call, so that a long run that asks at its start records the code it runs.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return None, None
    try:
        run = [
            subprocess.run(["git", "-C", str(root), *a], capture_output=True, text=True, check=True, timeout=20).stdout
            for a in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "idml_zoo", "recipes", "pyproject.toml"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None, None
    return run[0].strip(), bool(run[1].strip())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "idml_zoo": __version__}
    for name in (
        "torch",
        "torchvision",
        "timm",
        "accelerate",
        "scikit-learn",
        "numpy",
        "pillow",
        "faiss-gpu",
        "faiss-cpu",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def _command() -> str:
    program = sys.argv[0]
    try:
        program = str(Path(program).resolve().relative_to(Path.cwd()))
    except ValueError:
        program = Path(program).name
    return shlex.join([program, *sys.argv[1:]])


def evaluate(
    model: IDMLModel,
    benchmark: str | Benchmark,
    *,
    root: str | Path = "data",
    row: str | None = None,
    seed: int = 0,
    similarity: str = "cosine",
    cluster_seeds: Sequence[int] = CLUSTER_SEEDS,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str | None = None,
    split: Split | None = None,
    split_name: str = "test",
    variant: str = "none",
    pretrained: str = "none",
    checkpoint: str = "none",
    training: str = "",
    train_seconds: float | None = None,
    recipe: str | None = None,
    weights_sha256: str | None = None,
    statistics: dict[str, float] | None = None,
    progress: bool = True,
) -> Result:
    """Measures a model on a benchmark's test split.

    Args:
        model: a model of the zoo, on any device.
        benchmark: a registered name ("cub") or a record (see ``idml_zoo.table_benchmark``).
        root: the folder that holds the data.
        row: name of the leaderboard row; default head and backbone.
        seed: which seed of that row this is.
        similarity: what search uses, "cosine" or "introspective".
        cluster_seeds: seeds of k-means.
        batch_size, workers, device, progress: how to compute the embeddings.
        split, split_name: measure this split of the benchmark instead of its test split.
        variant, pretrained, checkpoint, training, train_seconds, recipe, weights_sha256, statistics: where the model
            comes from; recorded in the result, not checked.

    Returns:
        A Result; :func:`save_result` writes it.

    Raises:
        DataError: data missing, broken, or not what the benchmark expects.
        ValueError: embeddings that are not finite or not of unit norm.
    """
    record = benchmarks[benchmark] if isinstance(benchmark, str) else benchmark
    split = split or record.splits(root).test
    device = torch.device(device) if device is not None else default_device()
    started = time.perf_counter()
    transform = model.transform
    embedding = embed(model, split, transform, batch_size, workers, device, progress)
    severity = split.extras.get("severity")
    measured = measure(embedding, split.labels, record.ks, cluster_seeds, similarity, severity, queries=split.queries)
    seconds = {"evaluate": round(time.perf_counter() - started, 2)}
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
            pretrained=pretrained,
            variant=variant,
        ),
        protocol=Protocol(
            image_size=transform.image_size,
            crop_fraction=transform.crop_fraction,
            interpolation=transform.interpolation,
            mean=list(transform.mean),
            std=list(transform.std),
            similarity=similarity,
            kmeans=kmeans_settings(cluster_seeds),
            checkpoint=checkpoint,
            split=split_name,
            self_removal="by index" if split.queries is None else "queries are not in the gallery",
        ),
        metrics=measured.metrics,
        queries=len(measured.per_query["top1"]),
        queries_without_positive=measured.without_positive,
        provenance=Provenance(
            command=_command(),
            commit=commit,
            dirty=dirty,
            versions=_versions(),
            device=_device_name(device),
            dtype="float32",
            threads=torch.get_num_threads(),
            seconds=seconds,
            created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            data_sha256=split.fingerprint(),
            weights_sha256=weights_sha256,
            recipe=recipe,
            recipe_sha256=None if recipe is None else hashlib.sha256(recipe.encode()).hexdigest(),
        ),
        training=training,
        statistics=statistics or {},
        per_query=measured.per_query,
    )


def save_result(result: Result, root: str | Path) -> Path:
    """Writes a result and its per-query values under a results folder; the JSON last, so that it is never half there.

    Raises:
        ResultError: the folder cannot be written to.
    """
    path = result.path(root)
    if result.per_query:
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, **{k: v if v.dtype == bool else v.astype(np.float32) for k, v in result.per_query.items()}
        )
        results.write_text(path.with_suffix(".queries.npz"), buffer.getvalue())
        result = replace(result, queries_sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
    results.write_text(path, result.to_json())
    return path
