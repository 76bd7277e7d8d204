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
import copy
import dataclasses
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import resume
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object, set_seed
from building import build_model, freeze, parameter_groups, pooled_features, set_training_mode
from config import QUICKSTART, Config, ConfigError, load_config
from cpu import keep_memory, share_cores
from filelock import FileLock, Timeout
from loading import build_loading, load_benchmark
from lora import add_lora, merge
from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError
from sharding import copy_whole, shard, together
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from watch import (
    TrainingError,
    Waiting,
    append_row,
    console,
    diagnosis,
    keep_rows,
    make_folder,
    memory,
    profiled,
    progress_bar,
    warn,
)

from idml_zoo.card import build_card
from idml_zoo.data.split import Split
from idml_zoo.distributed import gather
from idml_zoo.evaluation.embed import embed
from idml_zoo.evaluation.measure import evaluate_embeddings
from idml_zoo.evaluation.protocol import evaluate, save_result
from idml_zoo.evaluation.provenance import code_state
from idml_zoo.leaderboard import build_leaderboard, summary
from idml_zoo.losses import create_criterion, mixup
from idml_zoo.model import IDMLModel
from idml_zoo.pretrained import load
from idml_zoo.results import Result, write_text
from idml_zoo.types import Embedding
from idml_zoo.variants import variants
from idml_zoo.weights import WEIGHTS, local_files, sha256_of
from idml_zoo.zoo import LOCAL, weights_source


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


def validate(model: IDMLModel, split: Split, device: torch.device, workers: int, main: bool) -> dict[str, float]:
    """R@1, MAP@R and the AUROC of the level on validation classes; all processes must call."""
    bank = embed(model, split, model.transform, workers=workers, device=device, progress=main, share=True)
    found = evaluate_embeddings(bank, split.labels, (1,), cluster_seeds=())
    return {k: float(found[k] or 0.0) for k in ("recall@1", "map@r", "auroc_level")}


def run(config: Config) -> list[Result]:
    """One run: the result of the trained model, after that of the untrained one where asked for."""
    variant = variants[config.variant]
    code_state()  # the code that runs, whatever is edited meanwhile
    default_workers = min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0
    workers = default_workers if config.workers is None else config.workers
    unused = DistributedDataParallelKwargs(find_unused_parameters=config.warmup_epochs > 0)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        dynamo_backend=None if config.compile == "no" else config.compile,
        log_with=config.tracker or None,
        project_dir=config.output,
        kwargs_handlers=[unused],
    )
    world, main = accelerator.num_processes, accelerator.is_main_process
    if config.batch_size % (world * config.accumulate):
        also = f" × {config.accumulate} pieces (accumulate)" if config.accumulate > 1 else ""
        raise ConfigError(
            f"batch_size {config.batch_size} (over all processes) must be a multiple of the {world} processes{also}"
        )
    if accelerator.device.type == "cpu":
        keep_memory()
        share_cores(config.threads)
    set_seed(config.seed)

    # data and network
    benchmark, train, measured, held_out = load_benchmark(config)
    model = build_model(config, benchmark, variant)
    name = config.row(model.transform.image_size)
    freeze(config, model)
    features = None
    if config.cache_features:
        if variant.mixup:
            raise ConfigError(
                f"cache_features keeps no images to mix; choose a variant without mixup, not {config.variant}"
            )
        features = pooled_features(model, train, accelerator.device, workers, main)
    loading = build_loading(config, train, model.transform, workers, accelerator.process_index, world, main, features)
    criterion = create_criterion(
        variant.loss,
        loading.num_classes,
        config.embedding_dim,
        variant.similarity,
        tau=config.tau,
        proxy_uncertainty=config.proxy_uncertainty,
        **config.loss_options,
    )
    # what is saved and measured: the network itself, but for a moving average of its weights, or a copy that shards are
    # put together in, or that LoRA is merged into
    final = model
    if config.lora_rank:
        final = copy.deepcopy(model).to(accelerator.device)
        add_lora(model, config.lora_rank, config.lora_alpha, config.lora_targets)
    sharded = config.shard and world > 1
    if sharded:
        final = copy.deepcopy(model).to(accelerator.device)
        shard(model.to(accelerator.device), criterion.to(accelerator.device), accelerator.device)
    optimizer: Any = torch.optim.AdamW(
        parameter_groups(config, model, criterion), weight_decay=config.weight_decay, fused=config.fused or None
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, config.lr_step, config.lr_gamma)

    # where things go
    folder = Path(config.output) / benchmark.name / name / f"seed{config.seed}"
    validation_log = folder / "validation.csv"
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
    checkpoints = folder / "checkpoints"
    if main:
        lock = FileLock(make_folder(folder) / ".lock")
        try:
            lock.acquire(timeout=0)  # until the process ends, however it ends
        except Timeout as error:
            raise ConfigError(f"another process trains in {folder}; wait for it, or choose name= or output=") from error
    if main and config.resume == "no":
        resume.clear(checkpoints)
    accelerator.wait_for_everyone()
    saved = resume.read(checkpoints, warn)
    if saved:
        changed = resume.check_config(config, saved["config"], checkpoints)
        if main:
            warn(f"going on after step {saved['step']}" + (f" with {'; '.join(changed)}" if changed else ""))
    if main:
        write_text(folder / "config.yaml", recipe)
        for path in (log, validation_log):
            if saved:
                keep_rows(path, saved["step"])
            else:
                path.unlink(missing_ok=True)
        if config.evaluate_untrained and not saved:
            row = f"untrained-{variant.head}-{config.backbone.split('.')[0]}-{model.transform.image_size}px"
            finished.append(evaluate(final, benchmark, row=row, training="none: head drawn at random", **about))
            save_result(finished[-1], results)

    if config.tracker:
        plain = {k: v for k, v in dataclasses.asdict(config).items() if isinstance(v, (int, float, str, bool))}
        accelerator.init_trackers(f"{benchmark.name}-{name}-seed{config.seed}", plain)

    # training
    set_seed(config.seed, device_specific=True)  # dropout, and flips on the device, differ between processes
    mixing = torch.Generator().manual_seed(config.seed) if variant.mixup else None
    if not sharded:  # shards are rows of bytes
        model.to(memory_format=torch.channels_last)
    model_: Any = model if features is None else model.head  # what is fed: images, or features
    if config.gradient_checkpointing:  # not every backbone knows it
        model.set_grad_checkpointing()
    ema = ModelEmaV3(model, config.ema_decay, device=accelerator.device) if config.ema_decay else None
    if ema is not None:
        final = ema.module
    if sharded:  # no DDP around it
        model_, criterion_ = accelerator.prepare_model(model, evaluation_mode=True, device_placement=False), criterion
        optimizer = accelerator.prepare(optimizer)
    else:
        model_, criterion_, optimizer = accelerator.prepare(model_, criterion, optimizer)
    bar = progress_bar(main)
    statistics: dict[str, float] = {}
    step = first = begun = 0  # step of the run; epoch to go on with; batches of it that are done
    earlier, started = 0.0, time.perf_counter()
    best: dict[str, float] = {"recall@1": -1.0, "epoch": 0}  # by the validation classes
    stale = 0  # validations since
    parts = {"model": model, "criterion": criterion, "optimizer": optimizer, "scheduler": scheduler}
    parts |= {"scaler": accelerator.scaler, "mixing": mixing, "ema": None if ema is None else ema.module}
    if saved:
        resume.restore(parts, saved)
        if len(saved["rng"]) == world:  # else dropout is drawn anew; order and augmentation are the same all the same
            resume.set_rng_state(saved["rng"][accelerator.process_index])
        step, first, begun = saved["step"], saved["epoch"], saved["batch"]
        statistics, earlier = saved["statistics"], saved["seconds"]
        best, stale = saved["best"], saved["stale"]
        del saved
    bad = torch.zeros((), device=accelerator.device)  # steps whose loss was not finite; looked at where the log waits

    def save(epoch: int, batch: int) -> None:
        """A checkpoint, from all processes; a full disk is no reason to lose what is in memory."""
        rng = gather_object([resume.rng_state()])
        check()
        taken = resume.states(parts) if main or sharded else {}
        if not main:
            return
        state = {
            "config": dataclasses.asdict(config),
            "step": step,
            "epoch": epoch,
            "batch": batch,
            "seconds": earlier + time.perf_counter() - started,
            "statistics": statistics,
            "best": best,
            "stale": stale,
            "rng": rng,
            **taken,
        }
        try:
            resume.write(checkpoints, state)
        except OSError as error:
            warn(f"no checkpoint after step {step} ({error}); the one before is kept, and training goes on")

    def check() -> None:
        if bad.item():
            raise TrainingError(
                f"the loss was not finite in {int(bad.item())} of the steps up to {step}; lower lr (now {config.lr:g}) "
                f"or raise tau. The last good checkpoint is in {checkpoints}, the model of the last whole epoch in "
                f"{folder / 'model'}"
            )

    with bar, resume.Asked() as asked, profiled(config.profile_steps if main else 0, folder) as profiler:
        total = min(config.epochs * loading.steps, config.max_steps or sys.maxsize)
        task = bar.add_task("train", total=total, completed=step, epoch=first, rate=0.0, loss=float("nan"))
        for epoch in range(first, config.epochs):
            model.backbone_frozen = config.freeze_backbone or epoch < config.warmup_epochs
            set_training_mode(model_, config.freeze_batchnorm)
            tick, since = time.perf_counter(), 0
            batches = Waiting(loading.epoch(epoch, begun))
            for batch, (images, labels, _) in enumerate(batches, begun + 1):
                labels = labels.to(accelerator.device, non_blocking=True)
                images = loading.finish(images.to(accelerator.device, non_blocking=True))
                if features is None:
                    images = images.contiguous(memory_format=torch.channels_last)
                optimizer.zero_grad(set_to_none=True)
                loss = torch.zeros((), device=accelerator.device)
                pieces = list(zip(images.chunk(config.accumulate), labels.chunk(config.accumulate), strict=True))
                for i, (some, theirs) in enumerate(pieces, 1):
                    # gradients are averaged over processes once, with the last piece
                    with nullcontext() if i == len(pieces) else accelerator.no_sync(model_):
                        piece, embedding, everyone = step_loss(model_, criterion_, some, theirs, mixing)
                        accelerator.backward(piece / len(pieces))
                    loss += piece.detach() / len(pieces)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_value_([*model.parameters(), *criterion.parameters()], config.clip_value)
                optimizer.step()
                if ema is not None:
                    ema.update(model)
                bad += ~torch.isfinite(loss)
                profiler.step()
                step, since = step + 1, since + len(images) * world
                at_log = step % config.log_every == 0 or step == 1 or step == total
                if at_log:
                    value = loss.item()  # the one place that waits for the device
                    check()
                    with together(criterion):
                        statistics = {k: v.item() for k, v in criterion.statistics(embedding, everyone).items()}
                    if wrong := diagnosis(statistics, embedding, variant.head not in ("semantic", "features")):
                        raise TrainingError(
                            f"{wrong}, at step {step}; lower lr (now {config.lr:g}) or its multipliers. The last "
                            f"checkpoint is in {checkpoints}"
                        )
                    took = time.perf_counter() - tick
                    rate, waited, tick, since = since / took, batches.take() / took, time.perf_counter(), 0
                    entry = {"epoch": epoch + 1, "step": step, "loss": value, "lr": optimizer.param_groups[0]["lr"]}
                    entry |= {
                        "images_per_second": rate,
                        "waiting": waited,
                        "gib": memory(accelerator.device),
                    } | statistics
                    if main:
                        append_row(log, entry)
                        accelerator.log(entry, step=step)
                    bar.update(task, rate=rate, loss=value)
                bar.update(task, advance=1, epoch=epoch + 1)
                # several processes look together, where they wait anyway
                stop = bool(asked) if world == 1 else at_log and any(gather_object([bool(asked)]))
                if batch < loading.steps and (
                    stop or (config.checkpoint_every and step % config.checkpoint_every == 0)
                ):
                    save(epoch, batch)
                    if stop:
                        raise resume.Stopped(f"stopped after step {step}; the same command goes on from there")
                if step == total:
                    break
            scheduler.step()
            check()  # before anything of it is saved
            begun = 0
            improved = False
            if sharded:
                copy_whole(model, final)
            if config.lora_rank:
                merge(model, final)
            if held_out is not None and config.validate_every and (epoch + 1) % config.validate_every == 0:
                found = validate(final, held_out, accelerator.device, workers, main)
                improved = found["recall@1"] > best["recall@1"]
                best, stale = ({**found, "epoch": epoch + 1}, 0) if improved else (best, stale + 1)
                if main:
                    append_row(validation_log, {"epoch": epoch + 1, "step": step, **found})
                    accelerator.log({f"validation/{k}": v for k, v in found.items()}, step=step)
            ended = step == total or bool(config.patience and stale >= config.patience)
            if main:
                about_it = {"benchmark": benchmark.name, "variant": config.variant, "seed": config.seed}
                about_it |= {"epoch": epoch + 1, "pretrained": about["pretrained"]}
                for part in ["model", *(["best"] if improved else [])]:
                    try:
                        final.save_pretrained(folder / part, **about_it)  # type: ignore[arg-type]
                    except (OSError, SafetensorError) as error:
                        if ended or part == "best":
                            raise OSError(
                                f"{folder / part} cannot be written ({error}); free space, and start again"
                            ) from error
                        warn(f"{folder / part} is not written after epoch {epoch + 1} ({error})")
            save(config.epochs if ended else epoch + 1, 0)
            if ended:
                break
            if asked and world == 1 and epoch + 1 < config.epochs:
                raise resume.Stopped(f"stopped after epoch {epoch + 1}; the same command goes on from there")
    train_seconds = earlier + time.perf_counter() - started

    # measuring
    accelerator.wait_for_everyone()
    trained_epochs = step // loading.steps
    chosen, measured_folder = "last", "model"
    if config.select == "best":  # honestly named: by the validation classes, which were not trained on
        chosen, measured_folder, trained_epochs = "validation", "best", int(best["epoch"])
        final.load_state_dict(load(*local_files(folder / "best")).state_dict())
    how: dict[str, Any] = {"workers": workers, "device": accelerator.device, "progress": main}
    tick = time.perf_counter()
    bank = embed(final, measured, model.transform, share=world > 1, **how)  # shared out; what follows is fast on one
    took = time.perf_counter() - tick
    if main:
        text = f"{step} steps" if config.max_steps else f"{trained_epochs} epochs"
        text += f" at {model.transform.image_size} px, batch {config.batch_size}, lr {config.lr:g}"
        if variant.similarity == "introspective" and config.tau != Config.tau:
            text += f", τ {config.tau:g}"
        both = config.similarity == "both" and variant.head not in ("semantic", "features")
        for similarity in ("cosine", "introspective") if both else ("cosine",):
            result = evaluate(
                final,
                benchmark,
                embedding=bank,
                embed_seconds=took,
                similarity=similarity,
                corruptions=config.corruptions.split() if similarity == "cosine" else (),
                row=name if similarity == "cosine" else f"{name}-{similarity}",
                variant=config.variant,
                checkpoint=chosen,
                training=text,
                recipe=recipe,
                train_seconds=train_seconds,
                statistics=statistics,
                weights_sha256=sha256_of(folder / measured_folder / WEIGHTS),
                **about,
            )
            save_result(result, results)
            finished.append(result)
        build_card(folder / measured_folder, results, f"{LOCAL}{folder / measured_folder}")
        resume.clear(checkpoints)
        lock.release()
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
        if "DataLoader worker" in text:  # torch wraps the worker's whole traceback: its last line says it
            text = text.strip().splitlines()[-1].partition(": ")[2]
        console.print(f"[bold red]{type(error).__name__}:[/] {escape(text)}", highlight=False, soft_wrap=True)
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
    except resume.Stopped as stopped:
        warn(str(stopped))
        return resume.STOPPED
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
