"""For the site: the Sphinx roles of the docstrings (:func:`search`) become links, where an API page has the target."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Roles(griffe.Extension):
    """Rewrites each docstring before it is rendered."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Of a package that is loaded whole."""
        self._rewrite(pkg)

    def _rewrite(self, thing: griffe.Object) -> None:
        if thing.docstring:
            text = thing.docstring.value.replace("[R][C]", "[R, C]")  # two sources, no link
            thing.docstring.value = re.sub(r":[a-z]+:`(~?)([\w.]+)`", lambda m: self._link(thing, *m.groups()), text)
        for member in thing.members.values():
            if not member.is_alias:
                self._rewrite(member)

    @staticmethod
    def _link(thing: griffe.Object, short: str, name: str) -> str:
        try:
            target = name if name.startswith("idml_zoo.") else thing.resolve(name)
        except griffe.NameResolutionError:
            target = f"{thing.path}.{name}"
        shown = name.rpartition(".")[2] if short else name
        return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'
