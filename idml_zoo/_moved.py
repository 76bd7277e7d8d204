"""Modules of version 0.1 under their old names: each import gives the module of today, with a deprecation warning.

One table instead of thirty files. It holds until version 0.4.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

MOVED = {
    "analysis": "evaluation.gradients",
    "bridge": "losses.bridge",
    "card": "reports.card",
    "cli_data": "cli.data",
    "cli_hub": "cli.hub",
    "cli_results": "cli.results",
    "cli_search": "cli.search",
    "compare": "reports.bootstrap",
    "data.archives": "data.preparation.archives",
    "data.cache": "data.loading.cache",
    "data.cars196": "data.sets.cars196",
    "data.catalogue": "data.sets.catalogue",
    "data.check": "data.preparation.check",
    "data.cub": "data.sets.cub",
    "data.download": "data.preparation.download",
    "data.glyphs": "data.sets.glyphs",
    "data.inshop": "data.sets.inshop",
    "data.lists": "data.sets.lists",
    "data.prepare": "data.preparation.prepare",
    "data.sampler": "data.loading.sampler",
    "data.sheet": "data.preparation.sheet",
    "data.sop": "data.sets.sop",
    "data.streaming": "data.loading.streaming",
    "evaluation.knn": "retrieval.knn",
    "evaluation.own": "evaluation.embedders",
    "evaluation.retrieval": "evaluation.retrieval_metrics",
    "evaluation.scan": "retrieval.scan",
    "evaluation.upgrade": "reports.upgrade",
    "export": "models.export",
    "gallery": "reports.gallery",
    "heads": "models.heads",
    "hub": "models.hub",
    "leaderboard": "reports.leaderboard",
    "leaderboard.page": "reports.leaderboard.page",
    "leaderboard.pictures": "reports.leaderboard.pictures",
    "leaderboard.rows": "reports.leaderboard.rows",
    "leaderboard.tables": "reports.leaderboard.tables",
    "model": "models.model",
    "package_weights": "models.imagenet_weights",
    "photos": "reports.photos",
    "pretrained": "models.pretrained",
    "probe": "models.probe",
    "weights": "models.files",
    "zoo": "models.zoo",
}


class _Alias(importlib.abc.Loader):
    """Puts the module of today into ``sys.modules`` under the old name."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = f"idml_zoo.{MOVED[old.removeprefix('idml_zoo.')]}"
        sys.modules[old] = importlib.import_module(new)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of :data:`MOVED`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        old = fullname.removeprefix("idml_zoo.")
        if old == fullname or old not in MOVED:
            return None
        warnings.warn(
            f"{fullname} is idml_zoo.{MOVED[old]} since version 0.2; the old name goes in 0.4",
            DeprecationWarning,
            stacklevel=2,
        )
        return importlib.util.spec_from_loader(fullname, _Alias())


def install() -> None:
    """Makes the old names importable, once."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())  # before those that would find a submodule of a moved package twice
