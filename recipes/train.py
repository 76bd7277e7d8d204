"""Train a model, measure it, add its row to a leaderboard. This file is the loop: read it from top to bottom.

    accelerate launch recipes/train.py               # the quickstart: glyphs, two minutes on 2 cores
    accelerate launch recipes/train.py --config recipes/cub_resnet50.yaml variant=pa_mixup seed=1 data_root=/data
    accelerate launch recipes/train.py --config recipes/cub_resnet50.yaml benchmark=mine source=path/to/folder

On one process `python recipes/train.py` does the same, and so does `idml-zoo train` of the installed package. Any key
can be given as key=value; idml_zoo/training/config/ has them all, in groups.py and config.py.

The recipes have the settings of the authors' code where it gave some, with these decisions of ours:

- Batch-norm statistics stay frozen throughout. Its affine parameters train after the warm-up, which is what the
  released code does in effect.
- The uncertainty head trains during the warm-up too; in the authors' code it is frozen then.
- The last epoch is measured, never the best one on the test set.
- Clean and mixed images go through the network in one concatenated forward pass. Where batch-norm is frozen, that is
  the same as two passes.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from idml_zoo.distributed import gather
from idml_zoo.losses import mixup
from idml_zoo.training.command import parse
from idml_zoo.training.config import load_config
from idml_zoo.training.console import warn_once
from idml_zoo.training.epoch_end import end_epoch
from idml_zoo.training.errors import leave, one_line_errors
from idml_zoo.training.failed_trials import recorded_failure
from idml_zoo.training.measuring import measure
from idml_zoo.training.monitor import Monitor
from idml_zoo.training.network import set_training_mode
from idml_zoo.training.run import Run, State
from idml_zoo.training.setup import set_up
from idml_zoo.training.summary import report
from idml_zoo.types import Embedding


def main(arguments: list[str] | None = None) -> int:
    """Trains and measures as the command line says; returns the exit status."""
    given = parse(arguments, __doc__)
    with one_line_errors() as outcome:
        config = load_config(given.config, given.overrides, notify=warn_once)
        run, state = set_up(config)  # data, network, loss, optimiser; from a checkpoint where there is one
        with recorded_failure(run):
            train(run, state)
        measure(run, state)
        report(run)
    return outcome.status


def train(run: Run, state: State) -> None:
    """Trains from where ``state`` is to the end, and moves it along.

    Raises:
        TrainingError: the loss is not finite, or the embeddings have collapsed.
        Stopped: somebody asked to stop; a checkpoint was written.
        OSError: the model cannot be written.
    """
    network, optimizer = run.config.network, run.config.optimizer
    with Monitor(run, state) as monitor:
        while state.epoch < optimizer.epochs:
            run.model.backbone_frozen = network.freeze_backbone or state.epoch < optimizer.warmup_epochs
            set_training_mode(run.wrapped, network.freeze_batchnorm)
            for images, labels, _ in monitor.timed(run.loading.epoch(state.epoch, state.batch)):
                loss, embedding, all_labels = step(run, images, labels)
                state.step, state.batch = state.step + 1, state.batch + 1
                monitor.after_step(loss, embedding, all_labels, len(images))  # log, checkpoint, request to stop
                if state.step == run.last_step:
                    break
            run.scheduler.step()
            monitor.check_losses()  # before the model is saved
            state.epoch, state.batch = state.epoch + 1, 0
            if end_epoch(run, state) or state.step == run.last_step:  # validates, saves the model
                state.epoch = optimizer.epochs
            monitor.after_epoch()


def step(run: Run, images: Tensor, labels: Tensor) -> tuple[Tensor, Embedding, Tensor]:
    """Makes one step with this process's part of a batch.

    Returns:
        The loss, and the embedding and labels of the batch's last piece from all processes.
    """
    accelerator, pieces = run.accelerator, run.config.hardware.accumulate
    labels = labels.to(accelerator.device, non_blocking=True)
    images = run.loading.finish(images.to(accelerator.device, non_blocking=True))
    if not run.cached_features:
        images = images.contiguous(memory_format=torch.channels_last)
    run.optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=accelerator.device)
    for i in range(pieces):
        # every n-th image: a batch of P classes × K images lies class by class, and each piece needs pairs of a class
        part = slice(i, None, pieces)
        # gradients are averaged over processes once, with the last piece
        with nullcontext() if i == pieces - 1 else accelerator.no_sync(run.wrapped):
            piece_loss, embedding, all_labels = step_loss(
                run.wrapped, run.wrapped_criterion, images[part], labels[part], run.mixup_generator
            )
            accelerator.backward(piece_loss / pieces)
        loss += piece_loss.detach() / pieces
    if accelerator.sync_gradients:
        parameters = [*run.model.parameters(), *run.criterion.parameters()]
        accelerator.clip_grad_value_(parameters, run.config.optimizer.clip_value)
    run.optimizer.step()
    if run.ema is not None:
        run.ema.update(run.model)
    return loss, embedding, all_labels


def step_loss(
    model: nn.Module, criterion: nn.Module, images: Tensor, labels: Tensor, mixup_generator: torch.Generator | None
) -> tuple[Tensor, Embedding, Tensor]:
    """Computes the loss of one batch over all processes.

    Args:
        model: images ``(B, 3, H, W)`` to an Embedding.
        criterion: the loss of an embedding and its labels.
        images: this process's part of the batch.
        labels: ``(B,)``.
        mixup_generator: draws the mixup, alike on every process, for λ belongs to the whole batch; None for no mixup.

    Returns:
        The loss, and the clean embedding and labels of all processes, for the statistics.
    """
    if mixup_generator is None:
        embedding, all_labels = gather(model(images), labels)
        return criterion(embedding, all_labels), embedding, all_labels
    mixed = mixup(images, mixup_generator)
    both = model(torch.cat([images, mixed.images]))
    clean, all_labels = gather(both[: len(images)], labels)
    blended, partners = gather(both[len(images) :], labels[mixed.permutation])
    # L(x, y) + λ·L(x̃, y) + (1−λ)·L(x̃, y_π) [C]: the weights sum to 2
    loss = criterion(clean, all_labels) + criterion(blended, all_labels, partners, mixed.weight)
    return loss, clean, all_labels


if __name__ == "__main__":
    leave(main())
