"""An extension of mkdocstrings: a Sphinx role in a docstring (:func:`search`) becomes a link to its API page."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Roles(griffe.Extension):
    """Rewrites each docstring before it is rendered."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrites the docstrings of a package when all of it is loaded."""
        self._rewrite(pkg)

    def _rewrite(self, item: griffe.Object) -> None:
        if item.docstring:
            text = item.docstring.value.replace("[R][C]", "[R, C]")  # two sources, which Markdown would take for a link
            item.docstring.value = re.sub(r":[a-z]+:`(~?)([\w.]+)`", lambda m: self._link(item, *m.groups()), text)
        for member in item.members.values():
            if not member.is_alias:
                self._rewrite(member)

    @staticmethod
    def _link(item: griffe.Object, short: str, name: str) -> str:
        try:
            target = name if name.startswith("idml_zoo.") else item.resolve(name)
        except griffe.NameResolutionError:
            target = f"{item.path}.{name}"
        shown = name.rpartition(".")[2] if short else name
        return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'
