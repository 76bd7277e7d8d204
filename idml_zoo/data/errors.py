"""Errors of data: missing, broken, or not what it claims to be."""

from __future__ import annotations


class DataError(ValueError):
    """Data that is missing, broken or not what it claims to be; the message says what, expected, and remedy."""


class MissingDataError(DataError):
    """Data that is not there at all."""


class BrokenImageError(DataError):
    """An image that cannot be read or decoded.

    Args:
        name: of the image. Where ``reason`` is None it is the whole message: torch's DataLoader raises a worker's
            exception again in this form.
        reason: why it cannot be read.
    """

    def __init__(self, name: str, reason: str | None = None) -> None:
        whole = f"image {name} cannot be read ({reason}); repair it, or remove it and its label"
        super().__init__(name if reason is None else whole)
        self.name, self.reason = name, reason or ""

    def __reduce__(self) -> tuple[type[BrokenImageError], tuple[str, str | None]]:
        return BrokenImageError, (self.name, self.reason or None)
