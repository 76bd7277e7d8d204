"""Sets up a run from its configuration: data, network, loss, optimiser, and the folder that it writes to."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DynamoBackend, set_seed
from filelock import FileLock, Timeout
from timm.utils import ModelEmaV3
from torch import nn

from idml_zoo.data.split import Split
from idml_zoo.evaluation.provenance import code_state
from idml_zoo.files import write_file
from idml_zoo.losses import create_criterion
from idml_zoo.models.model import IDMLModel
from idml_zoo.models.saving import check_can_be_loaded
from idml_zoo.training import checkpoints
from idml_zoo.training.batches import Loading, Place, build_loading, load_benchmark
from idml_zoo.training.config import Config, ConfigError
from idml_zoo.training.console import warn, warn_of_other_package
from idml_zoo.training.cpu import keep_memory, share_cores
from idml_zoo.training.log import keep_rows
from idml_zoo.training.lora import add_lora
from idml_zoo.training.measuring import measure_untrained
from idml_zoo.training.network import adapt_transform, build_model, freeze, parameter_groups, pooled_features
from idml_zoo.training.run import Run, State
from idml_zoo.training.sharding import shard
from idml_zoo.variants import Variant, variants


def set_up(config: Config) -> tuple[Run, State]:
    """Returns a run that is ready to train, and how far it is: at its beginning, or at its last checkpoint.

    Its folder is made and locked, and the network as it begins is measured where the configuration says so.

    Raises:
        ConfigError: settings that do not go together, or a folder that another run uses.
        ValueError, OSError: of the data, of the weights to begin with, or of the folder.
    """
    code_state()  # remembers the code that runs, whatever is edited meanwhile
    run = build_run(config)
    saved = open_folder(run)
    if config.evaluation.evaluate_untrained and not saved:
        measure_untrained(run)
    if config.tracker:
        plain = {k: v for k, v in config.flat().items() if isinstance(v, (int, float, str, bool))}
        run.accelerator.init_trackers(f"{run.benchmark.name}-{run.name}-seed{config.seed}", plain)
    prepare(run, saved)
    return run, State.of(saved)


def build_run(config: Config) -> Run:
    """Reads the data and builds the network, its loss and its optimiser."""
    variant, network, hardware = variants[config.variant], config.network, config.hardware
    workers = config.data.workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0
    accelerator = start_accelerator(config)
    device, world = accelerator.device, accelerator.num_processes
    set_seed(config.seed)

    benchmark, train, measured, held_out = load_benchmark(config.benchmark, config.data, config.evaluation)
    model = build_model(network, variant)
    model.transform = adapt_transform(model.transform, benchmark, config.data)
    check_can_be_loaded(model)
    freeze(network, model)
    place = Place(workers, accelerator.process_index, world, accelerator.is_main_process)
    loading = _build_loading(config, model, train, place, device)
    criterion = _build_criterion(config, variant, loading.num_classes)
    final, sharded = model, hardware.shard and world > 1
    if network.lora_rank:
        final = copy.deepcopy(model).to(device)
        add_lora(model, network.lora_rank, network.lora_alpha, network.lora_targets)
    if sharded:
        final = copy.deepcopy(model).to(device)
        shard(model.to(device), criterion.to(device), device)
    groups = parameter_groups(config.optimizer, model, criterion)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.optimizer.weight_decay, fused=hardware.fused or None)
    return Run(
        config=config,
        variant=variant,
        accelerator=accelerator,
        workers=workers,
        benchmark=benchmark,
        measured=measured,
        held_out=held_out,
        loading=loading,
        cached_features=network.cache_features,
        model=model,
        final=final,
        criterion=criterion,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, config.optimizer.lr_step, config.optimizer.lr_gamma),
        sharded=sharded,
        name=config.row(model.transform.image_size),
    )


def start_accelerator(config: Config) -> Accelerator:
    """Starts accelerate: processes, device and precision; on a CPU also its memory and threads.

    Raises:
        ConfigError: the device is not there, or batches do not divide over the processes.
    """
    hardware = config.hardware
    _check_launcher(hardware)
    if hardware.compile.upper() not in list(DynamoBackend):
        names = ", ".join(backend.value.lower() for backend in DynamoBackend)
        raise ConfigError(f"compile must be one of {names}, got {hardware.compile!r}")
    try:
        accelerator = Accelerator(
            mixed_precision=hardware.mixed_precision,
            dynamo_backend=None if hardware.compile == "no" else hardware.compile,
            log_with=config.tracker or None,
            project_dir=config.output,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=config.optimizer.warmup_epochs > 0)],
        )
    except (RuntimeError, AssertionError, ImportError) as error:  # of torch and NCCL: a GPU that is not there
        raise ConfigError(
            f"accelerate cannot start ({str(error).strip().splitlines()[0]}); this machine has "
            f"{torch.cuda.device_count()} GPUs; `idml-zoo train` without --processes takes one process"
        ) from error
    world = accelerator.num_processes
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) > world:  # each would take itself for the only one
        raise ConfigError(
            f"{started} processes were started for GPUs, and this machine has {torch.cuda.device_count()}; on a CPU: "
            f"idml-zoo train --processes {started}"
        )
    if config.data.batch_size % (world * hardware.accumulate):
        pieces = f" × {hardware.accumulate} pieces (accumulate)" if hardware.accumulate > 1 else ""
        raise ConfigError(
            f"batch_size {config.data.batch_size} (over all processes) must be a multiple of the {world} "
            f"processes{pieces}"
        )
    if accelerator.device.type == "cpu":
        keep_memory()
        share_cores(hardware.threads)
    return accelerator


def _check_launcher(hardware: Any) -> None:
    """ConfigError where `accelerate launch` was given what the recipe must know, or no result would record it."""
    launcher = {
        "mixed_precision": os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower(),
        "compile": os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower(),
        "accumulate": os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
    }
    for key, value in launcher.items():
        if value not in ("no", "1", "", str(getattr(hardware, key)).lower()):
            raise ConfigError(f"`accelerate launch` was given {key} {value}; give it to the recipe: {key}={value}")


def _build_loading(config: Config, model: IDMLModel, train: Split, place: Place, device: torch.device) -> Loading:
    """Returns the batches: images, or the pooled features of a frozen backbone."""
    features = None
    if config.network.cache_features:
        if variants[config.variant].mixup:
            raise ConfigError(
                f"cache_features keeps no images to mix; choose a variant without mixup, not {config.variant}"
            )
        features = pooled_features(model, train, device, place.workers, place.progress)
    return build_loading(config.data, config.seed, train, model.transform, place, features)


def _build_criterion(config: Config, variant: Variant, classes: int) -> nn.Module:
    """Returns the variant's loss; ConfigError where its options are not of that loss."""
    try:
        return create_criterion(
            variant.loss, classes, config.network.embedding_dim, variant.similarity, **config.loss.options
        )
    except TypeError as error:
        raise ConfigError(f"loss_options={config.loss.loss_options} do not suit {variant.loss}: {error}") from error


def open_folder(run: Run) -> dict[str, Any] | None:
    """Makes the run's folder and locks it; returns the checkpoint to go on from, or None.

    Raises:
        ConfigError: another process trains there, or a run with other settings has begun there.
        OSError: the folder cannot be written to.
    """
    config = run.config
    if run.main:
        run.lock = FileLock(_make_folder(run.folder) / ".lock")
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


def _make_folder(folder: Path) -> Path:
    """Returns the folder itself, made if it is not there; OSError with the fix where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}); choose another output=") from error
    return folder


def prepare(run: Run, saved: dict[str, Any] | None) -> None:
    """Makes the parts ready to train: seeds, memory layout, accelerate's wrappers, and the state of a checkpoint."""
    config, accelerator = run.config, run.accelerator
    set_seed(config.seed, device_specific=True)  # dropout, and flips on the device, differ between processes
    run.mixup_generator = torch.Generator().manual_seed(config.seed) if run.variant.mixup else None
    if not run.sharded:  # shards are rows of bytes
        run.model.to(memory_format=torch.channels_last)
    trained: Any = run.model.head if run.cached_features else run.model
    if config.hardware.gradient_checkpointing:  # not every backbone knows it
        run.model.set_grad_checkpointing()
    if config.optimizer.ema_decay:
        run.ema = ModelEmaV3(run.model, config.optimizer.ema_decay, device=accelerator.device)
        run.final = run.ema.module
    if run.sharded:  # no DDP around it
        run.wrapped = accelerator.prepare_model(run.model, evaluation_mode=True, device_placement=False)
        run.wrapped_criterion, run.optimizer = run.criterion, accelerator.prepare(run.optimizer)
    else:
        prepared = accelerator.prepare(trained, run.criterion, run.optimizer)
        run.wrapped, run.wrapped_criterion, run.optimizer = prepared
    if saved:
        checkpoints.restore(run.stateful(), saved)
        # with another number of processes dropout is drawn anew; order and augmentation are the same all the same
        if len(saved["rng"]) == run.world:
            checkpoints.set_rng_state(saved["rng"][accelerator.process_index])
