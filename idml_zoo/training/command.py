"""The arguments of the training loop, and the processes that it runs in. No torch until one starts."""

from __future__ import annotations

import argparse
import logging
import os
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


def environment(**more: str) -> dict[str, str]:
    """Returns the variables that a process which runs the loop needs: it must import this package, installed or not."""
    if not in_clone():
        return more
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), **more}


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Runs the loop on several processes of this machine, one for each GPU, else on the CPU; returns the exit status.

    It is what `accelerate launch` does on GPUs; on a CPU that would start one process only.

    Raises:
        ValueError: there are GPUs, but not as many.
    """
    import torch
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    gpus = torch.cuda.device_count()
    if gpus and gpus < processes:
        raise ValueError(f"--processes {processes} needs as many GPUs, and this machine has {gpus}")
    quiet = {
        "OMP_NUM_THREADS": "1",  # else torch warns; the loop shares out the cores
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # else it advises against find_unused_parameters, which the warm-up needs
    }
    variables = environment(**{k: os.environ.get(k, v) for k, v in quiet.items()})
    variables |= {} if gpus else {"ACCELERATE_USE_CPU": "true"}
    words = ["--standalone", f"--nproc_per_node={processes}", str(recipes_folder() / "train.py"), *arguments]
    with patch_environment(**variables):
        logging.disable()  # the processes print the reason of a failure
        try:
            run(parse_args(words))
        except ChildFailedError as error:
            return max(1, *(int(failure.exitcode) for failure in error.failures.values()))
        except SignalException as error:  # the processes have saved where they are
            return 128 + int(error.sigval)
        finally:
            logging.disable(logging.NOTSET)
    return 0
