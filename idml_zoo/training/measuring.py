"""Measures a run: on validation classes while it trains, and its rows at the end."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from idml_zoo.data.split import Split
from idml_zoo.evaluation.embed import MeasuredSplit, embed
from idml_zoo.evaluation.measure import evaluate_embeddings
from idml_zoo.evaluation.protocol import evaluate, save_result
from idml_zoo.files import sha256_of
from idml_zoo.metric import Metric
from idml_zoo.models.files import WEIGHTS, local_files
from idml_zoo.models.model import IDMLModel
from idml_zoo.models.pretrained import load
from idml_zoo.models.zoo import LOCAL, weights_source
from idml_zoo.reports.card import build_card
from idml_zoo.results import TrainingRecord
from idml_zoo.training import checkpoints
from idml_zoo.training.config import DEFAULTS
from idml_zoo.training.lora import merge
from idml_zoo.training.run import Run, State
from idml_zoo.training.sharding import copy_unsharded


def validate(model: IDMLModel, split: Split, device: torch.device, workers: int, main: bool) -> dict[str, float]:
    """Returns R@1, MAP@R and the AUROC of the level on validation classes; all processes must call."""
    embedding = embed(model, split, model.transform, workers=workers, device=device, progress=main, share=True)
    metrics = evaluate_embeddings(embedding, split.labels, (1,), cluster_seeds=())
    return {k: float(metrics[k] or 0.0) for k in ("recall@1", "map@r", "auroc_level")}


def update_final(run: Run) -> None:
    """Copies the trained weights into ``final`` where they are sharded or low-rank; all processes must call."""
    if run.sharded:
        copy_unsharded(run.model, run.final)
    if run.config.network.lora_rank:
        merge(run.model, run.final)


def measure_untrained(run: Run) -> None:
    """Adds the row of the network as it begins to ``run.results``; all processes must call."""
    config = run.config
    name = f"untrained-{run.variant.head}-{config.network.short_backbone}-{run.model.transform.image_size}px"
    name += "-validation" if config.evaluation.evaluate_on == "validation" else ""
    measured = _embed_measured(run)
    if not run.main:
        return
    training = TrainingRecord("none", _backbone_weights(run), description="none: head drawn at random")
    result = evaluate(run.final, run.benchmark, split=measured, row=name, training=training, **_how(run))
    save_result(result, _results_folder(run))
    run.results.append(result)


def measure(run: Run, state: State) -> None:
    """Adds the rows of the trained model, one for each similarity, to ``run.results``; all processes must call.

    Result files and the model's card are written. At the end checkpoints are removed and the folder is unlocked.
    """
    # the main process goes on alone for as long as measuring takes: the others wait for it in no collective
    run.accelerator.wait_for_everyone()
    update_final(run)  # a run that was killed while measuring did not come by the end of an epoch
    part = "model"
    if run.config.evaluation.select == "best":
        part = "best"
        run.final.load_state_dict(load(*local_files(run.folder / part)).state_dict())
    measured = _embed_measured(run)
    if run.main:
        _write_results(run, state, measured, part)
    if run.lock:
        checkpoints.clear(run.checkpoints)
        run.lock.release()
        for tracker in run.accelerator.trackers:
            tracker.finish()


def _write_results(run: Run, state: State, measured: MeasuredSplit, part: str) -> None:
    """Writes a result for each similarity, and the card of the model in a part of the run's folder."""
    config = run.config
    both = config.evaluation.similarity == "both" and run.variant.has_level
    description, statistics = _describe_training(run, state)
    training = TrainingRecord(
        variant=config.variant,
        pretrained=_backbone_weights(run),
        checkpoint="validation" if part == "best" else "last",  # the split that chose the epoch
        description=description,
        seconds=state.seconds,
        recipe=config.to_yaml(),
        weights_sha256=sha256_of(run.folder / part / WEIGHTS),
        statistics=statistics,
    )
    for similarity in ("cosine", "introspective") if both else ("cosine",):
        result = evaluate(
            run.final,
            run.benchmark,
            split=measured,
            metric=Metric(similarity, config.loss.tau),
            corruptions=config.evaluation.corruptions.split() if similarity == "cosine" else (),
            row=run.name if similarity == "cosine" else f"{run.name}-{similarity}",
            training=training,
            **_how(run),
        )
        save_result(result, _results_folder(run))
        run.results.append(result)
    build_card(run.folder / part, _results_folder(run), f"{LOCAL}{run.folder / part}")


def _describe_training(run: Run, state: State) -> tuple[str, dict[str, float]]:
    """Returns the training in words, alike for every seed of a row, and the statistics of this seed."""
    config, optimizer, best = run.config, run.config.optimizer, run.config.evaluation.select == "best"
    statistics = {k: v for k, v in state.statistics.items() if math.isfinite(v)}  # a batch may have no pair
    training = f"{optimizer.max_steps} steps" if optimizer.max_steps else f"{optimizer.epochs} epochs"
    if best or config.evaluation.patience:  # each seed has a number of its own, and they are one row
        epochs = int(state.best["epoch"]) if best else state.step // run.loading.steps
        training, statistics = f"up to {training}", statistics | {"epochs": float(epochs)}
    training += f" at {run.final.transform.image_size} px, batch {config.data.batch_size}, lr {optimizer.lr:g}"
    if run.variant.similarity == "introspective" and config.loss.tau != DEFAULTS["tau"]:
        training += f", τ {config.loss.tau:g}"
    return training, statistics


def _backbone_weights(run: Run) -> str:
    """Returns what a result says of the backbone's first weights."""
    return weights_source(run.config.network.backbone_weights, run.config.network.backbone)


def _how(run: Run) -> dict[str, Any]:
    """Returns how every result of a run is measured."""
    options = {"device": run.accelerator.device, "workers": run.workers, "progress": run.main}
    return {"root": run.config.data.data_root, "seed": run.config.seed, **options}


def _results_folder(run: Run) -> Path:
    """Returns the folder of result files."""
    return Path(run.config.leaderboard) / "results"


def _embed_measured(run: Run) -> MeasuredSplit:
    """Returns the measured split with its embedding by ``final``; all processes must call, and share the work."""
    start, final = time.perf_counter(), run.final
    options: dict[str, Any] = {"workers": run.workers, "device": run.accelerator.device, "progress": run.main}
    embedding = embed(final, run.measured, final.transform, share=run.world > 1, **options)
    return MeasuredSplit(run.measured, run.config.evaluation.evaluate_on, embedding, time.perf_counter() - start)
