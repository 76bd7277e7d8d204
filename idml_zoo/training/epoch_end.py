"""The end of an epoch: validation on held-out classes, and the model written to the disk."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError

from idml_zoo.models.zoo import weights_source
from idml_zoo.training.console import warn
from idml_zoo.training.log import append_row
from idml_zoo.training.measuring import update_final, validate
from idml_zoo.training.run import Run, State


def end_epoch(run: Run, state: State) -> bool:
    """Validates where it is due and writes the model; returns whether training ends here. All processes must call.

    Raises:
        OSError: the model of the last epoch, or the best, cannot be written.
    """
    update_final(run)
    last = state.epoch == run.config.optimizer.epochs or state.step == run.config.optimizer.max_steps
    improved = _validate(run, state, last)
    patience = run.config.evaluation.patience
    last = last or bool(patience and state.stale >= patience)
    if run.main:
        _save_model(run, state, "model", required=last)
        if improved:
            _save_model(run, state, "best", required=True)
    return last


def _validate(run: Run, state: State, last: bool) -> bool:
    """Validates where it is due; returns whether R@1 is the best so far."""
    every = run.config.evaluation.validate_every
    due = every and (state.epoch % every == 0 or (last and not state.best["epoch"]))
    if run.held_out is None or not due:
        return False
    metrics = validate(run.final, run.held_out, run.accelerator.device, run.workers, run.main)
    improved = metrics["recall@1"] > state.best["recall@1"]
    if improved:
        state.best, state.stale = {**metrics, "epoch": state.epoch}, 0
    else:
        state.stale += 1
    if run.main:
        append_row(run.validation_log, {"epoch": state.epoch, "step": state.step, **metrics})
        run.accelerator.log({f"validation/{k}": v for k, v in metrics.items()}, step=state.step)
    return improved


def _save_model(run: Run, state: State, part: str, required: bool) -> None:
    """Writes the model into a part of the run's folder: "model" or "best". What is not required may fail."""
    config = run.config
    source = weights_source(config.network.backbone_weights, config.network.backbone)
    meta: dict[str, Any] = {"benchmark": run.benchmark.name, "variant": config.variant, "seed": config.seed}
    meta |= {"epoch": state.epoch, "pretrained": source}
    meta |= {"tau": config.loss.tau} if run.variant.similarity == "introspective" else {}
    try:
        # the split that chose this epoch
        run.final.save_pretrained(run.folder / part, checkpoint="last" if part == "model" else "validation", **meta)
    except (OSError, SafetensorError) as error:
        if required:
            raise OSError(f"{run.folder / part} cannot be written ({error}); free space, and start again") from error
        warn(f"{run.folder / part} is not written after epoch {state.epoch} ({error})")
