"""Trials that came to nothing: settings under which the network collapses have been tried, and count as tried.

A file for each, beside the results: <leaderboard>/lost/BENCHMARK/ROW/seedN.yaml. Without it the trial is run again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from idml_zoo.evaluation.provenance import code_state, command, device_name, versions
from idml_zoo.files import utc_now, write_file
from idml_zoo.training.config import Config, ConfigError


@dataclass(frozen=True)
class Lost:
    """What one file tells: the run's configuration, why it has no result, and where that is written."""

    recipe: dict[str, Any]
    reason: str
    path: Path


def record(config: Config, benchmark: str, row: str, reason: str, device: torch.device) -> Path:
    """Writes down that the run of ``config`` ended without a result; FileError where it cannot be written."""
    commit, dirty = code_state()
    told: dict[str, Any] = {
        "reason": reason,
        "command": command(),
        "commit": commit,
        "dirty": dirty,
        "versions": versions(),
    }
    told |= {"device": device_name(device), "threads": torch.get_num_threads()}
    told |= {"created": utc_now()}
    path = Path(config.leaderboard) / "lost" / benchmark / row / f"seed{config.seed}.yaml"
    write_file(path, yaml.safe_dump(told | {"recipe": dataclasses.asdict(config)}, sort_keys=False, allow_unicode=True))
    return path


def read_lost(leaderboard: Path) -> list[Lost]:
    """All that are recorded below a leaderboard; ConfigError where a file is not one of :func:`record`'s."""
    found = []
    for path in sorted((leaderboard / "lost").rglob("*.yaml")):
        try:
            told = yaml.safe_load(path.read_text(encoding="utf-8"))
            found.append(Lost({**told["recipe"]}, str(told["reason"]), path))
        except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} does not tell of a lost trial ({error}); delete it to try again") from error
    return found
