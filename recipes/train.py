"""Train a model, measure it, add its row to a leaderboard. Read it from top to bottom.

    accelerate launch recipes/train.py               # the quickstart: glyphs, two minutes on 2 cores
    accelerate launch recipes/train.py --config recipes/cub_resnet50.yaml variant=pa_mixup seed=1 data_root=/data
    accelerate launch recipes/train.py --config recipes/cub_resnet50.yaml benchmark=mine source=path/to/folder

Any key of recipes/config.py can be given as key=value. The recipes reproduce the authors' settings [C] with these
decisions of ours: batch-norm statistics stay frozen throughout, while the affine parameters train after the warm-up
(what the released code does in effect); the uncertainty head trains during the warm-up too (there it is frozen);
the last epoch is measured, never the best one on the test set; and clean and mixed images go through the network in
one concatenated forward pass, which is the same where batch-norm is frozen.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError
from torch import Tensor, nn

from idml_zoo.distributed import gather
from idml_zoo.evaluation.provenance import code_state
from idml_zoo.files import FileError
from idml_zoo.losses import mixup
from idml_zoo.models.zoo import weights_source
from idml_zoo.reports.leaderboard import build_leaderboard, summary
from idml_zoo.results import Result, ResultError
from idml_zoo.training import checkpoints
from idml_zoo.training.config import QUICKSTART, Config, load_config
from idml_zoo.training.failed_trials import record
from idml_zoo.training.measuring import bring_together, measure, measure_untrained, validate
from idml_zoo.training.monitor import (
    TrainingError,
    Waiting,
    append_row,
    console,
    diagnosis,
    memory,
    profiled,
    progress_bar,
    warn,
)
from idml_zoo.training.network import set_training_mode
from idml_zoo.training.setup import Run, State, dress, set_up, take_folder
from idml_zoo.training.sharding import together
from idml_zoo.types import Embedding, EmbeddingError
from idml_zoo.variants import variants


def run(config: Config) -> list[Result]:
    """One run: the result of the trained model, after that of the untrained one where asked for."""
    code_state()  # the code that runs, whatever is edited meanwhile
    made = set_up(config)
    saved = take_folder(made)
    finished = measure_untrained(made) if config.evaluate_untrained and not saved else []
    if config.tracker:
        plain = {k: v for k, v in dataclasses.asdict(config).items() if isinstance(v, (int, float, str, bool))}
        made.accelerator.init_trackers(f"{made.benchmark.name}-{made.name}-seed{config.seed}", plain)
    dress(made, saved)
    state = State.of(saved)
    del saved  # as large as the network
    try:
        train(made, state)
    except (TrainingError, EmbeddingError) as error:  # the latter of a model that is to be saved or validated
        if made.main and config.evaluate_on == "validation":  # this setting has had its trial
            reason = str(error).partition(";")[0]
            record(config, made.benchmark.name, made.name, reason, made.accelerator.device)
        raise
    made.accelerator.wait_for_everyone()
    # the main process goes on alone for as long as measuring takes: the others wait for it in no collective
    finished += measure(made, state)
    if made.lock:
        checkpoints.clear(made.checkpoints)
        made.lock.release()
        for tracker in made.accelerator.trackers:
            tracker.finish()
    return finished


def train(run: Run, state: State) -> None:
    """Trains from where ``state`` is to the end, and moves it along.

    Raises:
        TrainingError: what is learned is of no use any more.
        checkpoints.Stopped: somebody asked to stop; a checkpoint was written.
        OSError: the model cannot be written.
    """
    config, accelerator, loading = run.config, run.accelerator, run.loading
    total = min(config.epochs * loading.steps, config.max_steps or sys.maxsize)
    clock = Clock(state)
    bad = torch.zeros((), device=accelerator.device)  # steps whose loss was not finite; looked at where the log waits
    bar = progress_bar(run.main)
    with bar, checkpoints.Asked() as asked, profiled(config.profile_steps if run.main else 0, run.folder) as profiler:
        task = bar.add_task("train", total=total, completed=state.step, epoch=state.epoch, rate=0.0, loss=float("nan"))
        while state.epoch < config.epochs:
            run.model.backbone_frozen = config.freeze_backbone or state.epoch < config.warmup_epochs
            set_training_mode(run.fed, config.freeze_batchnorm)
            batches, tick, since = Waiting(loading.epoch(state.epoch, state.batch)), time.perf_counter(), 0
            for images, labels, _ in batches:
                loss, embedding, everyone = step(run, images, labels)
                bad += ~torch.isfinite(loss)
                profiler.step()
                state.step, state.batch, since = state.step + 1, state.batch + 1, since + len(images) * run.world
                if at_log := state.step % config.log_every == 0 or state.step in (1, total):
                    value = loss.item()  # the one place that waits for the device
                    check(run, state, bad)
                    took = time.perf_counter() - tick
                    pace = {"images_per_second": since / took, "waiting": batches.take() / took}
                    write_log(run, state, value, pace, embedding, everyone)
                    bar.update(task, rate=pace["images_per_second"], loss=value)
                    tick, since = time.perf_counter(), 0
                bar.update(task, advance=1, epoch=state.epoch + 1)
                # several processes look together, where they wait anyway
                stop = bool(asked) if run.world == 1 else at_log and any(gather_object([bool(asked)]))
                due = config.checkpoint_every and state.step % config.checkpoint_every == 0
                if state.batch < loading.steps and (stop or due):
                    save(run, state, clock, bad)
                    if stop:
                        raise checkpoints.Stopped(
                            f"stopped after step {state.step}; the same command goes on from there"
                        )
                if state.step == total:
                    break
            run.scheduler.step()
            check(run, state, bad)  # before anything of it is saved
            state.epoch, state.batch = state.epoch + 1, 0
            if end_epoch(run, state) or state.step == total:
                state.epoch = config.epochs
            save(run, state, clock, bad)
            stop = bool(asked) if run.world == 1 else any(gather_object([bool(asked)]))
            if stop and state.epoch < config.epochs:
                raise checkpoints.Stopped(f"stopped after epoch {state.epoch}; the same command goes on from there")
    clock.read(state)


class Clock:
    """Seconds of training, over interruptions."""

    def __init__(self, state: State) -> None:
        self.started = time.perf_counter() - state.seconds

    def read(self, state: State) -> None:
        """Writes them into the state."""
        state.seconds = time.perf_counter() - self.started


def step(run: Run, images: Tensor, labels: Tensor) -> tuple[Tensor, Embedding, Tensor]:
    """One step of this process's part of a batch: the loss, and the last piece's embedding and labels, of everyone."""
    config, accelerator = run.config, run.accelerator
    labels = labels.to(accelerator.device, non_blocking=True)
    images = run.loading.finish(images.to(accelerator.device, non_blocking=True))
    if not run.features:
        images = images.contiguous(memory_format=torch.channels_last)
    run.optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=accelerator.device)
    # every n-th image: a batch of P classes × K images lies class by class, and each piece needs pairs of a class
    pieces = [(images[i :: config.accumulate], labels[i :: config.accumulate]) for i in range(config.accumulate)]
    for i, (some, theirs) in enumerate(pieces, 1):
        # gradients are averaged over processes once, with the last piece
        with nullcontext() if i == len(pieces) else accelerator.no_sync(run.fed):
            piece, embedding, everyone = step_loss(run.fed, run.loss, some, theirs, run.mixing)
            accelerator.backward(piece / len(pieces))
        loss += piece.detach() / len(pieces)
    if accelerator.sync_gradients:
        accelerator.clip_grad_value_([*run.model.parameters(), *run.criterion.parameters()], config.clip_value)
    run.optimizer.step()
    if run.ema is not None:
        run.ema.update(run.model)
    return loss, embedding, everyone


def step_loss(
    model: nn.Module, criterion: nn.Module, images: Tensor, labels: Tensor, mixing: torch.Generator | None
) -> tuple[Tensor, Embedding, Tensor]:
    """The loss of one batch over all processes, with the clean embedding and labels for the statistics.

    ``mixing`` draws the mixup, alike on every process, for λ belongs to the whole batch; None for no mixup.
    """
    if mixing is None:
        embedding, labels = gather(model(images), labels)
        return criterion(embedding, labels), embedding, labels
    mixed = mixup(images, mixing)
    both = model(torch.cat([images, mixed.images]))
    clean, everyone = gather(both[: len(images)], labels)
    blended, partners = gather(both[len(images) :], labels[mixed.permutation])
    # L(x, y) + λ·L(x̃, y) + (1−λ)·L(x̃, y_π) [C]: the weights sum to 2
    return criterion(clean, everyone) + criterion(blended, everyone, partners, mixed.weight), clean, everyone


def write_log(
    run: Run, state: State, loss: float, pace: dict[str, float], embedding: Embedding, labels: Tensor
) -> None:
    """A line of the log; TrainingError where it shows that nothing is learned any more."""
    with together(run.criterion):
        state.statistics = {k: v.item() for k, v in run.criterion.statistics(embedding, labels).items()}
    if wrong := diagnosis(state.statistics, embedding, run.variant.has_level):
        raise TrainingError(
            f"{wrong}, at step {state.step}; lower lr (now {run.config.lr:g}) or its multipliers. {run.kept}"
        )
    if run.main:
        entry = {"epoch": state.epoch + 1, "step": state.step, "loss": loss, "lr": run.optimizer.param_groups[0]["lr"]}
        entry |= pace | {"gib": memory(run.accelerator.device)} | state.statistics
        append_row(run.log, entry)
        run.accelerator.log(entry, step=state.step)


def check(run: Run, state: State, bad: Tensor) -> None:
    """TrainingError where a loss was not finite."""
    if bad.item():
        raise TrainingError(
            f"the loss was not finite in {int(bad.item())} of the steps up to {state.step}; lower lr (now "
            f"{run.config.lr:g}) or raise tau. {run.kept}"
        )


def save(run: Run, state: State, clock: Clock, bad: Tensor) -> None:
    """A checkpoint, from all processes; a full disk is no reason to lose what is in memory."""
    rng = gather_object([checkpoints.rng_state()])
    check(run, state, bad)
    taken = checkpoints.states(run.parts()) if run.main or run.sharded else {}
    if not run.main:
        return
    clock.read(state)
    kept = {"config": dataclasses.asdict(run.config), **dataclasses.asdict(state), "rng": rng, **taken}
    try:
        checkpoints.write(run.checkpoints, kept)
    except OSError as error:
        warn(f"no checkpoint after step {state.step} ({error}); the one before is kept, and training goes on")


def end_epoch(run: Run, state: State) -> bool:
    """Validates where it is due and writes the model; whether to train no further.

    Raises:
        OSError: the model of the last epoch, or the best, cannot be written.
    """
    config, improved = run.config, False
    bring_together(run)
    last = state.epoch == config.epochs or state.step == config.max_steps
    due = config.validate_every and (state.epoch % config.validate_every == 0 or (last and not state.best["epoch"]))
    if run.held_out is not None and due:
        found = validate(run.final, run.held_out, run.accelerator.device, run.workers, run.main)
        if improved := found["recall@1"] > state.best["recall@1"]:
            state.best, state.stale = {**found, "epoch": state.epoch}, 0
        else:
            state.stale += 1
        if run.main:
            append_row(run.validation_log, {"epoch": state.epoch, "step": state.step, **found})
            run.accelerator.log({f"validation/{k}": v for k, v in found.items()}, step=state.step)
    last = last or bool(config.patience and state.stale >= config.patience)
    if run.main:
        about: dict[str, Any] = {"benchmark": run.benchmark.name, "variant": config.variant, "seed": config.seed}
        about |= {"epoch": state.epoch, "pretrained": weights_source(config.backbone_weights, config.backbone)}
        about |= {"tau": config.tau} if run.variant.similarity == "introspective" else {}
        for part in ["model", *(["best"] if improved else [])]:
            try:
                chosen = "last" if part == "model" else "validation"  # the split that chose this epoch
                run.final.save_pretrained(run.folder / part, checkpoint=chosen, **about)
            except (OSError, SafetensorError) as error:
                if last or part == "best":
                    raise OSError(
                        f"{run.folder / part} cannot be written ({error}); free space, and start again"
                    ) from error
                warn(f"{run.folder / part} is not written after epoch {state.epoch} ({error})")
    return last


def list_recipes() -> None:
    """Every configuration beside this file with every variant, one command a line."""
    for path in sorted(QUICKSTART.parent.glob("*.yaml")):
        for name in variants:
            print(f"accelerate launch recipes/train.py --config recipes/{path.name} variant={name}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default=str(QUICKSTART), help="YAML file with keys of recipes/config.py")
    parser.add_argument("--list", action="store_true", help="print the command of every recipe × variant, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override any key")
    given = parser.parse_args(arguments)
    if given.list:
        list_recipes()
        return 0
    try:
        config = load_config(given.config, given.overrides)
        finished = run(config)
        if not finished:  # not the main process
            return 0
        try:
            build_leaderboard(config.leaderboard)
        except (ResultError, FileError) as error:  # of another row, perhaps: this one is there
            warn(f"the result is saved, but no table can be made: {error}")
    except (ValueError, OSError, TrainingError) as error:  # the project's own errors are ValueErrors
        text = str(error)
        if "DataLoader worker" in text:  # torch wraps the worker's whole traceback: its last line says it
            text = text.strip().splitlines()[-1].partition(": ")[2]
        console.print(f"[bold red]{type(error).__name__}:[/] {escape(text)}", highlight=False, soft_wrap=True)
        return 1
    except torch.OutOfMemoryError as error:
        console.print(
            f"[bold red]OutOfMemoryError:[/] {escape(str(error).splitlines()[0])} Lower batch_size, or try "
            "accumulate=4, mixed_precision=bf16 or gradient_checkpointing=true",
            highlight=False,
            soft_wrap=True,
        )
        return 1
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        if not any(sign in text for sign in ("killed by signal", "exited unexpectedly", "shared memory")):
            raise
        console.print(
            f"[bold red]TrainingError:[/] a loader process was lost ({escape(text)}): out of memory, or /dev/shm is "
            "too small (docker: --shm-size=8g); lower workers=, or workers=0. The same command goes on from the last "
            "checkpoint",
            highlight=False,
            soft_wrap=True,
        )
        return 1
    except checkpoints.Stopped as stopped:
        warn(str(stopped))
        return checkpoints.STOPPED
    last = next(r for r in reversed(finished) if r.protocol.similarity == "cosine")
    folder = Path(config.output) / last.benchmark / last.row / f"seed{config.seed}"
    out = Console(soft_wrap=True, markup=False, highlight=False)
    out.print(summary(finished))
    weights = folder / ("best" if config.select == "best" else "model")  # what was measured
    out.print(f"model    {weights}   idml_zoo.create_model('local-dir:{weights}', pretrained=True)")
    out.print(f"log      {folder / 'log.csv'}")
    out.print(f"result   {last.path(Path(config.leaderboard) / 'results')}")
    out.print(f"table    {Path(config.leaderboard) / 'README.md'}")
    return 0


if __name__ == "__main__":
    status = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # a gloo thread that lets go of a Python object while the interpreter shuts down aborts a process that has
        # finished its work (seen in one of three runs with torch 2.15): leave without shutting down
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
