"""Reads a configuration from a YAML file and ``key=value`` words. Unknown keys and wrong types are errors."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from idml_zoo.training.config.checks import ConfigError
from idml_zoo.training.config.config import DEFAULTS, TYPES, Config, check_keys
from idml_zoo.training.recipes import find_recipe, recipe_paths
from idml_zoo.variants import variants


def load_config(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    notify: Callable[[str], None] = lambda text: None,
) -> Config:
    """Reads a configuration.

    Args:
        path: a YAML file with keys of :class:`Config`, or the short name of a recipe ("cub_resnet50").
        overrides: ``key=value`` words, which go before the file.
        notify: is called with a sentence for each value that was adapted to the others.

    Raises:
        ConfigError: no such file, not a mapping, an unknown key, a wrong type or an impossible value.
    """
    content = _read(path)
    words = check_values(_parse(overrides), "command line")
    values = content | words
    name = values.get("variant", DEFAULTS["variant"])
    if name in variants:  # an unknown one is refused where it is used, with the nearest names
        values = variants[name].settings | values
    return Config.from_flat(_fit_warmup(values, content, words, notify))


def check_values(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Returns the values of one file or command line, converted to the types of their keys.

    Raises:
        ConfigError: an unknown key or a wrong type; ``source`` says where it stands.
    """
    check_keys(values, source)
    return {key: _convert(key, value) for key, value in values.items()}


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the values of a file."""
    try:
        content = yaml.safe_load(find_recipe(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        names = ", ".join(p.name for p in recipe_paths())
        raise ConfigError(f"cannot read configuration {path} ({error}); recipes at hand: {names}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold key: value lines, got {type(content).__name__}")
    return check_values(content, str(path))


def _parse(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the values of ``key=value`` words, as YAML reads them."""
    values: dict[str, Any] = {}
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"expected key=value, got {word!r}")
        if TYPES.get(key) is str:  # as it stands: revision=0123456 is no number, nor name={variant}-mine a mapping
            values[key] = text
            continue
        try:
            values[key] = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"{word}: the value is not YAML ({error})") from error
    return values


def _fit_warmup(
    values: dict[str, Any], content: dict[str, Any], words: dict[str, Any], notify: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the values with a warm-up of at most half of the epochs, unless somebody chose it for these epochs.

    The command line chooses it, or a file that holds both keys and whose epochs the command line leaves as they are:
    the recipe in a result file must train as it did.
    """
    chosen = "warmup_epochs" in words or ("epochs" not in words and {"epochs", "warmup_epochs"} <= content.keys())
    epochs, warmup = (values.get(key, DEFAULTS[key]) for key in ("epochs", "warmup_epochs"))
    if chosen or epochs < 1 or warmup <= epochs // 2:
        return values
    notify(f"warmup_epochs is {epochs // 2} instead of {warmup}: half of epochs={epochs}")
    return values | {"warmup_epochs": epochs // 2}


def _convert(key: str, value: Any) -> Any:
    """``value`` as the key's type: integers become floats, "6e-4" (a string to YAML 1.1) a float, and nothing else."""
    kind = TYPES[key]
    options = typing.get_args(kind) if typing.get_origin(kind) not in (list, dict) else (kind,)
    options = options or (kind,)
    if value is None and type(None) in options:
        return None
    for option in options:
        plain = typing.get_origin(option) or option
        if plain is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                continue
        if plain is list and isinstance(value, (list, tuple)):
            try:
                return [float(v) for v in value]
            except (TypeError, ValueError):
                continue
        if type(value) is plain:
            return value
        if plain is str and value is False:  # what YAML 1.1 makes of an unquoted no
            return "no"
        if plain is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
    names = " or ".join(getattr(typing.get_origin(o) or o, "__name__", str(o)) for o in options)
    raise ConfigError(f"{key} must be {names.replace('NoneType', 'null')}, got {value!r}")
