"""For mkdocs: puts the leaderboard beside the built pages, which link to its files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any


def on_post_build(config: dict[str, Any]) -> None:
    """Copies the tables, the page and the result files; not the values of every query, nor the trials."""
    source = Path(config["config_file_path"]).parent / "leaderboard"
    left_out = shutil.ignore_patterns("*.npz", "validation")
    shutil.copytree(source, Path(config["site_dir"]) / "leaderboard", ignore=left_out, dirs_exist_ok=True)
