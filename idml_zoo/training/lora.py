"""Low-rank adaptation of a backbone (LoRA: Hu et al., ICLR 2022, arXiv:2106.09685): W + (α/r)·B·A, and only A, B learn.

It is for backbones that are too large to train whole. The saved weights hold W + (α/r)·B·A in W's place, so that the
network loads like any other.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from idml_zoo.models.model import IDMLModel
from idml_zoo.training.config import ConfigError


class LowRank(nn.Module):
    """A linear layer that stays as it is, and a product of two narrow ones that learns; at first it adds nothing.

    Args:
        layer: ``out × in``.
        rank: r of A (``r × in``) and B (``out × r``).
        alpha: α; the product is scaled by α/r.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), alpha / rank
        self.down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    @property
    def weight(self) -> Tensor:
        """The merged weight, for backbones that multiply by themselves (Swin v2, BEiT, EVA)."""
        return self.merged()

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        whole: Tensor = self.layer(x) + self.scale * added
        return whole

    def merged(self) -> Tensor:
        """Returns the weight ``(out, in)`` of the one layer that computes the same."""
        return self.layer.weight + self.scale * self.up @ self.down


def add_lora(model: IDMLModel, rank: int, alpha: float, targets: str) -> list[str]:
    """Freezes the backbone and adapts the linear layers whose name ``targets`` finds; returns their names.

    Raises:
        ConfigError: the regular expression finds none.
    """
    linear = [n for n, m in model.backbone.named_modules() if isinstance(m, nn.Linear)]
    chosen = [n for n in linear if re.search(targets, n)]
    if not chosen:
        raise ConfigError(
            f"lora_targets={targets!r} fits none of the backbone's {len(linear)} linear layers"
            + (f", such as {', '.join(linear[-3:])}" if linear else ": LoRA is for transformers")
        )
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    for name in chosen:
        parent, _, leaf = name.rpartition(".")
        owner = model.backbone.get_submodule(parent)
        setattr(owner, leaf, LowRank(owner.get_submodule(leaf), rank, alpha))
    return chosen


@torch.no_grad()
def merge(adapted: nn.Module, plain: nn.Module) -> None:
    """Copies an adapted network into one of the same form without adaptation."""
    low = {name: module for name, module in adapted.named_modules() if isinstance(module, LowRank)}
    values = {
        name.replace(".layer.", ".") if name.rpartition(".layer.")[0] in low else name: value
        for name, value in adapted.state_dict().items()
        if name.rpartition(".")[0] not in low  # A and B themselves
    }
    plain.load_state_dict({**values, **{f"{name}.weight": module.merged() for name, module in low.items()}})
