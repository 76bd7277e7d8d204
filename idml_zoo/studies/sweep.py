"""A grid of runs: variants × seeds × whatever else, over the devices at hand; started again, it does what is missing.

    python recipes/sweep.py --config recipes/glyphs_test_resnet.yaml variant=idml,pa_mixup seed=0,1,2
    python recipes/sweep.py --config recipes/cub_resnet50.yaml variant=pa,idml lr=3e-4,6e-4 evaluate_on=validation
    python recipes/sweep.py --config … variant=idml seed=0,1,2 --dry-run

A key with several values, separated by commas, is a dimension of the grid (lists in brackets are one value). Rows get
the values of dimensions other than variant and seed in their names. A run is skipped where a result file has its
recipe, whatever its name; one that was killed goes on from its checkpoint. Each GPU gets one run at a time; without
one, --jobs runs share the cores. Output of each run goes to a file; the table so far is printed after each.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from idml_zoo.files import FileError
from idml_zoo.reports.leaderboard import build_leaderboard, summary
from idml_zoo.results import Result, ResultError, read_results
from idml_zoo.training.checkpoints import HARMLESS, STOPPED, Asked
from idml_zoo.training.config import QUICKSTART, Config, ConfigError, load_config
from idml_zoo.training.cpu import cores
from idml_zoo.training.recipes import recipes_folder
from idml_zoo.variants import variants

NAMED = ("variant", "seed")  # which have a place of their own in a result's path


def values(text: str) -> list[str]:
    """ "a,b" to ["a", "b"]; commas in brackets, braces and quotes do not count."""
    return re.findall(r"""(?:\[[^\]]*\]|\{[^}]*\}|'[^']*'|"[^"]*"|[^,])+""", text) or [""]


def grid(words: list[str]) -> Iterator[list[str]]:
    """The overrides of each run, in the order of the words, the last dimension fastest."""
    keys, choices = [], []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"expected key=value or key=value,value, got {word!r}")
        keys.append(key)
        choices.append(values(text))
    extra = [k for k, c in zip(keys, choices, strict=True) if len(c) > 1 and k not in NAMED]
    for chosen in itertools.product(*choices):
        run = dict(zip(keys, chosen, strict=True))
        name = run.get("name") or "{variant}-{backbone}-{image_size}px"
        suffix = "".join(f"-{k}{re.sub(r'[^A-Za-z0-9.+-]+', '_', run[k])}" for k in extra)
        yield [f"{k}={v}" for k, v in run.items() if k != "name"] + [f"name={name}{suffix}"]


def essence(config: dict[str, Any]) -> dict[str, Any]:
    """What a run is, without where it lies, what it is called and how it is done."""
    return {k: v for k, v in config.items() if k not in HARMLESS and k != "name"}


@functools.cache  # a study looks at the same files after every run
def _parsed(recipe: str) -> Any:
    return yaml.load(recipe, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def recipes_of(results: list[Result]) -> list[tuple[dict[str, Any], Result]]:
    """Each result that was trained, after what its run is."""
    recipes = [(_parsed(r.provenance.recipe), r) for r in results if r.provenance.recipe]
    # a key that is newer than the recipe had its default's meaning then
    return [(essence(dataclasses.asdict(Config()) | recipe), r) for recipe, r in recipes if isinstance(recipe, dict)]


def done(config: Config, known: list[tuple[dict[str, Any], Result]]) -> Result | None:
    """The result of a run with this recipe, of those that :func:`recipes_of` gave; None where there is none yet.

    One without the corruptions that are asked for is none, nor one whose introspective search is asked for and missing.
    """
    mine, corruptions = essence(dataclasses.asdict(config)), set(config.corruptions.split())
    same = [r for recipe, r in known if recipe == mine]
    introspective = {r.provenance.weights_sha256 for r in same if r.protocol.similarity == "introspective"}
    both = config.similarity == "both" and variants[config.variant].has_level
    for result in same:
        whole = not both or result.provenance.weights_sha256 in introspective
        if result.protocol.similarity == "cosine" and corruptions <= set(result.corruptions) and whole:
            return result
    return None


def devices(jobs: int) -> list[dict[str, str]]:
    """What each place that can run something adds to the environment."""
    import torch

    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if visible != [""] else [str(i) for i in range(torch.cuda.device_count())]
        return [{"CUDA_VISIBLE_DEVICES": name} for name in names]
    # busy waiting of one run's threads would take the other's cores
    share = {"OMP_NUM_THREADS": str(max(1, cores() // jobs)), "OMP_WAIT_POLICY": "PASSIVE"}
    return [{**share, "ACCELERATE_USE_CPU": "true"} for _ in range(jobs)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(QUICKSTART), help="YAML file with keys of recipes/config.py")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, without a GPU (default 1)")
    parser.add_argument(
        "--logs", type=Path, default=Path("runs/sweep"), help="output of the runs (default: runs/sweep)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    parser.add_argument("words", nargs="*", metavar="key=value[,value…]")
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f"--jobs must be 1 or more, got {args.jobs}")
    out = Console(soft_wrap=True, markup=False, highlight=False)
    try:
        runs = [(words, load_config(args.config, words)) for words in grid(args.words)]
        boards = {Path(config.leaderboard) for _, config in runs}
        results = {board: recipes_of(read_results(board / "results")) for board in boards}
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    waiting = []
    for words, config in runs:
        found = done(config, results[Path(config.leaderboard)])
        out.print(f"{'done' if found else 'to do':<6}{' '.join(words)}" + (f"  ({found.path('')})" if found else ""))
        if not found:
            waiting.append(Run(args.config, words, config))
    if args.dry_run or not waiting:
        return 0
    return work(lambda: waiting.pop(0) if waiting else None, args.jobs, args.logs, out)


@dataclass(frozen=True)
class Run:
    """One run of the recipe: the file, what is said over it, and what that comes to."""

    file: str
    words: list[str]
    config: Config


def work(ready: Callable[[], Run | None], jobs: int, logs: Path, out: Console) -> int:
    """Does runs, as many at once as there are places, until ``ready`` gives none and none is running.

    ``ready`` is asked again after each run that ends. Returns an exit status: 0, 1 where one failed, 143 where it was
    asked to stop.
    """
    logs.mkdir(parents=True, exist_ok=True)
    free, begun, failed = devices(jobs), 0, 0
    running: list[Any] = []
    with Asked() as asked:  # the runs are asked to stop too, and save where they are
        try:
            while not asked:
                while free and (run := ready()):
                    place = free.pop()
                    log = logs / (re.sub(r"[^A-Za-z0-9.+=-]+", "_", " ".join(run.words))[:150] + ".log")
                    command = [sys.executable, str(recipes_folder() / "train.py"), "--config", run.file]
                    command += run.words
                    if run.config.threads is None and "OMP_NUM_THREADS" in place:  # where 1 would be taken for no wish
                        command.append(f"threads={place['OMP_NUM_THREADS']}")
                    with log.open("ab") as file:
                        process = subprocess.Popen(command, env={**os.environ, **place}, stdout=file, stderr=file)
                    out.print(f"start {' '.join(run.words)}  ({log})")
                    running.append((process, place, run, log))
                    begun += 1
                if not running:
                    break
                while not asked and all(process.poll() is None for process, *_ in running):
                    time.sleep(0.2)
                for one in [r for r in running if r[0].poll() is not None]:
                    process, place, run, log = one
                    running.remove(one)
                    free.append(place)
                    if process.returncode:
                        failed += 1
                        out.print(f"FAILED {' '.join(run.words)}: exit status {process.returncode}, see {log}")
                    else:
                        show(out, run.config)
        finally:
            for process, *_ in running:
                process.terminate()
            for process, *_ in running:
                process.wait()
    if asked:
        print("stopped; the same command goes on", file=sys.stderr)
        return STOPPED
    if failed:
        print(f"{failed} of {begun} runs failed; the same command tries them again", file=sys.stderr)
    return int(failed > 0)


def show(out: Console, config: Config) -> None:
    """The table so far."""
    board = Path(config.leaderboard)
    try:
        rows = [r for r in read_results(board / "results") if r.benchmark == config.benchmark]
        out.print(summary(rows))
        build_leaderboard(board)
    except (
        ResultError,
        FileError,
    ) as error:  # a row of several protocol versions, or whose queries are not stored here
        print(f"no page: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
