"""What a run is made of, from its configuration: data, network, loss, optimiser, and the folder that it writes to."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from filelock import FileLock, Timeout
from timm.utils import ModelEmaV3

from idml_zoo.data.benchmark import Benchmark
from idml_zoo.data.split import Split
from idml_zoo.files import write_file
from idml_zoo.losses import create_criterion
from idml_zoo.models.model import IDMLModel
from idml_zoo.models.saving import check_can_be_loaded
from idml_zoo.training import checkpoints
from idml_zoo.training.batches import Loading, build_loading, load_benchmark
from idml_zoo.training.config import Config, ConfigError
from idml_zoo.training.cpu import keep_memory, share_cores
from idml_zoo.training.lora import add_lora
from idml_zoo.training.monitor import keep_rows, make_folder, warn, warn_of_other_package
from idml_zoo.training.network import build_model, freeze, parameter_groups, pooled_features
from idml_zoo.training.sharding import shard
from idml_zoo.variants import Variant, variants


@dataclass
class Run:
    """The parts of a run.

    Attributes:
        measured: the split that the result is about; ``held_out``: the one to validate on, or None.
        model: the network that trains; ``fed``: what batches are given to: it, or its head where ``features`` of a
            frozen backbone are cached, as accelerate has wrapped it.
        criterion: the loss; ``loss``: the same as accelerate has wrapped it.
        final: what is saved and measured: the network itself, but for a moving average of its weights, or a copy that
            shards are put together in, or that LoRA is merged into.
        optimizer, scheduler: one learning rate for each of the parts; a step for each epoch.
        ema: the moving average, or None. ``mixing``: draws the mixup, or None.
        sharded: whether weights lie in parts on the processes.
        name: of the row.
    """

    config: Config
    variant: Variant
    accelerator: Accelerator
    workers: int
    benchmark: Benchmark
    measured: Split
    held_out: Split | None
    loading: Loading
    features: bool
    model: IDMLModel
    final: IDMLModel
    criterion: Any
    optimizer: Any
    scheduler: Any
    sharded: bool
    name: str
    fed: Any = None
    loss: Any = None
    ema: ModelEmaV3 | None = None
    mixing: torch.Generator | None = None
    lock: FileLock | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def world(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def folder(self) -> Path:
        """Of this run."""
        return Path(self.config.output) / self.benchmark.name / self.name / f"seed{self.config.seed}"

    @property
    def log(self) -> Path:
        """Loss and statistics, every few steps."""
        return self.folder / "log.csv"

    @property
    def validation_log(self) -> Path:
        """What was found on held-out classes."""
        return self.folder / "validation.csv"

    @property
    def checkpoints(self) -> Path:
        """Folder of what an interrupted run goes on from."""
        return self.folder / "checkpoints"

    @property
    def kept(self) -> str:
        """A sentence on what an interrupted run has left on the disk."""
        what = {"the last checkpoint": self.checkpoints, "the model of the last whole epoch": self.folder / "model"}
        there = [f"{name} in {path}" for name, path in what.items() if path.is_dir()]
        return (
            f"Kept: {', '.join(there)}" if there else "There is no checkpoint yet; for early ones set checkpoint_every"
        )

    def parts(self) -> dict[str, Any]:
        """What has a state that a checkpoint keeps."""
        parts = {"model": self.model, "criterion": self.criterion, "optimizer": self.optimizer}
        parts |= {"scheduler": self.scheduler, "scaler": self.accelerator.scaler, "mixing": self.mixing}
        return parts | {"ema": None if self.ema is None else self.ema.module}


@dataclass
class State:
    """How far a run is; a checkpoint keeps it.

    Attributes:
        step: steps done. ``epoch``: to go on with, of which ``batch`` batches are done.
        seconds: of training.
        statistics: those logged last.
        best: metrics on the held-out classes and number of the epoch that was best there; ``stale``: validations since.
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
        """What a checkpoint says; a beginning without one."""
        return cls(**{k: saved[k] for k in cls.__dataclass_fields__}) if saved else cls()


def set_up(config: Config) -> Run:
    """Reads the data and builds the network, its loss and optimiser.

    Raises:
        ConfigError: settings that do not go together.
        ValueError, OSError: of the data, or of the weights to begin with.
    """
    variant = variants[config.variant]
    default_workers = min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0
    workers = default_workers if config.workers is None else config.workers
    _refuse_launcher(config)
    unused = DistributedDataParallelKwargs(find_unused_parameters=config.warmup_epochs > 0)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        dynamo_backend=None if config.compile == "no" else config.compile,
        log_with=config.tracker or None,
        project_dir=config.output,
        kwargs_handlers=[unused],
    )
    world, main, device = accelerator.num_processes, accelerator.is_main_process, accelerator.device
    if config.batch_size % (world * config.accumulate):
        also = f" × {config.accumulate} pieces (accumulate)" if config.accumulate > 1 else ""
        raise ConfigError(
            f"batch_size {config.batch_size} (over all processes) must be a multiple of the {world} processes{also}"
        )
    if device.type == "cpu":
        keep_memory()
        share_cores(config.threads)
    set_seed(config.seed)

    benchmark, train, measured, held_out = load_benchmark(config)
    model = build_model(config, benchmark, variant)
    check_can_be_loaded(model)
    freeze(config, model)
    features = None
    if config.cache_features:
        if variant.mixup:
            raise ConfigError(
                f"cache_features keeps no images to mix; choose a variant without mixup, not {config.variant}"
            )
        features = pooled_features(model, train, device, workers, main)
    loading = build_loading(config, train, model.transform, workers, accelerator.process_index, world, main, features)
    try:
        criterion = create_criterion(
            variant.loss,
            loading.num_classes,
            config.embedding_dim,
            variant.similarity,
            **{"tau": config.tau, "proxy_uncertainty": config.proxy_uncertainty, **_loss_options(config)},
        )
    except TypeError as error:
        raise ConfigError(f"loss_options={config.loss_options} do not suit {variant.loss}: {error}") from error
    final = model
    if config.lora_rank:
        final = copy.deepcopy(model).to(device)
        add_lora(model, config.lora_rank, config.lora_alpha, config.lora_targets)
    sharded = config.shard and world > 1
    if sharded:
        final = copy.deepcopy(model).to(device)
        shard(model.to(device), criterion.to(device), device)
    optimizer = torch.optim.AdamW(
        parameter_groups(config, model, criterion), weight_decay=config.weight_decay, fused=config.fused or None
    )
    return Run(
        config=config,
        variant=variant,
        accelerator=accelerator,
        workers=workers,
        benchmark=benchmark,
        measured=measured,
        held_out=held_out,
        loading=loading,
        features=features is not None,
        model=model,
        final=final,
        criterion=criterion,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, config.lr_step, config.lr_gamma),
        sharded=sharded,
        name=config.row(model.transform.image_size),
    )


def _loss_options(config: Config) -> dict[str, Any]:
    """Of the loss's function; what has a key of its own is not said twice."""
    if twice := {"tau", "proxy_uncertainty"} & set(config.loss_options):
        raise ConfigError(f"{twice.pop()} is a key of its own, beside loss_options")
    return config.loss_options


def _refuse_launcher(config: Config) -> None:
    """ConfigError where `accelerate launch` was given what the recipe must know, or no result would record it."""
    asked = {
        "mixed_precision": os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower(),
        "compile": os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower(),
        "accumulate": os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
    }
    for key, value in asked.items():
        if value not in ("no", "1", "", str(getattr(config, key)).lower()):
            raise ConfigError(f"`accelerate launch` was given {key} {value}; give it to the recipe: {key}={value}")


def take_folder(run: Run) -> dict[str, Any] | None:
    """Makes the run's folder and locks it; the checkpoint to go on from, or None.

    Raises:
        ConfigError: another process trains there, or a run with other settings has begun there.
        OSError: the folder cannot be written to.
    """
    config = run.config
    if run.main:
        run.lock = FileLock(make_folder(run.folder) / ".lock")
        try:
            run.lock.acquire(timeout=0)  # until the process ends, however it ends
        except Timeout as error:
            raise ConfigError(
                f"another process trains in {run.folder}; wait for it, or choose name= or output="
            ) from error
        if config.resume == "no":
            checkpoints.clear(run.checkpoints)
    run.accelerator.wait_for_everyone()
    saved = checkpoints.read(run.checkpoints, warn)
    changed = checkpoints.check_config(config, saved["config"], run.checkpoints) if saved else []
    if run.main:
        warn_of_other_package()
        if saved:
            warn(f"going on after step {saved['step']}" + (f" with {'; '.join(changed)}" if changed else ""))
        write_file(run.folder / "config.yaml", config.to_yaml())
        for path in (run.log, run.validation_log):
            if saved:
                keep_rows(path, saved["step"])
            else:
                path.unlink(missing_ok=True)
    return saved


def dress(run: Run, saved: dict[str, Any] | None) -> None:
    """Makes the parts ready to train: seeds, memory layout, accelerate's wrappers, and what a checkpoint says."""
    config, accelerator = run.config, run.accelerator
    set_seed(config.seed, device_specific=True)  # dropout, and flips on the device, differ between processes
    run.mixing = torch.Generator().manual_seed(config.seed) if run.variant.mixup else None
    if not run.sharded:  # shards are rows of bytes
        run.model.to(memory_format=torch.channels_last)
    fed: Any = run.model.head if run.features else run.model
    if config.gradient_checkpointing:  # not every backbone knows it
        run.model.set_grad_checkpointing()
    if config.ema_decay:
        run.ema = ModelEmaV3(run.model, config.ema_decay, device=accelerator.device)
        run.final = run.ema.module
    if run.sharded:  # no DDP around it
        run.fed = accelerator.prepare_model(run.model, evaluation_mode=True, device_placement=False)
        run.loss, run.optimizer = run.criterion, accelerator.prepare(run.optimizer)
    else:
        run.fed, run.loss, run.optimizer = accelerator.prepare(fed, run.criterion, run.optimizer)
    if saved:
        checkpoints.restore(run.parts(), saved)
        # with another number of processes dropout is drawn anew; order and augmentation are the same all the same
        if len(saved["rng"]) == run.world:
            checkpoints.set_rng_state(saved["rng"][accelerator.process_index])
