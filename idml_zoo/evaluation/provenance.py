"""Where a number comes from: code, packages, device, command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch

from idml_zoo.version import __version__


@lru_cache(maxsize=1)
def code_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout this package runs from and whether it is dirty; (None, None) where it is installed.

    Remembered from the first call, so that a long run that asks at its start records the code it runs.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return None, None
    try:
        run = [
            subprocess.run(["git", "-C", str(root), *a], capture_output=True, text=True, check=True, timeout=20).stdout
            for a in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "idml_zoo", "recipes", "pyproject.toml"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None, None
    return run[0].strip(), bool(run[1].strip())


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "idml_zoo": __version__}
    for name in (
        "torch",
        "torchvision",
        "timm",
        "accelerate",
        "scikit-learn",
        "numpy",
        "pillow",
        "faiss-gpu",
        "faiss-cpu",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def command() -> str:
    program = sys.argv[0]
    try:
        program = str(Path(program).resolve().relative_to(Path.cwd()))
    except ValueError:
        program = Path(program).name
    return shlex.join([program, *sys.argv[1:]])
