"""Watches a run: its log, its checkpoints, requests to stop, and losses or embeddings that are of no use."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from idml_zoo.training import checkpoints
from idml_zoo.training.console import progress_bar, warn
from idml_zoo.training.errors import Stopped, TrainingError
from idml_zoo.training.log import append_row, peak_memory, profiled
from idml_zoo.training.run import Run, State
from idml_zoo.training.sharding import unsharded
from idml_zoo.types import Embedding


class Monitor:
    """Watches one run from its first step to its last. A context manager.

    Every method may raise TrainingError where nothing useful is learned any more, and Stopped after a request to stop,
    with a checkpoint written.
    """

    def __init__(self, run: Run, state: State) -> None:
        self.run, self.state = run, state
        self._started = time.perf_counter() - state.seconds
        # steps whose loss was not finite: counted on the device, and read only where the log waits for it anyway
        self._not_finite = torch.zeros((), device=run.accelerator.device)

    def __enter__(self) -> Monitor:
        run, state = self.run, self.state
        with ExitStack() as stack:
            self._bar = stack.enter_context(progress_bar(run.main))
            self._stop = stack.enter_context(checkpoints.StopRequest())
            steps = run.config.hardware.profile_steps if run.main else 0
            self._profiler = stack.enter_context(profiled(steps, run.folder))
            self._stack = stack.pop_all()
        self._task = self._bar.add_task(
            "train", total=run.last_step, completed=state.step, epoch=state.epoch, rate=0.0, loss=float("nan")
        )
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        self._read_clock()

    def timed(self, batches: Iterator[Any]) -> TimedBatches:
        """Returns the batches of an epoch, with a clock for the time that training waits for them."""
        self._batches, self._tick, self._images = TimedBatches(batches), time.perf_counter(), 0
        return self._batches

    def after_step(self, loss: Tensor, embedding: Embedding, labels: Tensor, images: int) -> None:
        """Logs the step, writes a checkpoint, and stops, each where it is due.

        Args:
            loss: of the whole batch.
            embedding: of the last piece of the batch, from all processes.
            labels: of the same images.
            images: how many this process has gone through.
        """
        run, state = self.run, self.state
        self._not_finite += ~torch.isfinite(loss)
        self._profiler.step()
        self._images += images * run.world
        if logged := state.step % run.config.log_every == 0 or state.step in (1, run.last_step):
            self._log(loss, embedding, labels)
        self._bar.update(self._task, advance=1, epoch=state.epoch + 1)
        # several processes look together, where they wait anyway
        stop = bool(self._stop) if run.world == 1 else logged and any(gather_object([bool(self._stop)]))
        due = run.config.checkpoint_every and state.step % run.config.checkpoint_every == 0
        if state.batch < run.loading.steps and (stop or due):
            self._save()
            if stop:
                raise Stopped(f"stopped after step {state.step}; the same command goes on from there")

    def after_epoch(self) -> None:
        """Writes a checkpoint, and stops where somebody has asked for it."""
        run, state = self.run, self.state
        self._save()
        stop = bool(self._stop) if run.world == 1 else any(gather_object([bool(self._stop)]))
        if stop and state.epoch < run.config.optimizer.epochs:
            raise Stopped(f"stopped after epoch {state.epoch}; the same command goes on from there")

    def check_losses(self) -> None:
        """Raises TrainingError where a loss was not finite."""
        if self._not_finite.item():
            raise TrainingError(
                f"the loss was not finite in {int(self._not_finite.item())} of the steps up to {self.state.step}; "
                f"lower lr (now {self.run.config.optimizer.lr:g}) or raise tau. {self.run.saved_files()}"
            )

    def _log(self, loss: Tensor, embedding: Embedding, labels: Tensor) -> None:
        """Writes a line of the log, after looking whether anything is learned still."""
        run, state = self.run, self.state
        value = loss.item()  # the one place that waits for the device
        self.check_losses()
        seconds = time.perf_counter() - self._tick
        rates = {"images_per_second": self._images / seconds, "waiting": self._batches.read_seconds() / seconds}
        with unsharded(run.criterion):
            state.statistics = {k: v.item() for k, v in run.criterion.statistics(embedding, labels).items()}
        if problem := diagnose(state.statistics, embedding, run.variant.has_level):
            raise TrainingError(
                f"{problem}, at step {state.step}; lower lr (now {run.config.optimizer.lr:g}) or its multipliers. "
                f"{run.saved_files()}"
            )
        if run.main:
            lr = run.optimizer.param_groups[0]["lr"]
            entry = {"epoch": state.epoch + 1, "step": state.step, "loss": value, "lr": lr, **rates}
            entry |= {"gib": peak_memory(run.accelerator.device)} | state.statistics
            append_row(run.log, entry)
            run.accelerator.log(entry, step=state.step)
        self._bar.update(self._task, rate=rates["images_per_second"], loss=value)
        self._tick, self._images = time.perf_counter(), 0

    def _save(self) -> None:
        """Writes a checkpoint, from all processes; a full disk is no reason to lose what is in memory."""
        run, state = self.run, self.state
        generators = gather_object([checkpoints.rng_state()])
        self.check_losses()
        states = checkpoints.states(run.stateful()) if run.main or run.sharded else {}
        if not run.main:
            return
        self._read_clock()
        content = {"config": run.config.flat(), **dataclasses.asdict(state), "rng": generators, **states}
        try:
            checkpoints.write(run.checkpoints, content)
        except OSError as error:
            warn(f"no checkpoint after step {state.step} ({error}); the one before is kept, and training goes on")

    def _read_clock(self) -> None:
        """Writes the seconds of training, over interruptions, into the state."""
        self.state.seconds = time.perf_counter() - self._started


class TimedBatches:
    """An iterator that measures how long training has waited for it."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> TimedBatches:
        return self

    def __next__(self) -> Any:
        start = time.perf_counter()
        try:
            return next(self.batches)
        except (ConnectionError, EOFError):  # of a lost loader process; torch hears of it by a signal, a little later,
            time.sleep(5)  # and names it in an error that ends this
            raise
        finally:
            self.seconds += time.perf_counter() - start

    def read_seconds(self) -> float:
        """Returns the seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def diagnose(statistics: dict[str, float], embedding: Embedding, has_uncertainty: bool) -> str:
    """Returns what makes a batch's embeddings useless, or an empty text."""
    mean_cosine = float(embedding.semantic.detach().float().mean(0).square().sum())  # over all pairs
    if mean_cosine > 0.9999:
        return f"all embeddings are alike (mean cosine {mean_cosine:.5f}): the network has collapsed"
    level = statistics.get("level", 0.0)
    if level > 1e4:
        return f"the uncertainty has exploded (mean level {level:.3g})"
    if has_uncertainty and level < 1e-7:
        return f"the uncertainty is dead (mean level {level:.3g}), and nothing brings it back"
    return ""
