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
import csv
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from config import QUICKSTART, Config, ConfigError, load_config
from cpu import keep_memory, share_cores
from loading import build_loading, load_benchmark
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

import idml_zoo
from idml_zoo.card import build_card
from idml_zoo.data.benchmark import Benchmark
from idml_zoo.distributed import gather
from idml_zoo.evaluation.protocol import evaluate, save_result
from idml_zoo.evaluation.provenance import code_state
from idml_zoo.leaderboard import build_leaderboard, summary
from idml_zoo.losses import create_criterion, mixup
from idml_zoo.model import IDMLModel
from idml_zoo.results import Result, write_text
from idml_zoo.types import Embedding
from idml_zoo.variants import Variant, variants
from idml_zoo.weights import WEIGHTS, sha256_of
from idml_zoo.zoo import LOCAL, weights_source

console = Console(stderr=True)


class TrainingError(RuntimeError):
    """A run that cannot go on: a loss that is not finite, or data too small for one batch."""


def build_model(config: Config, benchmark: Benchmark, variant: Variant) -> IDMLModel:
    """The network with its preprocessing: the backbone's, then the benchmark's, then the configuration's wishes."""
    options = {"uncertainty_input": config.uncertainty_input, "initial_level": config.initial_level}
    model = idml_zoo.create_model(
        variant.head,
        backbone=config.backbone,
        embedding_dim=config.embedding_dim,
        backbone_pretrained=config.backbone_weights,
        pooling=config.pooling or None,
        head_options=options if variant.head == "idml" else None,
        **config.backbone_options,
    )
    model.transform = model.transform.replace(**benchmark.transform)
    model.transform = model.transform.replace(
        image_size=config.image_size,
        crop_fraction=config.crop_fraction,
        scale=config.random_crop_scale,
        flip=config.flip,
    )
    return model


def parameter_groups(config: Config, model: IDMLModel, criterion: nn.Module) -> list[dict[str, Any]]:
    """Backbone and semantic head at lr; uncertainty at its multiple; proxies at theirs (100 in the authors' code)."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        is_uncertainty = name.startswith("head.uncertainty")
        groups.setdefault(config.uncertainty_lr_multiplier if is_uncertainty else 1.0, []).append(parameter)
    for name, parameter in criterion.named_parameters():
        # the proxies' uncertainty never at the proxies' pace: β would explode within a few steps
        is_proxy = name.endswith("proxies")
        multiple = config.proxy_lr_multiplier if is_proxy else config.uncertainty_lr_multiplier
        groups.setdefault(multiple, []).append(parameter)
    return [{"params": p, "lr": config.lr * multiple} for multiple, p in groups.items()]


def set_training_mode(model: nn.Module, freeze_batchnorm: bool) -> None:
    """Training mode, with batch-norm statistics frozen where asked."""
    model.train()
    if freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def append_row(path: Path, entry: dict[str, Any]) -> None:
    """Adds a line to a CSV, after a header where the file is new; closed at once, so that a killed run keeps it."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(entry)
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in entry.values()])


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


def run(config: Config) -> list[Result]:
    """One run: the result of the trained model, after that of the untrained one where asked for."""
    variant = variants[config.variant]
    code_state()  # the code that runs, whatever is edited meanwhile
    default_workers = min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0
    workers = default_workers if config.workers is None else config.workers
    unused = DistributedDataParallelKwargs(find_unused_parameters=config.warmup_epochs > 0)
    accelerator = Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=[unused])
    world, main = accelerator.num_processes, accelerator.is_main_process
    if config.batch_size % world:
        raise ConfigError(
            f"batch_size {config.batch_size} (over all processes) must be a multiple of the {world} processes"
        )
    if accelerator.device.type == "cpu":
        keep_memory()
        share_cores(config.threads)
    set_seed(config.seed)

    # data and network
    benchmark, train, measured = load_benchmark(config)
    model = build_model(config, benchmark, variant)
    name = config.row(model.transform.image_size)
    loading = build_loading(config, train, model.transform, workers, accelerator.process_index, world, main)
    criterion = create_criterion(
        variant.loss,
        loading.num_classes,
        config.embedding_dim,
        variant.similarity,
        tau=config.tau,
        proxy_uncertainty=config.proxy_uncertainty,
        **config.loss_options,
    )
    optimizer: Any = torch.optim.AdamW(parameter_groups(config, model, criterion), weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, config.lr_step, config.lr_gamma)

    # where things go
    folder = Path(config.output) / benchmark.name / name / f"seed{config.seed}"
    log, results, recipe = folder / "log.csv", Path(config.leaderboard) / "results", config.to_yaml()
    about: dict[str, Any] = {
        "root": config.data_root,
        "seed": config.seed,
        "split": measured,
        "split_name": config.evaluate_on,
        "pretrained": weights_source(config.backbone_weights, config.backbone),
        "device": accelerator.device,
        "workers": workers,
        "progress": main,
    }
    finished: list[Result] = []
    if main:
        write_text(folder / "config.yaml", recipe)
        log.unlink(missing_ok=True)
        if config.evaluate_untrained:
            row = f"untrained-{variant.head}-{config.backbone.split('.')[0]}-{model.transform.image_size}px"
            finished.append(evaluate(model, benchmark, row=row, training="none: head drawn at random", **about))
            save_result(finished[-1], results)

    # training
    set_seed(config.seed, device_specific=True)  # from here on, each process augments in its own way
    mixing = torch.Generator().manual_seed(config.seed) if variant.mixup else None
    model_, criterion_ = model.to(memory_format=torch.channels_last), criterion
    model_, criterion_, optimizer = accelerator.prepare(model_, criterion_, optimizer)
    bar = Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]:.0f} images/s  loss {task.fields[loss]:.3f}"),
        console=console,
        disable=not main,
    )
    statistics: dict[str, float] = {}
    started, step = time.perf_counter(), 0
    with bar:
        task = bar.add_task("train", total=config.epochs * loading.steps, epoch=0, rate=0.0, loss=float("nan"))
        for epoch in range(config.epochs):
            model.backbone_frozen = epoch < config.warmup_epochs
            set_training_mode(model_, config.freeze_batchnorm)
            tick, since = time.perf_counter(), 0
            for images, labels, _ in loading.epoch(epoch):
                labels = labels.to(accelerator.device, non_blocking=True)
                images = loading.finish(images.to(accelerator.device, non_blocking=True))
                images = images.contiguous(memory_format=torch.channels_last)
                loss, embedding, everyone = step_loss(model_, criterion_, images, labels, mixing)
                optimizer.zero_grad(set_to_none=True)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_value_([*model.parameters(), *criterion.parameters()], config.clip_value)
                optimizer.step()
                step, since = step + 1, since + len(images) * world
                if step % config.log_every == 0 or step == 1 or step == config.epochs * loading.steps:
                    value = loss.item()  # the one place that waits for the device
                    if not torch.isfinite(loss):
                        raise TrainingError(
                            f"the loss is {value} at step {step} (epoch {epoch + 1}); lower lr (now {config.lr:g}) or "
                            f"raise tau. The model of the last whole epoch is in {folder / 'model'}"
                        )
                    statistics = {k: v.item() for k, v in criterion.statistics(embedding, everyone).items()}
                    rate, tick, since = since / (time.perf_counter() - tick), time.perf_counter(), 0
                    entry = {"epoch": epoch + 1, "step": step, "loss": value, "lr": optimizer.param_groups[0]["lr"]}
                    entry |= {"images_per_second": rate} | statistics
                    if main:
                        append_row(log, entry)
                    bar.update(task, rate=rate, loss=value)
                bar.update(task, advance=1, epoch=epoch + 1)
            scheduler.step()
            if main:
                model.save_pretrained(
                    folder / "model",
                    benchmark=benchmark.name,
                    variant=config.variant,
                    seed=config.seed,
                    epoch=epoch + 1,
                    pretrained=about["pretrained"],
                )
    train_seconds = time.perf_counter() - started

    # measuring
    accelerator.wait_for_everyone()
    if main:
        text = f"{config.epochs} epochs at {model.transform.image_size} px, batch {config.batch_size}, lr {config.lr:g}"
        finished.append(
            evaluate(
                model,
                benchmark,
                row=name,
                variant=config.variant,
                checkpoint="last",
                training=text,
                recipe=recipe,
                train_seconds=train_seconds,
                statistics=statistics,
                weights_sha256=sha256_of(folder / "model" / WEIGHTS),
                **about,
            )
        )
        save_result(finished[-1], results)
        build_card(folder / "model", results, f"{LOCAL}{folder / 'model'}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return finished


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
        build_leaderboard(config.leaderboard)
    except (ValueError, OSError, TrainingError) as error:  # the project's own errors are ValueErrors
        text = str(error)
        if (
            "DataLoader worker" in text
        ):  # torch wraps what a worker raises into its whole traceback: the last line says it
            text = text.strip().splitlines()[-1].partition(": ")[2]
        console.print(f"[bold red]{type(error).__name__}:[/] {escape(text)}", highlight=False, soft_wrap=True)
        return 1
    folder = Path(config.output) / finished[-1].benchmark / finished[-1].row / f"seed{config.seed}"
    out = Console(soft_wrap=True, markup=False, highlight=False)
    out.print(summary(finished))
    weights = folder / "model"
    out.print(f"model    {weights}   idml_zoo.create_model('local-dir:{weights}', pretrained=True)")
    out.print(f"log      {folder / 'log.csv'}")
    out.print(f"result   {finished[-1].path(Path(config.leaderboard) / 'results')}")
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
