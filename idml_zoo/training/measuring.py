"""What is measured of a run: on validation classes while it trains, and its rows at the end."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from idml_zoo.data.split import Split
from idml_zoo.evaluation.embed import embed
from idml_zoo.evaluation.measure import evaluate_embeddings
from idml_zoo.evaluation.protocol import evaluate, save_result
from idml_zoo.files import sha256_of
from idml_zoo.models.files import WEIGHTS, local_files
from idml_zoo.models.model import IDMLModel
from idml_zoo.models.pretrained import load
from idml_zoo.models.zoo import LOCAL, weights_source
from idml_zoo.reports.card import build_card
from idml_zoo.results import Result
from idml_zoo.training.lora import merge
from idml_zoo.training.setup import Run, State
from idml_zoo.training.sharding import copy_whole
from idml_zoo.types import Embedding


def validate(model: IDMLModel, split: Split, device: torch.device, workers: int, main: bool) -> dict[str, float]:
    """R@1, MAP@R and the AUROC of the level on validation classes; all processes must call."""
    bank = embed(model, split, model.transform, workers=workers, device=device, progress=main, share=True)
    found = evaluate_embeddings(bank, split.labels, (1,), cluster_seeds=())
    return {k: float(found[k] or 0.0) for k in ("recall@1", "map@r", "auroc_level")}


def about(run: Run) -> dict[str, Any]:
    """What every result of a run says of it, and how it is measured."""
    config = run.config
    return {
        "root": config.data_root,
        "seed": config.seed,
        "split": run.measured,
        "split_name": config.evaluate_on,
        "pretrained": weights_source(config.backbone_weights, config.backbone),
        "device": run.accelerator.device,
        "workers": run.workers,
        "progress": run.main,
    }


def results_folder(run: Run) -> Path:
    """Where result files go."""
    return Path(run.config.leaderboard) / "results"


def bring_together(run: Run) -> None:
    """Makes ``final`` what the trained weights say, where they lie in parts or beside it; all processes must call."""
    if run.sharded:
        copy_whole(run.model, run.final)
    if run.config.lora_rank:
        merge(run.model, run.final)


def measure_untrained(run: Run) -> list[Result]:
    """The row of the network as it begins; all processes must call, the main one has it."""
    config = run.config
    name = f"untrained-{run.variant.head}-{config.short_backbone}-{run.model.transform.image_size}px"
    name += "-validation" if config.evaluate_on == "validation" else ""
    bank, took = embedded(run)
    if not run.main:
        return []
    result = evaluate(
        run.final,
        run.benchmark,
        embedding=bank,
        embed_seconds=took,
        row=name,
        training="none: head drawn at random",
        **about(run),
    )
    save_result(result, results_folder(run))
    return [result]


def embedded(run: Run) -> tuple[Embedding, float]:
    """The measured images' embedding by ``final``, shared out over the processes, which all must call; its seconds."""
    tick, final = time.perf_counter(), run.final
    how: dict[str, Any] = {"workers": run.workers, "device": run.accelerator.device, "progress": run.main}
    bank = embed(final, run.measured, final.transform, share=run.world > 1, **how)
    return bank, time.perf_counter() - tick


def measure(run: Run, state: State) -> list[Result]:
    """The rows of a trained model, one for each similarity, written with its card; all processes must call."""
    config, final = run.config, run.final
    bring_together(run)  # a run that was killed while measuring did not come by the end of an epoch
    epochs, checkpoint, part = state.step // run.loading.steps, "last", "model"
    if config.select == "best":  # honestly named: by the validation classes, which were not trained on
        epochs, checkpoint, part = int(state.best["epoch"]), "validation", "best"
        final.load_state_dict(load(*local_files(run.folder / part)).state_dict())
    bank, took = embedded(run)
    if not run.main:
        return []
    statistics = {k: v for k, v in state.statistics.items() if math.isfinite(v)}  # a batch may have no pair
    training = f"{config.max_steps} steps" if config.max_steps else f"{config.epochs} epochs"
    if checkpoint == "validation" or config.patience:  # each seed has a number of its own, and they are one row
        training, statistics = f"up to {training}", statistics | {"epochs": float(epochs)}
    training += f" at {final.transform.image_size} px, batch {config.batch_size}, lr {config.lr:g}"
    if run.variant.similarity == "introspective" and config.tau != type(config).tau:
        training += f", τ {config.tau:g}"
    both = config.similarity == "both" and run.variant.has_level
    finished = []
    for similarity in ("cosine", "introspective") if both else ("cosine",):
        result = evaluate(
            final,
            run.benchmark,
            embedding=bank,
            embed_seconds=took,
            similarity=similarity,
            tau=config.tau,
            corruptions=config.corruptions.split() if similarity == "cosine" else (),
            row=run.name if similarity == "cosine" else f"{run.name}-{similarity}",
            variant=config.variant,
            checkpoint=checkpoint,
            training=training,
            recipe=config.to_yaml(),
            train_seconds=state.seconds,
            statistics=statistics,
            weights_sha256=sha256_of(run.folder / part / WEIGHTS),
            **about(run),
        )
        save_result(result, results_folder(run))
        finished.append(result)
    build_card(run.folder / part, results_folder(run), f"{LOCAL}{run.folder / part}")
    return finished
