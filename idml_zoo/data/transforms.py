"""Preprocessing, as a value that is stored with the weights and in every result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")


@dataclass(frozen=True)
class TransformConfig:
    """How an image becomes a tensor.

    Attributes:
        image_size: side of the square input, pixels.
        crop_fraction: test images are resized to ``image_size / crop_fraction`` (shorter side), then centre-cropped.
            The paper's protocol is resize 256, crop 224, so 0.875 [C].
        interpolation: "bilinear", "bicubic", "nearest" or "lanczos".
        mean, std: of the network's input, by channel, in units of [0, 1].
        scale: area range of RandomResizedCrop in training.
        flip: whether training flips images left to right.
    """

    image_size: int = 224
    crop_fraction: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True

    def __post_init__(self) -> None:
        for name in ("mean", "std", "scale"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        if self.image_size < 1 or not 0 < self.crop_fraction <= 1:
            raise ValueError(
                f"image_size must be ≥ 1 and crop_fraction in (0, 1], got {self.image_size}, {self.crop_fraction}"
            )
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(_INTERPOLATIONS)}, got {self.interpolation!r}")

    @classmethod
    def from_timm(cls, pretrained_cfg: dict[str, Any]) -> TransformConfig:
        """Input size, interpolation, mean and std of a timm ``pretrained_cfg``; the crop stays the paper's."""
        size = pretrained_cfg.get("input_size") or (3, 224, 224)
        interpolation = pretrained_cfg.get("interpolation") or "bilinear"
        return cls(
            image_size=int(size[-1]),
            interpolation=interpolation if interpolation in _INTERPOLATIONS else "bicubic",
            mean=tuple(pretrained_cfg.get("mean") or cls.mean),
            std=tuple(pretrained_cfg.get("std") or cls.std),
        )

    def replace(self, **changes: Any) -> TransformConfig:
        """A copy with some fields changed; None leaves a field as it is."""
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if v is not None})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def build_transforms(config: TransformConfig) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """(training, evaluation) transforms: PIL RGB image to float32 ``(3, image_size, image_size)``."""
    from torchvision.transforms import InterpolationMode, v2

    mode = InterpolationMode(config.interpolation)
    end = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(config.mean), list(config.std))]
    flip = [v2.RandomHorizontalFlip()] if config.flip else []
    train = v2.Compose([v2.RandomResizedCrop(config.image_size, scale=config.scale, interpolation=mode), *flip, *end])
    resize = v2.Resize(round(config.image_size / config.crop_fraction), interpolation=mode)
    evaluate = v2.Compose([resize, v2.CenterCrop(config.image_size), *end])
    return train, evaluate
