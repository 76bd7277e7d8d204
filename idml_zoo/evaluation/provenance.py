"""Where a number comes from: code, packages, device, command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from functools import lru_cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import torch

from idml_zoo.results import TrainingRecord
from idml_zoo.version import __version__


def _checkout() -> Path | None:
    """Returns the folder of the clone that holds this package; None where it is installed."""
    folder = Path(str(resources.files("idml_zoo"))).parent
    is_clone = (folder / ".git").exists() and (folder / "pyproject.toml").is_file()
    return folder if is_clone else None


@lru_cache(maxsize=1)
def code_state() -> tuple[str | None, bool | None]:
    """Returns the commit of the checkout that this package runs from, and whether it is dirty.

    (None, None) where the package is installed without a checkout.
    Remembered from the first call, so that a long run that asks at its start records the code it runs.
    """
    root = _checkout()
    if root is None:
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
    """Returns the versions of Python, of this package and of those that change numbers."""
    installed = {"python": platform.python_version(), "idml_zoo": __version__}
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
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


@lru_cache(maxsize=1)
def processor() -> str:
    """Returns the CPU's name or architecture, and the instructions that torch uses of it: both change last bits."""
    name = None
    try:
        if sys.platform == "darwin":
            ask = ["sysctl", "-n", "machdep.cpu.brand_string"]
            name = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
        else:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    except (OSError, subprocess.SubprocessError):
        pass
    return f"{name or platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def device_name(device: torch.device) -> str:
    """Returns the GPU's name, or "cpu (PROCESSOR, INSTRUCTIONS)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({processor()})"


def command() -> str:
    """Returns the command line of this process, with the program's path relative to the working directory."""
    program = sys.argv[0]
    if Path(program).name == "__main__.py":  # python -m idml_zoo
        return shlex.join(["idml-zoo", *sys.argv[1:]])
    try:
        program = str(Path(program).resolve().relative_to(Path.cwd()))
    except ValueError:
        program = Path(program).name
    return shlex.join([program, *sys.argv[1:]])


def training_record(model: Any) -> TrainingRecord:
    """Returns what a model says itself of where its weights come from; "unknown" of a model that says nothing."""
    if origin := getattr(model, "origin", None):
        record: TrainingRecord = origin.training_record(model)
        return record
    source = getattr(model, "backbone_source", "unknown")
    return TrainingRecord(variant="unknown" if source == "unknown" else "none", pretrained=source)
