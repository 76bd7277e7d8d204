"""The arguments of the training loop, and the subprocesses that it runs in. No torch until a process starts."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idml_zoo.training.recipes import QUICKSTART, in_clone, list_recipes, recipes_folder


class _ListRecipes(argparse.Action):
    """Prints the command of every recipe with every variant, and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, program: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)
        self.program = program

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        sys.stdout.write("".join(f"{line}\n" for line in list_recipes(self.program)))
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser, program: str) -> None:
    """Adds what the loop and ``idml-zoo train`` have in common; ``program`` starts the commands that --list prints."""
    parser.add_argument(
        "--config",
        default=QUICKSTART,
        metavar="RECIPE",
        help=f"YAML file, or short name of a recipe: cub_resnet50 (default: {QUICKSTART})",
    )
    parser.add_argument(
        "--list",
        action=_ListRecipes,
        program=program,
        help="print the command of every recipe with every variant, and exit",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override any key of the recipe")


def parse(arguments: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """Returns ``config`` and ``overrides`` of the loop's command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser, "accelerate launch recipes/train.py")
    return parser.parse_args(arguments)


def loop_path() -> str:
    """Returns the path of the loop's file."""
    return str(recipes_folder() / "train.py")


def environment(**more: str) -> dict[str, str]:
    """Returns the environment of a process that runs the loop: it must import this package, installed or not."""
    if in_clone():
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        more = {"PYTHONPATH": os.pathsep.join(paths), **more}
    return {**os.environ, **more}


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Runs the loop on several processes of this machine, one for each GPU, else on the CPU; returns the exit status.

    Raises:
        ValueError: there are GPUs, but not as many.
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus and gpus < processes:
        raise ValueError(
            f"--processes {processes}: this machine has {gpus} GPU{'s' * (gpus > 1)}, one for each process"
        )
    if gpus:
        # every flag that accelerate would otherwise warn about
        words = ["accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}", "--num_machines=1"]
        words += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
        variables = environment()
    else:  # accelerate would start one process only
        words = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        variables = environment(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"))
    process = subprocess.Popen([sys.executable, "-m", *words, loop_path(), *arguments], env=variables)
    # Ctrl-C reaches the processes too: they save where they are, and this one waits for them
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
