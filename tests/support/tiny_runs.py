"""Runs of the recipe on a folder of tiny pictures, in this process and in several."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import ROOT, make_folder

TINY = [
    "backbone=test_resnet",
    "backbone_weights=none",
    "image_size=32",
    "embedding_dim=16",
    "batch_size=8",
    "epochs=2",
    "lr=1e-3",
]
TINY += ["log_every=1", "freeze_batchnorm=false", "workers=0", "benchmark=mine"]


def tiny(folder, *more: str) -> list[str]:
    if not (folder / "photos").exists():
        make_folder(folder / "photos")
    where = [f"source={folder / 'photos'}", f"output={folder / 'runs'}", f"leaderboard={folder / 'board'}"]
    return ["--config", str(ROOT / "recipes" / "cub_resnet50.yaml"), *TINY, "warmup_epochs=1", *where, *more]


def run_with_processes(count: int, arguments: list[str], **environment: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(count),
        *arguments,
    ]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)
