"""What the loss modules share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from idml_zoo.registry import unknown_name
from idml_zoo.types import Embedding


class Criterion(nn.Module):
    """What every loss of the table is, and a loss of one's own must be to train with the recipe."""

    def forward(
        self, embedding: Embedding, labels: Tensor, partners: Tensor | None = None, weight: float = 1.0
    ) -> Tensor:
        """The loss of B images with ``(B,)`` int64 labels, a scalar.

        With ``partners``, the other labels of mixed images: weight·L(labels) + (1−weight)·L(partners).
        """
        raise NotImplementedError

    def statistics(self, embedding: Embedding, labels: Tensor) -> dict[str, Tensor]:
        """What the log shows, as 0-d tensors: at least ``level``, mean ‖u‖, by which a dead uncertainty is noticed."""
        return {"level": embedding.level.detach().float().mean()}


def over_labels(loss: Callable[[Tensor], Tensor], labels: Tensor, partners: Tensor | None, weight: float) -> Tensor:
    """loss(labels), or weight·loss(labels) + (1−weight)·loss(partners): the mixed terms of the authors' mixup [C]."""
    if partners is None:
        return loss(labels)
    return weight * loss(labels) + (1 - weight) * loss(partners)


def checked_settings(name: str, function: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings themselves; an error with the nearest names where the loss does not take one."""
    parameters = inspect.signature(function).parameters.values()
    # `weight` of a function of proxies is how much each counts, which is not for a recipe to say
    known = [
        p.name for p in parameters if p.default is not p.empty and (p.name != "weight" or inspect.isclass(function))
    ]
    for key in settings:
        if key not in known:
            raise unknown_name(f"setting of {name}", key, known)
    return settings
