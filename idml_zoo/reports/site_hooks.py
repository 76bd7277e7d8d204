"""A hook of mkdocs: copies the leaderboard to the built site, whose pages link to its files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any


def on_post_build(config: dict[str, Any]) -> None:
    """Copies the tables, the page and the result files, but neither the values of every query nor the trials."""
    source = Path(config["config_file_path"]).parent / "leaderboard"
    ignored = shutil.ignore_patterns("*.npz", "validation")
    shutil.copytree(source, Path(config["site_dir"]) / "leaderboard", ignore=ignored, dirs_exist_ok=True)
