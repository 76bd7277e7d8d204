"""One small registry for everything that has a name: heads, losses, benchmarks, models.

Nothing here imports torch, so names can be listed by tools that never build a network.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class UnknownNameError(KeyError, ValueError):
    """A name that is not registered. The message names the nearest ones and how to list all."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """Returns up to ``count`` candidates that look most like ``name``, best first."""
    return difflib.get_close_matches(name, list(candidates), n=count, cutoff=0.5)


def unknown_name(kind: str, name: str, candidates: Iterable[str], how_to_list: str = "") -> UnknownNameError:
    """Returns the error for an unknown ``name`` of a ``kind``: it names the nearest candidates and how to list all."""
    names = sorted(candidates)
    close = nearest(name, names)
    if close:
        hint = f"did you mean {' or '.join(repr(c) for c in close)}?"
    elif len(names) <= 12:
        hint = f"known: {', '.join(names) or 'none'}"
    else:
        hint = f"{len(names)} names are known"
    return UnknownNameError(f"unknown {kind} {name!r}; {hint}" + (f" ({how_to_list})" if how_to_list else ""))


def match(names: Iterable[str], pattern: str | Iterable[str] = "*", exclude: str | Iterable[str] = ()) -> list[str]:
    """Returns the names that match a shell pattern of ``pattern`` and none of ``exclude``, sorted.

    Both may be one pattern or several: a plain string is one pattern, never a list of characters; "" matches all names.
    """
    wanted = [pattern or "*"] if isinstance(pattern, str) else list(pattern)
    refused = [exclude] if isinstance(exclude, str) else list(exclude)

    def fits(name: str, patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, p) for p in patterns)

    return sorted(n for n in names if fits(n, wanted) and not fits(n, refused))


class Registry(Generic[T]):
    """Entries of one ``kind`` by name.

    Args:
        kind: what one entry is, for error messages ("head", "loss", ...).
        modules: modules whose import registers the built-in entries; imported at the first look-up, so that
            making the registry costs nothing.
    """

    def __init__(self, kind: str, modules: Iterable[str] = ()) -> None:
        self.kind = kind
        self._modules = list(modules)
        self._entries: dict[str, T] = {}

    def _populate(self) -> None:
        while self._modules:
            importlib.import_module(self._modules[-1])
            self._modules.pop()

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator, ``@heads.register("idml")``; it raises ValueError where the name is taken."""

        def add(entry: T) -> T:
            self.add(name, entry)
            return entry

        return add

    def add(self, name: str, entry: T) -> None:
        """Registers ``entry`` under ``name``; raises ValueError where the name is taken."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already; choose another name")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        self._populate()
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._populate()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._populate()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._populate()
        return len(self._entries)

    def names(self, pattern: str | Iterable[str] = "*", exclude: str | Iterable[str] = ()) -> list[str]:
        """Returns the registered names that match ``pattern`` and no ``exclude`` pattern, sorted."""
        self._populate()
        return match(self._entries, pattern, exclude)


heads: Registry[Any] = Registry("head", ["idml_zoo.models.heads"])
losses: Registry[Any] = Registry("loss", ["idml_zoo.losses"])
benchmarks: Registry[Any] = Registry("benchmark", ["idml_zoo.data.sets.catalogue"])
