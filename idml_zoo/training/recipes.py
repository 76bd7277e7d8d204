"""Finds the recipes, which lie beside the package in a clone and inside it in a wheel, and the loop they are given to.

No torch here: their names are listed at once.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from idml_zoo.variants import variants

QUICKSTART = "glyphs_quickstart"  # the recipe that runs where none is named
_PACKAGE = Path(__file__).parents[1]


@functools.cache
def recipes_folder() -> Path:
    """Returns the folder of ``train.py``, the YAML recipes and ``studies/``.

    Raises:
        FileNotFoundError: neither a clone nor a whole wheel.
    """
    for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes"):
        if (folder / "train.py").is_file():
            return folder
    raise FileNotFoundError(f"no recipes/train.py in or beside {_PACKAGE}; install idml-zoo again, or work in a clone")


def in_clone() -> bool:
    """Returns whether the recipes lie beside the package."""
    return recipes_folder().parent == _PACKAGE.parent


def recipe_paths() -> list[Path]:
    """Returns the recipes, sorted by name."""
    return sorted(recipes_folder().glob("*.yaml"))


def find_recipe(name: str | os.PathLike[str], below: str = "") -> Path:
    """Returns the path of a recipe that is named by its path or by its short name.

    Args:
        name: "cub_resnet50", "cub_resnet50.yaml" or the path of a file, which goes first.
        below: "studies" for a study.
    """
    path = Path(name)
    if not path.is_file() and path.name == str(path):
        for candidate in (path.name, f"{path.name}.yaml"):
            if (recipe := recipes_folder() / below / candidate).is_file():
                return recipe
    return path


def list_recipes(program: str) -> Iterator[str]:
    """Yields the command of every recipe with every variant; ``program`` starts the loop."""
    for path in recipe_paths():
        recipe = path.stem if program.startswith("idml-zoo") else f"recipes/{path.name}"
        for name in variants:
            yield f"{program} --config {recipe} variant={name}"


def training_loop() -> ModuleType:
    """Returns the module ``recipes/train.py``, imported once under the name ``train``."""
    path = recipes_folder() / "train.py"
    loaded = sys.modules.get("train")
    if loaded is not None and Path(str(loaded.__file__)).resolve() == path.resolve():
        return loaded
    spec = importlib.util.spec_from_file_location("train", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module
    spec.loader.exec_module(module)
    return module
