"""Heads: backbone features to an :class:`~idml_zoo.types.Embedding`.

A head is an ``nn.Module`` made by ``Head(in_features, embedding_dim, **options)`` and registered under one name.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idml_zoo.registry import heads
from idml_zoo.types import Embedding


def _full_precision(features: Tensor) -> AbstractContextManager[None]:
    """Heads leave autocast: rounding a unit vector to bfloat16 would cost its cosines their third digit."""
    if features.is_meta:  # has no autocast to leave
        return nullcontext()
    return torch.autocast(features.device.type, enabled=False)


def _semantic_embedding(vector: Tensor, uncertainty: Tensor) -> Embedding:
    """Normalises in float32: half precision loses the norm of a long vector."""
    wide = vector if vector.dtype == torch.float64 else vector.float()
    semantic = F.normalize(wide).to(vector.dtype)
    return Embedding(semantic, uncertainty, torch.linalg.vector_norm(wide, dim=1))


def _empty_layer(in_features: int, out_features: int) -> nn.Linear:
    """Returns a layer without first values, which the caller draws anyway: half the cost of a head."""
    here = torch.empty(0).device  # torch.get_default_device() of torch 2.7 does not see `with torch.device("meta")`
    return nn.utils.skip_init(nn.Linear, in_features, out_features, device=here)


def _semantic_layer(in_features: int, embedding_dim: int) -> nn.Linear:
    """Initialised as in the authors' code [C]: kaiming normal (fan out), bias 0."""
    layer = _empty_layer(in_features, embedding_dim)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    nn.init.zeros_(layer.bias)
    return layer


@heads.register("semantic")
class SemanticHead(nn.Module):
    """The baseline without uncertainty: ŝ = normalise(W_s f + b_s), u = 0.

    Args:
        in_features: F, width of the backbone's pooled features.
        embedding_dim: D, width of the embedding.
    """

    def __init__(self, in_features: int, embedding_dim: int = 512) -> None:
        super().__init__()
        self.semantic = _semantic_layer(in_features, embedding_dim)

    def forward(self, features: Tensor) -> Embedding:
        """Returns the embedding of ``(B, F)`` features."""
        with _full_precision(features):
            vector = self.semantic(features.to(self.semantic.weight.dtype))
            return _semantic_embedding(vector, torch.zeros_like(vector))


@heads.register("idml")
class IDMLHead(nn.Module):
    """Two parallel heads: the semantic embedding ŝ and the uncertainty embedding u, which is not normalised [R][C].

    Args:
        in_features: F, width of the backbone's pooled features.
        embedding_dim: D, width of both embeddings.
        uncertainty_input: what the uncertainty layer sees. ``"normalized"`` (default): the features, layer-normalised
            and scaled to unit length, so that the level cannot merely repeat the norm of the features, and so that
            u moves at the same pace whatever the width F [D]. ``"features"``: the features themselves, as in the
            authors' network [C].
        initial_level: expected ‖u‖ of an image before training (for ``"normalized"`` input). It starts near zero,
            because at ‖u‖ of order 10, where default initialisation puts it, the gradients vanish [D]; and not at
            zero, where β has no gradient.
    """

    def __init__(
        self,
        in_features: int,
        embedding_dim: int = 512,
        uncertainty_input: str = "normalized",
        initial_level: float = 0.1,
    ) -> None:
        super().__init__()
        if uncertainty_input not in ("normalized", "features"):
            raise ValueError(f"uncertainty_input must be 'normalized' or 'features', got {uncertainty_input!r}")
        if initial_level <= 0:
            raise ValueError(f"initial_level must be positive, got {initial_level}: at 0 the uncertainty never learns")
        self.uncertainty_input = uncertainty_input
        self.semantic = _semantic_layer(in_features, embedding_dim)
        self.uncertainty = _empty_layer(in_features, embedding_dim)
        nn.init.normal_(self.uncertainty.weight, std=initial_level / math.sqrt(embedding_dim))
        nn.init.zeros_(self.uncertainty.bias)

    def forward(self, features: Tensor) -> Embedding:
        """Returns the embedding of ``(B, F)`` features."""
        with _full_precision(features):
            features = features.to(self.semantic.weight.dtype)
            vector = self.semantic(features)
            if self.uncertainty_input == "normalized":
                features = F.layer_norm(features, features.shape[1:]) / math.sqrt(features.shape[1])
            return _semantic_embedding(vector, self.uncertainty(features))


def _of_level(level: Tensor, dim: int) -> Tensor:
    """``(B, D)`` uncertainty embeddings of ``(B,)`` levels, all in one direction, so that β adds levels up."""
    return level[:, None].expand(-1, dim) / math.sqrt(dim)


@heads.register("vmf")
class VMFHead(nn.Module):
    """ŝ with a learned concentration κ: a von Mises–Fisher distribution for each image; the level ‖u‖ is 1/κ.

    After Kirchhof et al. (ECCV 2022) and Scott et al., "von Mises–Fisher Loss" (ICCV 2021); trained with
    :class:`~idml_zoo.losses.VMFProxyLoss`. There κ is the norm of the embedding; here a layer of its own gives it, from
    features without their norm, for the reason given at :class:`IDMLHead`.

    Args:
        in_features: F, width of the backbone's pooled features.
        embedding_dim: D.
        concentration: κ before training; None for D / 2. κ stays within a factor e⁴ of it.
    """

    def __init__(self, in_features: int, embedding_dim: int = 512, concentration: float | None = None) -> None:
        super().__init__()
        start = embedding_dim / 2 if concentration is None else concentration
        if start <= 0:
            raise ValueError(f"concentration must be positive, got {start}")
        self.start = start
        self.semantic = _semantic_layer(in_features, embedding_dim)
        self.uncertainty = nn.Linear(in_features, 1)
        nn.init.zeros_(self.uncertainty.weight)
        nn.init.zeros_(self.uncertainty.bias)

    def forward(self, features: Tensor) -> Embedding:
        """Returns the embedding of ``(B, F)`` features."""
        with _full_precision(features):
            features = features.to(self.semantic.weight.dtype)
            vector = self.semantic(features)
            raw = self.uncertainty(F.layer_norm(features, features.shape[1:])).squeeze(1)
            level = torch.exp(-4 * torch.tanh(raw / 4)) / self.start
            return _semantic_embedding(vector, _of_level(level, vector.shape[1]))


@heads.register("loss_prediction")
class LossPredictionHead(nn.Module):
    """ŝ, and a small network that predicts the image's own training loss; the level ‖u‖ is that prediction.

    After Yoo and Kweon (CVPR 2019); trained with :class:`~idml_zoo.losses.LossPrediction`. It sees the features without
    gradient and without their norm.

    Args:
        in_features: F, width of the backbone's pooled features.
        embedding_dim: D.
        hidden: width of the hidden layer.
    """

    def __init__(self, in_features: int, embedding_dim: int = 512, hidden: int = 256) -> None:
        super().__init__()
        self.semantic = _semantic_layer(in_features, embedding_dim)
        self.uncertainty = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Embedding:
        """Returns the embedding of ``(B, F)`` features."""
        with _full_precision(features):
            features = features.to(self.semantic.weight.dtype)
            vector = self.semantic(features)
            seen = F.layer_norm(features.detach(), features.shape[1:])
            level = F.softplus(self.uncertainty(seen).squeeze(1))
            return _semantic_embedding(vector, _of_level(level, vector.shape[1]))


@heads.register("features")
class FeaturesHead(nn.Module):
    """No head at all: the normalised pooled features as the semantic embedding, u = 0. The zero-shot control.

    Args:
        in_features: F.
        embedding_dim: must be F (or None), for nothing projects the features.
    """

    def __init__(self, in_features: int, embedding_dim: int | None = None) -> None:
        super().__init__()
        if embedding_dim not in (None, in_features):
            raise ValueError(
                f"the head 'features' cannot project: embedding_dim must be {in_features}, got {embedding_dim}"
            )

    def forward(self, features: Tensor) -> Embedding:
        """Returns the embedding of ``(B, F)`` features, with D = F."""
        return _semantic_embedding(features, torch.zeros_like(features))
