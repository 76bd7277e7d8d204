"""The parts of a run, and how far it is."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock
from timm.utils import ModelEmaV3

from idml_zoo.data.benchmark import Benchmark
from idml_zoo.data.split import Split
from idml_zoo.models.model import IDMLModel
from idml_zoo.results import Result
from idml_zoo.training.batches import Loading
from idml_zoo.training.config import Config
from idml_zoo.variants import Variant


@dataclass
class Run:
    """The parts of a run.

    Attributes:
        workers: loader processes.
        measured: the split that the result is about.
        held_out: the split to validate on, or None.
        cached_features: whether batches are features of a frozen backbone instead of images.
        model: the network that trains.
        final: what is saved and measured. It is the network itself, but for a moving average of its weights, or a copy
            that shards are gathered into, or that LoRA is merged into.
        criterion: the loss.
        optimizer: AdamW, with one learning rate for each of the parts.
        scheduler: lowers the learning rates; one step for each epoch.
        sharded: whether the weights are split over the processes.
        name: of the row.
        wrapped: what batches are given to, as accelerate has wrapped it: the network, or its head where features are
            cached.
        wrapped_criterion: the loss, as accelerate has wrapped it.
        ema: the moving average of the weights, or None.
        mixup_generator: draws the mixup, or None without mixup.
        lock: holds the folder, on the main process.
        results: what has been measured so far, on the main process.
    """

    config: Config
    variant: Variant
    accelerator: Accelerator
    workers: int
    benchmark: Benchmark
    measured: Split
    held_out: Split | None
    loading: Loading
    cached_features: bool
    model: IDMLModel
    final: IDMLModel
    criterion: Any
    optimizer: Any
    scheduler: Any
    sharded: bool
    name: str
    wrapped: Any = None
    wrapped_criterion: Any = None
    ema: ModelEmaV3 | None = None
    mixup_generator: torch.Generator | None = None
    lock: FileLock | None = None
    results: list[Result] = field(default_factory=list)

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def world(self) -> int:
        """The number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def last_step(self) -> int:
        """The number of steps after which training ends."""
        optimizer = self.config.optimizer
        return min(optimizer.epochs * self.loading.steps, optimizer.max_steps or sys.maxsize)

    @property
    def folder(self) -> Path:
        """Where the run writes its model, log and checkpoints."""
        return Path(self.config.output) / self.benchmark.name / self.name / f"seed{self.config.seed}"

    @property
    def log(self) -> Path:
        """Loss and statistics, every few steps."""
        return self.folder / "log.csv"

    @property
    def validation_log(self) -> Path:
        """Metrics on held-out classes."""
        return self.folder / "validation.csv"

    @property
    def checkpoints(self) -> Path:
        """The folder that an interrupted run resumes from."""
        return self.folder / "checkpoints"

    def saved_files(self) -> str:
        """Returns a sentence on what an interrupted run has left on the disk."""
        parts = {"the last checkpoint": self.checkpoints, "the model of the last whole epoch": self.folder / "model"}
        saved = [f"{name} in {path}" for name, path in parts.items() if path.is_dir()]
        return (
            f"Kept: {', '.join(saved)}" if saved else "There is no checkpoint yet; for early ones set checkpoint_every"
        )

    def stateful(self) -> dict[str, Any]:
        """Returns the parts whose state a checkpoint holds."""
        parts = {"model": self.model, "criterion": self.criterion, "optimizer": self.optimizer}
        parts |= {"scheduler": self.scheduler, "scaler": self.accelerator.scaler, "mixing": self.mixup_generator}
        return parts | {"ema": None if self.ema is None else self.ema.module}


@dataclass
class State:
    """How far a run is; a checkpoint holds it.

    Attributes:
        step: steps done.
        epoch: the epoch to go on with.
        batch: batches of that epoch that are done.
        seconds: of training.
        statistics: those logged last.
        best: metrics on the held-out classes, and number, of the epoch that was best there.
        stale: validations since.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    statistics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=lambda: {"recall@1": -1.0, "epoch": 0})
    stale: int = 0

    @classmethod
    def of(cls, saved: dict[str, Any] | None) -> State:
        """Returns the state in a checkpoint, or that of a beginning for None."""
        return cls(**{k: saved[k] for k in cls.__dataclass_fields__}) if saved else cls()
