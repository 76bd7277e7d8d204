"""Mixup at the level of images; with it the loss is L(x, y) + λ·L(x̃, y) + (1−λ)·L(x̃, y_π) [C]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixup:
    """One mixed batch.

    Attributes:
        images: ``(B, 3, H, W)`` λx + (1−λ)x_π.
        permutation: ``(B,)`` π, on the device of the images.
        weight: λ in [0, 1].
    """

    images: Tensor
    permutation: Tensor
    weight: float


def mixup(images: Tensor, generator: torch.Generator | None = None) -> Mixup:
    """Mixes a batch with a permutation of itself, λ ~ Beta(1, 1) = U(0, 1), one λ for the batch [C].

    Args:
        images: ``(B, 3, H, W)``.
        generator: a CPU generator, for λ and π; None for the global one.
    """
    weight = float(torch.rand((), generator=generator))
    permutation = torch.randperm(len(images), generator=generator).to(images.device)
    return Mixup(torch.lerp(images[permutation], images, weight), permutation, weight)
