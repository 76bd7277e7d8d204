"""What a training step costs beside the backbone's own forward and backward pass. Run by hand, ~4 minutes.

    python tests/benchmarks/train_step.py [--backbone tf_efficientnet_lite0] [--size 128] [--batch 32] [--rounds 10]

Contenders take turns in one process, on random images that are in memory; medians, and ratios to the bare backbone on
as many images:

bare       the backbone's forward and backward pass in channels_last, no head, no loss, no optimiser
ours       recipes/train.py's step (idml with mixup, and without): one forward pass, loss, clipping, AdamW, no waiting
plain      the same training as the authors' released loop goes: two forward passes, contiguous memory, a loss that is
           read in every step, labels made binary on the host
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
from train import step_loss

import idml_zoo
from idml_zoo.losses import create_criterion, mixup
from idml_zoo.training.cpu import keep_memory


def timed(steps: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_ > 1:  # two warm up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--precision", choices=("float32", "tf32", "bf16"), default="float32")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    if device.type == "cpu":
        keep_memory()
    torch.set_float32_matmul_precision("high" if args.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = args.precision != "float32"
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    labels = torch.randint(args.classes, (args.batch,), device=device)
    last = images.contiguous(memory_format=torch.channels_last)
    both = torch.cat([last, last]).contiguous(memory_format=torch.channels_last)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.precision == "bf16")

    def network(memory: torch.memory_format):  # type: ignore[no-untyped-def]
        model = idml_zoo.create_model("idml", backbone=args.backbone).to(device, memory_format=memory).train()
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()  # as the recipes do
        criterion = create_criterion("proxy_anchor", args.classes, 512, "introspective", proxy_uncertainty="zero")
        parameters = [*model.parameters(), *criterion.to(device).parameters()]
        return model, criterion, parameters, torch.optim.AdamW(parameters, fused=device.type == "cuda")

    def bare(batch: Tensor) -> Callable[[], None]:
        model, *_ = network(torch.channels_last)

        def step() -> None:
            model.zero_grad(set_to_none=True)
            with autocast():
                features = model.forward_features(batch)
            features.float().sum().backward()

        return step

    def ours(mixing: torch.Generator | None) -> Callable[[], None]:
        model, criterion, parameters, optimizer = network(torch.channels_last)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                loss, *_ = step_loss(model, criterion, last, labels, mixing)
            loss.backward()
            torch.nn.utils.clip_grad_value_(parameters, 10)
            optimizer.step()

        return step

    def plain() -> Callable[[], None]:
        model, criterion, parameters, optimizer = network(torch.contiguous_format)
        generator = torch.Generator().manual_seed(0)
        log = []

        def step() -> None:
            optimizer.zero_grad()
            clean = model(images)
            mixed = mixup(images, generator)
            blended = model(mixed.images)
            binary = F.one_hot(labels.cpu(), args.classes)  # on the host, as there
            loss = criterion(clean, binary.argmax(1).to(device))
            loss = loss + criterion(blended, labels, labels[mixed.permutation], mixed.weight)
            log.append(loss.item())
            loss.backward()
            torch.nn.utils.clip_grad_value_(parameters, 10)
            optimizer.step()

        return step

    steps = {
        "bare": bare(last),
        "ours, no mixup": ours(None),
        "bare, twice the images": bare(both),
        "ours, mixup": ours(torch.Generator().manual_seed(0)),
        "plain, mixup": plain(),
    }
    found = timed(steps, args.rounds, device)
    report = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "setting": f"{args.backbone}, {args.size} px, batch {args.batch}, {args.precision}, torch {torch.__version__}",
        "seconds": {k: round(v, 5) for k, v in found.items()},
        "images/s": {k: round(args.batch * (1 + ("twice" in k)) / v, 1) for k, v in found.items()},
        "ours / bare, no mixup": round(found["ours, no mixup"] / found["bare"], 3),
        "ours / bare, mixup": round(found["ours, mixup"] / found["bare, twice the images"], 3),
        "plain / ours, mixup": round(found["plain, mixup"] / found["ours, mixup"], 3),
    }
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
