"""What the groups of a configuration check of their own keys."""

from __future__ import annotations

import re
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, what was expected and the nearest key."""


def require_choice(group: Any, **choices: tuple[str, ...]) -> None:
    """Raises where a key holds none of its choices."""
    for key, allowed in choices.items():
        if getattr(group, key) not in allowed:
            raise ConfigError(f"{key} must be one of {', '.join(allowed)}, got {getattr(group, key)!r}")


def require_positive(group: Any, *keys: str) -> None:
    """Raises where a number is zero or negative."""
    for key in keys:
        if getattr(group, key) <= 0:
            raise ConfigError(f"{key} must be positive, got {getattr(group, key)!r}")


def require_not_negative(group: Any, *keys: str) -> None:
    """Raises where a number is negative."""
    for key in keys:
        if getattr(group, key) < 0:
            raise ConfigError(f"{key} must be 0 or more, got {getattr(group, key)!r}")


def require_expression(group: Any, *keys: str) -> None:
    """Raises where a text is no regular expression."""
    for key in keys:
        try:
            re.compile(getattr(group, key))
        except re.error as error:
            raise ConfigError(f"{key} must be a regular expression, got {getattr(group, key)!r} ({error})") from error
