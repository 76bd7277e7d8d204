"""Builds the network from a configuration: what it is, which parts train, and at which rate."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

import idml_zoo
from idml_zoo.data.benchmark import Benchmark
from idml_zoo.data.split import Split
from idml_zoo.data.transforms import TransformConfig
from idml_zoo.evaluation.embed import embed
from idml_zoo.models.heads import FeaturesHead
from idml_zoo.models.model import IDMLModel
from idml_zoo.training.config import ConfigError, DataConfig, NetworkConfig, OptimizerConfig
from idml_zoo.types import Embedding
from idml_zoo.variants import Variant


def build_model(network: NetworkConfig, variant: Variant) -> IDMLModel:
    """Returns the network, with the preprocessing of its backbone."""
    options = {"uncertainty_input": network.uncertainty_input, "initial_level": network.initial_level}
    return idml_zoo.create_model(
        variant.head,
        backbone=network.backbone,
        embedding_dim=network.embedding_dim,
        backbone_pretrained=network.backbone_weights,
        pooling=network.pooling or None,
        head_options=options if variant.head == "idml" else None,
        **network.backbone_options,
    )


def adapt_transform(transform: TransformConfig, benchmark: Benchmark, data: DataConfig) -> TransformConfig:
    """Returns the backbone's preprocessing, changed by the benchmark and then by the configuration."""
    return transform.replace(**benchmark.transform).replace(
        image_size=data.image_size,
        crop_fraction=data.crop_fraction,
        scale=data.random_crop_scale,
        flip=data.flip,
    )


def parameter_groups(optimizer: OptimizerConfig, model: IDMLModel, criterion: nn.Module) -> list[dict[str, Any]]:
    """Returns the optimiser's groups: each parameter at ``lr`` times its multiplier.

    Uncertainty has one multiplier, proxies have another (100 in the authors' code), everything else 1.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        is_uncertainty = name.startswith("head.uncertainty")
        groups.setdefault(optimizer.uncertainty_lr_multiplier if is_uncertainty else 1.0, []).append(parameter)
    for name, parameter in criterion.named_parameters():
        # the proxies' uncertainty never at the proxies' rate: β would explode within a few steps
        is_proxy, is_uncertainty = name.endswith("proxies"), "uncertainty" in name or "concentration" in name
        multiple = optimizer.proxy_lr_multiplier if is_proxy else 1.0
        multiple = optimizer.uncertainty_lr_multiplier if is_uncertainty else multiple
        groups.setdefault(multiple, []).append(parameter)
    return [{"params": p, "lr": optimizer.lr * multiple} for multiple, p in groups.items()]


def freeze(network: NetworkConfig, model: IDMLModel) -> None:
    """Freezes the parameters of the backbone that do not train in the whole run.

    Raises:
        ConfigError: ``backbone_trains`` finds no parameter.
    """
    if network.freeze_backbone:
        model.freeze_backbone()
    if network.backbone_trains:
        names = [n for n, _ in model.backbone.named_parameters()]
        trained = {n for n in names if re.search(network.backbone_trains, n)}
        if not trained:
            raise ConfigError(
                f"backbone_trains={network.backbone_trains!r} fits no parameter, such as {', '.join(names[-3:])}"
            )
        for name, parameter in model.backbone.named_parameters():
            parameter.requires_grad_(name in trained)


class _Pooled(nn.Module):
    """The backbone alone, as an embedding that :func:`embed` can take."""

    def __init__(self, model: IDMLModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Embedding:
        features = self.model.forward_features(images).float()
        return FeaturesHead(features.shape[1])(features)


def pooled_features(model: IDMLModel, split: Split, device: torch.device, workers: int, progress: bool) -> Tensor:
    """Returns ``(N, F)`` float32 features of every image, without augmentation, on the CPU of each process."""
    features = embed(
        _Pooled(model), split, model.transform, workers=workers, device=device, progress=progress, share=True
    )
    assert features.semantic_norm is not None
    return features.semantic * features.semantic_norm[:, None]


def set_training_mode(model: nn.Module, freeze_batchnorm: bool) -> None:
    """Sets training mode, but for batch-norm whose statistics are frozen."""
    model.train()
    if freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
