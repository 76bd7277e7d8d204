"""What the loss modules share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from idml_zoo.registry import unknown_name
from idml_zoo.types import Embedding


class Criterion(nn.Module):
    """A loss that a recipe can train with: every loss of the table is one, and a user's loss must be one."""

    def forward(
        self, embedding: Embedding, labels: Tensor, partners: Tensor | None = None, weight: float = 1.0
    ) -> Tensor:
        """Returns the loss of B images with ``(B,)`` int64 labels, a scalar.

        With ``partners``, the other labels of mixed images: weight·L(labels) + (1−weight)·L(partners).
        """
        raise NotImplementedError

    def statistics(self, embedding: Embedding, labels: Tensor) -> dict[str, Tensor]:
        """Returns what the log shows, as 0-d tensors: at least ``level``, mean ‖u‖, which shows a dead uncertainty."""
        return {"level": embedding.level.detach().float().mean()}


def over_labels(loss: Callable[[Tensor], Tensor], labels: Tensor, partners: Tensor | None, weight: float) -> Tensor:
    """Returns loss(labels); with partners weight·loss(labels) + (1−weight)·loss(partners), the authors' mixup [C]."""
    if partners is None:
        return loss(labels)
    return weight * loss(labels) + (1 - weight) * loss(partners)


def checked_settings(name: str, function: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings themselves.

    Raises:
        UnknownNameError: the loss takes no such setting; the nearest names are given.
    """
    # not a recipe's settings: `weight` of a function of proxies says how many each column stands for
    hidden = {"similarity", "tau"} if inspect.isclass(function) else {"weight"}
    parameters = inspect.signature(function).parameters.values()
    accepted = [p.name for p in parameters if p.default is not p.empty and p.name not in hidden]
    for key in settings:
        if key not in accepted:
            raise unknown_name(f"setting of {name}", key, accepted)
    return settings
