"""Preprocessing, as a value that is stored with the weights and in every result."""

from __future__ import annotations

import dataclasses
import math
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
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean must be 3 numbers, and std 3, got {self.mean}, {self.std}")
        if not all(0 < v < math.inf for v in self.std):
            raise ValueError(f"std must be positive, got {self.std}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two fractions, ascending, got {self.scale}")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(_INTERPOLATIONS)}, got {self.interpolation!r}")

    @classmethod
    def from_timm(cls, pretrained_cfg: dict[str, Any]) -> TransformConfig:
        """Returns input size, interpolation, mean and std of a timm ``pretrained_cfg``, with the paper's crop."""
        size = pretrained_cfg.get("input_size") or (3, 224, 224)
        interpolation = pretrained_cfg.get("interpolation") or "bilinear"
        return cls(
            image_size=int(size[-1]),
            interpolation=interpolation if interpolation in _INTERPOLATIONS else "bicubic",
            mean=tuple(pretrained_cfg.get("mean") or cls.mean),
            std=tuple(pretrained_cfg.get("std") or cls.std),
        )

    @classmethod
    def of_network(cls, network: Any) -> TransformConfig:
        """Returns :meth:`from_timm` of a timm network, at the size that it was built for (``img_size=``)."""
        pretrained = cls.from_timm(getattr(network, "pretrained_cfg", None) or {})
        size = getattr(getattr(network, "patch_embed", None), "img_size", None)
        return pretrained if size is None else dataclasses.replace(pretrained, image_size=int(size[-1]))

    def replace(self, **changes: Any) -> TransformConfig:
        """Returns a copy with some fields changed; None leaves a field as it is."""
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if v is not None})

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def build_transforms(config: TransformConfig) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Returns the (training, evaluation) transforms: image to float32 ``(3, image_size, image_size)``.

    Training takes a PIL RGB image or a uint8 tensor ``(3, H, W)``, and crops the tensor: the same anti-aliased filter
    as PIL's within one of 255 levels, and several times as fast. Evaluation takes a PIL image and resizes it with PIL,
    which is part of the protocol.
    """
    from torchvision.transforms import v2

    geometry, end = _train_geometry(config), _to_float(config)
    flip = [v2.RandomHorizontalFlip()] if config.flip else []
    return v2.Compose([*geometry, *flip, *end]), v2.Compose([*_evaluation_geometry(config), *end])


def build_device_transforms(config: TransformConfig) -> tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]:
    """Returns the training transform in two parts, so that flips and floats are made in batches on the device.

    Returns:
        (for the loader: image to uint8 ``(3, image_size, image_size)``; for the batch: uint8 ``(B, 3, S, S)`` on any
        device to float32 there). A quarter of the bytes cross to the device. The flips are drawn on the device, so a
        seed gives other flips than :func:`build_transforms`.
    """
    from torchvision.transforms import v2

    end = v2.Compose(_to_float(config))

    def on_device(images: Tensor) -> Tensor:
        if config.flip:
            turned = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            images = torch.where(turned, images.flip(-1), images)
        return end(images)

    return v2.Compose(_train_geometry(config)), on_device


def build_evaluation_parts(config: TransformConfig) -> tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]:
    """Returns the evaluation transform in two parts, so that floats are made in batches; the numbers stay the same.

    Returns:
        (for the loader: PIL image to uint8 ``(3, image_size, image_size)``; for the batch: uint8 ``(B, 3, S, S)`` on
        any device to float32 there, fastest while the batch is contiguous).
    """
    from torchvision.transforms import v2

    return v2.Compose(_evaluation_geometry(config)), v2.Compose(_to_float(config))


def _mode(config: TransformConfig) -> Any:
    from torchvision.transforms import InterpolationMode

    # torch's "nearest" is half a pixel off PIL's; its "nearest-exact" is not
    return InterpolationMode(config.interpolation.replace("nearest", "nearest-exact"))


def _train_geometry(config: TransformConfig) -> list[Any]:
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(config.image_size, scale=config.scale, interpolation=_mode(config))
    if config.interpolation == "lanczos":  # torch has none for tensors
        return [v2.ToPILImage(), crop, v2.PILToTensor()]
    return [v2.PILToTensor(), crop]


def _evaluation_geometry(config: TransformConfig) -> list[Any]:
    from torchvision.transforms import v2

    resize = v2.Resize(round(config.image_size / config.crop_fraction), interpolation=_mode(config))
    return [resize, v2.CenterCrop(config.image_size), v2.PILToTensor()]


def _to_float(config: TransformConfig) -> list[Any]:
    from torchvision.transforms import v2

    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(config.mean), list(config.std))]
