"""Checks a recipe that came out of a result file, which a stranger may have written.

It may train a network that timm knows, on a registered benchmark, in the folders that the user has named. It may not
name another place: no path, no address, no repository of the Hub.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

import yaml

from idml_zoo.models.files import check_model, is_plain
from idml_zoo.models.limits import MOST_SIDE, check_side
from idml_zoo.results import ResultError
from idml_zoo.training.config import DEFAULTS, ConfigError, check_values
from idml_zoo.variants import variants

_MOST_TEXT = 1 << 13  # characters; a whole recipe has 2,500
_MOST_BRACKETS = 64  # opening ones; a recipe has 10, and PyYAML takes 40 s for 8,000 of them in each other
_MOST_WORKERS, _MOST_THREADS = 64, 1024  # of a large server; each worker is a process, each thread a stack
_MOST_EXPRESSION = 100  # characters of a regular expression
_TRUST = "Read the recipe; where you trust who wrote it, repeat it with --trust"
_COMPILERS = ("no", "inductor", "eager", "aot_eager")  # of torch itself; other names load other packages


def read_recipe(text: str) -> dict[str, Any]:
    """Returns the keys and values of a recipe.

    Raises:
        ResultError: no YAML mapping of plain values, or with anchors, of which a few lines can expand without end.
    """
    if len(text) > _MOST_TEXT:
        raise ResultError(
            f"its recipe has {len(text):,} characters; a recipe of `idml-zoo train` has at most {_MOST_TEXT:,}"
        )
    if text.count("[") + text.count("{") > _MOST_BRACKETS:
        raise ResultError(f"its recipe has more than {_MOST_BRACKETS} brackets; a recipe of `idml-zoo train` has fewer")
    try:
        if any(isinstance(t, (yaml.AnchorToken, yaml.AliasToken)) for t in yaml.scan(text, yaml.SafeLoader)):
            raise ResultError("its recipe has YAML anchors; a recipe of `idml-zoo train` has none")
        recipe = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ResultError(f"its recipe is no YAML ({str(error)[:200]})") from error
    if not isinstance(recipe, dict):
        raise ResultError(f"its recipe must hold key: value lines, got {type(recipe).__name__}")
    return recipe


def check_recipe(recipe: dict[str, Any], own_root: bool = False) -> None:
    """Raises where a stranger's recipe names what it may not, before anything is read, built or downloaded.

    Args:
        recipe: from :func:`read_recipe`.
        own_root: its data_root is the user's, and may be any folder.

    Raises:
        ResultError: names the key, what is allowed there and the way out.
    """
    for key in ("source", "stream"):
        if recipe.get(key):
            raise _refusal(key, recipe[key], "a registered benchmark, with source and stream empty")
    root = "data" if own_root else recipe.get("data_root", "data")
    if not isinstance(root, str) or PurePath(root).is_absolute() or ".." in PurePath(root).parts:
        raise _refusal("data_root", root, "a folder below this one", "Name yours with --root FOLDER")
    try:
        values = check_values(recipe, "its recipe")
    except ConfigError as error:
        raise ResultError(str(error)[:500]) from error
    _check_network(DEFAULTS | values)
    if values.get("compile", "no") not in _COMPILERS:
        raise _refusal("compile", values["compile"], ", ".join(_COMPILERS))
    if not all(is_plain(v) for v in values.get("loss_options", {}).values()):
        raise _refusal("loss_options", values["loss_options"], "small plain values by name")
    for key in ("backbone_trains", "lora_targets"):
        if not _is_quick(values.get(key, "")):
            allowed = f"up to {_MOST_EXPRESSION} characters, 3 groups and 3 quantifiers, none of them of a group"
            raise _refusal(key, values[key], allowed)
    for key, most in (("workers", _MOST_WORKERS), ("threads", _MOST_THREADS), ("cache_side", MOST_SIDE)):
        if not 0 <= (values.get(key) or 0) <= most:
            raise _refusal(key, values[key], f"0 to {most}")


def _check_network(values: dict[str, Any]) -> None:
    """Applies the rules for the ``config.json`` of a stranger."""
    variant = variants[values["variant"]] if values["variant"] in variants else None
    try:
        check_model({**values, "head": variant.head if variant else "idml", "head_options": {}})
        check_side(values["image_size"] or 1, values["crop_fraction"] or 1.0)
    except ValueError as error:
        raise ResultError(f"its recipe may not ask for this: {error}. {_TRUST}") from None


def _is_quick(expression: str) -> bool:
    """Returns whether a regular expression takes no exponential time: nothing repeats a group."""
    plain = re.sub(r"\\.", "x", expression)
    return (
        len(expression) <= _MOST_EXPRESSION
        and plain.count("(") <= 3
        and len(re.findall(r"[*+?{]", plain.replace("(?:", "("))) <= 3
        and re.search(r"\)\s*[*+?{]", plain) is None
    )


def _refusal(key: str, value: Any, allowed: str, way_out: str = _TRUST) -> ResultError:
    return ResultError(f"its recipe may not have {key}: {str(value)[:80]!r}; allowed is {allowed}. {way_out}")
