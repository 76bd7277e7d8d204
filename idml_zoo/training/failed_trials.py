"""Failed trials: settings under which the network collapsed have been tried, and count as tried.

A file for each lies beside the results: <leaderboard>/lost/BENCHMARK/ROW/seedN.yaml. Without it the trial is run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from idml_zoo.evaluation.provenance import code_state, command, device_name, versions
from idml_zoo.files import utc_now, write_file
from idml_zoo.training.config import ConfigError
from idml_zoo.training.errors import TrainingError
from idml_zoo.training.run import Run
from idml_zoo.types import EmbeddingError

FOLDER = "lost"


@dataclass(frozen=True)
class FailedTrial:
    """The content of one file: the run's configuration, and why it has no result."""

    recipe: dict[str, Any]
    reason: str
    path: Path


@contextmanager
def recorded_failure(run: Run) -> Iterator[None]:
    """Records the run where what is inside ends without a useful network, if its setting was a trial."""
    try:
        yield
    except (TrainingError, EmbeddingError) as error:  # the latter of a model that is to be saved or validated
        if run.main and run.config.evaluation.evaluate_on == "validation":
            record_failed_trial(run, str(error).partition(";")[0])
        raise


def record_failed_trial(run: Run, reason: str) -> Path:
    """Writes down that a run ended without a result.

    Raises:
        FileError: the file cannot be written.
    """
    commit, dirty = code_state()
    content: dict[str, Any] = {
        "reason": reason,
        "command": command(),
        "commit": commit,
        "dirty": dirty,
        "versions": versions(),
        "device": device_name(run.accelerator.device),
        "threads": torch.get_num_threads(),
        "created": utc_now(),
        "recipe": run.config.flat(),
    }
    path = Path(run.config.leaderboard) / FOLDER / run.benchmark.name / run.name / f"seed{run.config.seed}.yaml"
    write_file(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return path


def read_failed_trials(leaderboard: Path) -> list[FailedTrial]:
    """Returns all that are recorded below a leaderboard.

    Raises:
        ConfigError: a file is not one of :func:`record_failed_trial`'s.
    """
    trials = []
    for path in sorted((leaderboard / FOLDER).rglob("*.yaml")):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            trials.append(FailedTrial({**content["recipe"]}, str(content["reason"]), path))
        except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} does not describe a failed trial ({error}); delete it to try again") from error
    return trials
