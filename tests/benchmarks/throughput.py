"""How many images a second a recipe trains on, and how near that is to the network alone. Run by hand; made for a GPU.

    python tests/benchmarks/throughput.py [--backbones resnet50 …] [--modes float32 tf32 bf16 compiled] [--steps 120]
    python tests/benchmarks/throughput.py --backbones test_resnet --size 64 --modes float32 bf16 --images 480 --steps 20

For each backbone and mode recipes/train.py trains for some steps on JPEG photographs of 500×375 (crops of the two that
scikit-learn ships), as anybody would start it: loader processes, augmentation, loss, clipping, AdamW, log. The first
half of the log is left out (decoding into the cache, compiling). The ceiling is the network's forward and backward pass
on random images that lie in the device's memory, in the same precision: no loader, loss or optimiser. Modes: float32
without and with TF32, bfloat16, and that compiled by torch.compile.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from loader import photographs
from rich.console import Console
from rich.table import Table

import idml_zoo
from idml_zoo.variants import variants

ROOT = Path(__file__).parents[2]
# by the environment, for both know it: cuBLAS and cuDNN of this process and of the recipe's
MODES: dict[str, tuple[dict[str, str], list[str]]] = {
    "float32": ({"NVIDIA_TF32_OVERRIDE": "0"}, []),
    "tf32": ({"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}, []),
    "bf16": ({}, ["mixed_precision=bf16"]),
    "compiled": ({}, ["mixed_precision=bf16", "compile=inductor"]),
}


def ceiling(backbone: str, mode: str, size: int, batch: int, seconds: float = 10.0) -> float:
    """Images/s through the network alone, forward and back: the best of five parts of the time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = idml_zoo.create_model("idml", backbone=backbone).to(device, memory_format=torch.channels_last).train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()  # as the recipes do
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    network = torch.compile(model) if mode == "compiled" else model

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=mode in ("bf16", "compiled")):
            embedding = network(images)
        (embedding.semantic.float().sum() + embedding.uncertainty.float().sum()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    rates = []
    for _ in range(5):
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / 5:
            step()
            done += batch
        rates.append(done / (time.perf_counter() - start))
    return max(rates)


def recipe(folder: Path, name: str, words: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Images/s of a run of the recipe, and the part of the time that it waited for the loader; medians of the log."""
    command = [sys.executable, str(ROOT / "recipes" / "train.py"), f"name={name}", "log_every=5", "resume=no", *words]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    with (folder / "runs" / "photographs" / name / "seed0" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    late = rows[len(rows) // 2 :]
    return tuple(statistics.median(float(r[k]) for r in late) for k in ("images_per_second", "waiting"))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--backbones", nargs="+", default=["resnet50", "vit_small_patch16_224", "tf_efficientnet_lite0"]
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--variant", choices=variants, default="idml_no_mixup", help="mixup doubles the images of a step"
    )
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=120)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--images", type=int, default=2400, help="to train on; as many to measure")
    parser.add_argument("--workers", type=int, help="loader processes (default: the recipe's)")
    parser.add_argument("--out", type=Path, help="write what was measured here, after every line")
    parser.add_argument("--ceiling", help=argparse.SUPPRESS)  # one mode, in a process of its own
    args = parser.parse_args()
    if args.ceiling:
        print(ceiling(args.backbones[0], args.ceiling, args.size, args.batch))
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {os.cpu_count()} cores"
    setting = f"{device}, torch {torch.__version__}, {args.size} px, batch {args.batch}, {args.variant}"
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder / "photos", args.images)
        words = [f"{k}={v}" for k, v in {"benchmark": "photographs", "source": folder / "photos"}.items()]
        words += [f"variant={args.variant}", f"image_size={args.size}", f"batch_size={args.batch}", "warmup_epochs=0"]
        words += [f"max_steps={args.steps}", f"epochs={args.steps}", "backbone_weights=none"]
        words += [f"output={folder / 'runs'}", f"leaderboard={folder / 'leaderboard'}"]
        words += [f"workers={args.workers}"] if args.workers is not None else []
        for backbone in args.backbones:
            for mode in args.modes:
                environment, more = MODES[mode]
                own = [sys.executable, __file__, "--ceiling", mode, "--backbones", backbone]
                own += ["--size", str(args.size), "--batch", str(args.batch)]
                alone = float(subprocess.check_output(own, env=os.environ | environment, text=True).split()[-1])
                row = f"{backbone}-{mode}"
                rate, waiting = recipe(folder, row, [*words, f"backbone={backbone}", *more], environment)
                lines.append({"backbone": backbone, "mode": mode, "recipe": rate, "ceiling": alone, "waiting": waiting})
                print(json.dumps(lines[-1]), flush=True)
                if args.out:
                    args.out.write_text(json.dumps({"setting": setting, "images/s": lines}, indent=2))
    table = Table("backbone", "mode", "images/s", "ceiling", "of it", "waiting", title=setting)
    for line in lines:
        share = f"{line['recipe'] / line['ceiling']:.0%}"
        table.add_row(
            *(str(line[k]) for k in ("backbone", "mode")),
            f"{line['recipe']:,.0f}",
            f"{line['ceiling']:,.0f}",
            share,
            f"{line['waiting']:.0%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
