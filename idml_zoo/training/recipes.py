"""Where the recipes lie: beside the package in a clone, inside it in a wheel; and the loop that they are given to."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).parents[1]


@functools.cache
def recipes_folder() -> Path:
    """The folder of ``train.py`` and the YAML recipes.

    Raises:
        FileNotFoundError: neither a clone nor a whole wheel.
    """
    for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes"):
        if (folder / "train.py").is_file():
            return folder
    raise FileNotFoundError(f"no recipes/train.py in or beside {_PACKAGE}; install idml-zoo again, or work in a clone")


def quickstart() -> Path:
    """The recipe that runs where none is named."""
    return recipes_folder() / "glyphs_quickstart.yaml"


def training_loop() -> ModuleType:
    """The module ``recipes/train.py``, imported once under the name ``train``."""
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
