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


@lru_cache(maxsize=1)
def processor() -> str:
    """The CPU's name, else its architecture, and the instructions that torch uses of it: both change last bits."""
    found = None
    try:
        if sys.platform == "darwin":
            ask = ["sysctl", "-n", "machdep.cpu.brand_string"]
            found = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
        else:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    except (OSError, subprocess.SubprocessError):
        pass
    return f"{found or platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def device_name(device: torch.device) -> str:
    """The GPU's name, or "cpu (PROCESSOR, INSTRUCTIONS)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({processor()})"


def command() -> str:
    program = sys.argv[0]
    try:
        program = str(Path(program).resolve().relative_to(Path.cwd()))
    except ValueError:
        program = Path(program).name
    return shlex.join([program, *sys.argv[1:]])
