"""Anybody's model as one that can be measured: a callable, a timm network, a model with ``encode``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from idml_zoo.models.model import IDMLModel
from idml_zoo.types import Embedding

if TYPE_CHECKING:
    from idml_zoo.data.transforms import TransformConfig


def as_embedding(output: Any, count: int) -> Embedding:
    """What a model returned for ``count`` images, as an Embedding.

    Args:
        output: an Embedding, or vectors ``(B, D)`` of any norm (tensor, array or list of B), or a tuple of vectors and
            uncertainty: ``(B, D)`` uncertainty embeddings, or ``(B,)`` levels ≥ 0.
        count: B.

    Raises:
        ValueError: anything else, negative levels, NaN or inf, a vector of norm 0.
    """
    if isinstance(output, Embedding):
        return output
    vector, uncertainty = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
    try:
        vector = _as_tensor(vector)
        uncertainty = None if uncertainty is None else _as_tensor(uncertainty)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{_WANTED}, got {type(output).__name__}") from error
    if vector.ndim != 2 or len(vector) != count or not vector.is_floating_point():
        raise ValueError(f"{_WANTED}, got {vector.dtype} of shape {tuple(vector.shape)} for {count} images")
    wide = vector.float()
    if uncertainty is None:
        uncertainty = torch.zeros_like(wide)
    elif uncertainty.shape in ((count,), (count, 1)) and vector.shape[1] > 1:
        if bool((uncertainty < 0).any()):
            raise ValueError("an uncertainty level is negative; levels are ‖u‖ ≥ 0 (take exp or softplus of a logit)")
        uncertainty = F.pad(uncertainty.float().view(count, 1), (0, wide.shape[1] - 1))  # its norm is the level
    if uncertainty.shape != wide.shape:
        raise ValueError(f"{_WANTED}; the uncertainty has shape {tuple(uncertainty.shape)} for {count} images")
    return Embedding(F.normalize(wide), uncertainty.to(wide), torch.linalg.vector_norm(wide, dim=1))


def _as_tensor(values: Any) -> torch.Tensor:
    """A tensor, an array, or a list of them, one for each image."""
    return torch.stack([torch.as_tensor(v) for v in values]) if isinstance(values, list) else torch.as_tensor(values)


_WANTED = "a model must return (B, D) vectors, or a tuple of vectors and (B, D) or (B,) uncertainties, or an Embedding"


class OwnModel(nn.Module):
    """What :func:`as_embedder` makes of a model that is not of the zoo.

    Attributes:
        transform: preprocessing, or None: ``model`` gets a list of PIL images.
        config, pooling: what a result file says of the model.
    """

    def __init__(self, model: Any, transform: TransformConfig | None, name: str) -> None:
        super().__init__()
        self.model, self.transform, self.pooling = model, transform, "its own"
        self.config: dict[str, Any] = {"backbone": name, "head": "own"}

    def forward(self, images: Any) -> Embedding:
        """``(B, 3, H, W)`` images, or a list of B PIL images, to an Embedding."""
        if self.transform is None:
            return as_embedding(self.model.encode(images), len(images))
        if hasattr(self.model, "forward_features") and hasattr(self.model, "forward_head"):  # timm's networks
            features = self.model.forward_features(images)
            return as_embedding(self.model.forward_head(features, pre_logits=True), len(images))
        return as_embedding(self.model(images), len(images))


def as_embedder(model: Any, transform: TransformConfig | None = None, name: str = "") -> Any:
    """A model of the zoo as it is; anything else wrapped, so that it can be embedded and measured.

    Args:
        model: a model of the zoo; a timm network (its pooled features are taken, without the classifier); an object
            with ``encode(list of PIL images)``, such as those of sentence-transformers; or a callable of
            ``(B, 3, S, S)`` normalised images. What it may return: see :func:`as_embedding`.
        transform: preprocessing; None: the model's own, a timm network's by its ``pretrained_cfg`` (but for the crop,
            which is the protocol's 0.875), or the default (224 px, ImageNet's mean and std).
        name: what a result file calls it; default: its class.

    Raises:
        TypeError: neither callable nor with ``encode``.
    """
    from idml_zoo.data.transforms import TransformConfig

    if isinstance(model, (IDMLModel, OwnModel)):
        return model
    name = name or str(getattr(model, "default_cfg", {}).get("architecture", "")) or type(model).__name__
    if transform is None and hasattr(model, "encode") and not hasattr(model, "forward_features"):
        return OwnModel(model, None, name)
    if not callable(model):
        raise TypeError(f"a model must be callable or have encode(images), got {type(model).__name__}")
    if transform is None:
        stored = getattr(model, "transform", None)
        transform = stored if isinstance(stored, TransformConfig) else TransformConfig.of_network(model)
    return OwnModel(model, transform, name)
