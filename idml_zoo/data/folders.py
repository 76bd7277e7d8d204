"""Folders and files that are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

PREPARED = "prepared"  # folder under the data root, with one folder for each prepared benchmark
MANIFEST = "benchmark.json"  # written last: a folder with it holds a whole copy


def cache_folder() -> Path:
    """Returns ``IDML_ZOO_CACHE``, else the user's cache folder (``XDG_CACHE_HOME``, ``~/.cache``) / idml_zoo."""
    chosen = os.environ.get("IDML_ZOO_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "idml_zoo"
