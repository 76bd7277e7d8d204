"""A grid of runs: variants × seeds × any other key, over the devices at hand. Started again, it does what is missing.

A key with several values, separated by commas, is a dimension of the grid; a list in brackets is one value. Rows get
the values of dimensions other than variant and seed in their names. A run is skipped where a result file has its
recipe, whatever its name. One that was killed goes on from its checkpoint. Each GPU gets one run at a time; without a
GPU, several jobs share the cores. The output of each run goes to a file, and the table so far is printed after it.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from idml_zoo.files import FileError
from idml_zoo.reports.leaderboard import build_leaderboard, summary
from idml_zoo.results import Result, ResultError, read_results
from idml_zoo.training.checkpoints import HARMLESS, StopRequest
from idml_zoo.training.command import environment
from idml_zoo.training.config import DEFAULTS, Config, ConfigError, load_config
from idml_zoo.training.console import warn
from idml_zoo.training.cpu import cores
from idml_zoo.training.errors import STOPPED
from idml_zoo.training.recipes import recipes_folder
from idml_zoo.variants import variants

Recipes = list[tuple[dict[str, Any], Result]]

NAMED = ("variant", "seed")  # the keys that have a place of their own in a result's path


@dataclass(frozen=True)
class PlannedRun:
    """One run of the loop: a recipe's file, the words that override it, and the configuration of both."""

    file: str
    words: list[str]
    config: Config


def plan(recipe: str, words: Sequence[str]) -> list[tuple[PlannedRun, Result | None]]:
    """Returns every run of a grid, with its result where there is one.

    Raises:
        ConfigError: a run that cannot be.
        ResultError: a result file that cannot be read.
    """
    runs = [PlannedRun(recipe, overrides, load_config(recipe, overrides)) for overrides in grid(words)]
    boards = {Path(run.config.leaderboard) for run in runs}
    recipes = {board: recipes_of(read_results(board / "results")) for board in boards}
    return [(run, find_result(run.config, recipes[Path(run.config.leaderboard)])) for run in runs]


def values(text: str) -> list[str]:
    """Splits "a,b" into ["a", "b"]; commas in brackets, braces and quotes do not count."""
    return re.findall(r"""(?:\[[^\]]*\]|\{[^}]*\}|'[^']*'|"[^"]*"|[^,])+""", text) or [""]


def grid(words: Sequence[str]) -> Iterator[list[str]]:
    """Yields the overrides of each run, in the order of the words, the last dimension fastest."""
    keys, choices = [], []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"expected key=value or key=value,value, got {word!r}")
        keys.append(key)
        choices.append(values(text))
    dimensions = [k for k, c in zip(keys, choices, strict=True) if len(c) > 1 and k not in NAMED]
    for combination in itertools.product(*choices):
        run = dict(zip(keys, combination, strict=True))
        name = run.get("name") or "{variant}-{backbone}-{image_size}px"
        suffix = "".join(f"-{k}{re.sub(r'[^A-Za-z0-9.+-]+', '_', run[k])}" for k in dimensions)
        yield [f"{k}={v}" for k, v in run.items() if k != "name"] + [f"name={name}{suffix}"]


def identity(recipe: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys that make a run what it is: not its name, where its files lie, or how it is computed."""
    return {k: v for k, v in (DEFAULTS | recipe).items() if k not in HARMLESS and k != "name"}


@functools.cache  # a study looks at the same files after every run
def _parsed(recipe: str) -> Any:
    return yaml.load(recipe, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def recipes_of(results: list[Result]) -> Recipes:
    """Returns each result that was trained, after the identity of its run.

    A key that is newer than a recipe had its default's meaning then.
    """
    recipes = [(_parsed(r.provenance.recipe), r) for r in results if r.provenance.recipe]
    return [(identity(recipe), r) for recipe, r in recipes if isinstance(recipe, dict)]


def find_result(config: Config, recipes: Recipes) -> Result | None:
    """Returns the result of a run with this recipe, or None where there is none yet.

    A result counts only with the corruptions and the introspective search that the configuration names.

    Args:
        config: of the run.
        recipes: from :func:`recipes_of`.
    """
    recipe, corruptions = identity(config.flat()), set(config.evaluation.corruptions.split())
    same = [r for other, r in recipes if other == recipe]
    introspective = {r.provenance.weights_sha256 for r in same if r.protocol.similarity == "introspective"}
    both = config.evaluation.similarity == "both" and variants[config.variant].has_level
    for result in same:
        complete = not both or result.provenance.weights_sha256 in introspective
        if result.protocol.similarity == "cosine" and corruptions <= set(result.corruptions) and complete:
            return result
    return None


def devices(jobs: int) -> list[dict[str, str]]:
    """Returns the environment variables of each device, or share of the cores, that can run one job."""
    import torch

    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if visible != [""] else [str(i) for i in range(torch.cuda.device_count())]
        return [{"CUDA_VISIBLE_DEVICES": name} for name in names]
    # busy waiting of one run's threads would take the other's cores
    share = {"OMP_NUM_THREADS": str(max(1, cores() // jobs)), "OMP_WAIT_POLICY": "PASSIVE"}
    return [{**share, "ACCELERATE_USE_CPU": "true"} for _ in range(jobs)]


@dataclass(frozen=True)
class _Job:
    """A process that trains, the device it has, its run, and the file of its output."""

    process: subprocess.Popen[bytes]
    device: dict[str, str]
    run: PlannedRun
    log: Path


def _start(run: PlannedRun, device: dict[str, str], logs: Path) -> _Job:
    """Starts a run on a device."""
    log = logs / (re.sub(r"[^A-Za-z0-9.+=-]+", "_", " ".join(run.words))[:150] + ".log")
    command = [sys.executable, str(recipes_folder() / "train.py"), "--config", run.file, *run.words]
    if run.config.hardware.threads is None and "OMP_NUM_THREADS" in device:  # where 1 is taken for accelerate's default
        command.append(f"threads={device['OMP_NUM_THREADS']}")
    with log.open("ab") as file:
        process = subprocess.Popen(command, env={**os.environ, **environment(**device)}, stdout=file, stderr=file)
    return _Job(process, device, run, log)


def run_all(next_run: Callable[[], PlannedRun | None], jobs: int, logs: Path, out: Console) -> int:
    """Trains until there is no further run, as many at once as there are devices.

    Args:
        next_run: is called after each run that ends, and while a device is free; None for no run now.
        jobs: how many share the cores, where there is no GPU.
        logs: folder for the output of the runs.
        out: progress is printed here.

    Returns:
        An exit status: 0, 1 where a run failed, 143 where it was asked to stop.
    """
    logs.mkdir(parents=True, exist_ok=True)
    free, started, failed = devices(jobs), 0, 0
    running: list[_Job] = []
    with StopRequest() as stop:  # the runs are asked to stop too, and save where they are
        try:
            while not stop:
                while free and (run := next_run()):
                    running.append(_start(run, free.pop(), logs))
                    out.print(f"start {' '.join(run.words)}  ({running[-1].log})")
                    started += 1
                if not running:
                    break
                while not stop and all(job.process.poll() is None for job in running):
                    time.sleep(0.2)
                for job in [j for j in running if j.process.poll() is not None]:
                    running.remove(job)
                    free.append(job.device)
                    if job.process.returncode:
                        failed += 1
                        status = f"exit status {job.process.returncode}, see {job.log}"
                        out.print(f"FAILED {' '.join(job.run.words)}: {status}")
                    else:
                        show(out, job.run.config)
        finally:
            for job in running:
                job.process.terminate()
            for job in running:
                job.process.wait()
    if stop:
        warn("stopped; the same command goes on")
        return STOPPED
    if failed:
        warn(f"{failed} of {started} runs failed; the same command tries them again")
    return int(failed > 0)


def show(out: Console, config: Config) -> None:
    """Prints the table so far of the benchmark and leaderboard of a run."""
    board = Path(config.leaderboard)
    try:
        rows = [r for r in read_results(board / "results") if r.benchmark == config.benchmark]
        out.print(summary(rows))
        build_leaderboard(board)
    except (ResultError, FileError) as error:  # a row of several protocol versions, or whose queries are not stored
        warn(f"no page: {error}")
