"""What a configuration keeps in ``meta`` and this package gives a meaning: the temperature and the reliability.

Both lie in ``meta`` and not beside it, so that the format keeps its number: every version that reads format 2 loads
such a file, and one that does not know a key keeps it as a value that was saved with the weights.
"""

from __future__ import annotations

import warnings
from typing import Any

from idml_zoo.reliability.errors import ReliabilityError
from idml_zoo.reliability.reliability import VERSION, Reliability

TEMPERATURE, RELIABILITY = "tau", "reliability"
_MOST_TAU = 1e30  # far beyond any temperature; a whole number of a file may be too large for a float


def joined(meta: dict[str, Any], tau: float | None, reliability: Reliability | None) -> dict[str, Any]:
    """Returns the ``meta`` of a file, as JSON values."""
    named: dict[str, Any] = {} if tau is None else {TEMPERATURE: tau}
    if reliability is not None:
        named[RELIABILITY] = reliability.to_dict()
    return {**meta, **named}


def parted(meta: dict[str, Any], name: str) -> tuple[dict[str, Any], float | None, Reliability | None]:
    """Returns (the rest, τ, reliability) of the ``meta`` of a file called ``name``; None for what it does not have.

    A temperature that is none is ignored, as version 0.1 did. A reliability of another version is ignored with a
    warning: its numbers belong to features that this package does not compute, but the weights are what they were.

    Raises:
        ReliabilityError: a reliability that cannot be one; the message says what to do.
    """
    rest = {k: v for k, v in meta.items() if k not in (TEMPERATURE, RELIABILITY)}
    return rest, _temperature(meta.get(TEMPERATURE)), _reliability(meta.get(RELIABILITY), name)


def _temperature(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 < value < _MOST_TAU else None


def _reliability(value: Any, name: str) -> Reliability | None:
    if value is None:
        return None
    version = value.get("version") if isinstance(value, dict) else None
    if type(version) is int and version > 0 and version != VERSION:
        warnings.warn(
            f"{name}: its reliability is of version {str(version)[:20]}, and this package computes the features of "
            f"version {VERSION}; the weights are loaded without it. Fit it again: idml-zoo calibrate",
            stacklevel=2,
        )
        return None
    try:
        return Reliability.from_dict(value)
    except ReliabilityError as error:
        raise ReliabilityError(
            f"'meta' has a reliability that cannot be used ({error}); delete the key {RELIABILITY} there, or fit it "
            "again with idml-zoo calibrate"
        ) from error
