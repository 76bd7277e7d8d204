"""From a configuration to a network: what it is, what of it trains, and at which rate."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

import idml_zoo
from idml_zoo.data.benchmark import Benchmark
from idml_zoo.data.split import Split
from idml_zoo.evaluation.embed import embed
from idml_zoo.models.heads import FeaturesHead
from idml_zoo.models.model import IDMLModel
from idml_zoo.training.config import Config, ConfigError
from idml_zoo.types import Embedding
from idml_zoo.variants import Variant


def build_model(config: Config, benchmark: Benchmark, variant: Variant) -> IDMLModel:
    """The network with its preprocessing: the backbone's, then the benchmark's, then the configuration's wishes."""
    options = {"uncertainty_input": config.uncertainty_input, "initial_level": config.initial_level}
    model = idml_zoo.create_model(
        variant.head,
        backbone=config.backbone,
        embedding_dim=config.embedding_dim,
        backbone_pretrained=config.backbone_weights,
        pooling=config.pooling or None,
        head_options=options if variant.head == "idml" else None,
        **config.backbone_options,
    )
    model.transform = model.transform.replace(**benchmark.transform)
    model.transform = model.transform.replace(
        image_size=config.image_size,
        crop_fraction=config.crop_fraction,
        scale=config.random_crop_scale,
        flip=config.flip,
    )
    return model


def parameter_groups(config: Config, model: IDMLModel, criterion: nn.Module) -> list[dict[str, Any]]:
    """Backbone and semantic head at lr; uncertainty at its multiple; proxies at theirs (100 in the authors' code)."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        is_uncertainty = name.startswith("head.uncertainty")
        groups.setdefault(config.uncertainty_lr_multiplier if is_uncertainty else 1.0, []).append(parameter)
    for name, parameter in criterion.named_parameters():
        # the proxies' uncertainty never at the proxies' pace: β would explode within a few steps
        is_proxy, is_uncertainty = name.endswith("proxies"), "uncertainty" in name or "concentration" in name
        multiple = config.proxy_lr_multiplier if is_proxy else 1.0
        multiple = config.uncertainty_lr_multiplier if is_uncertainty else multiple
        groups.setdefault(multiple, []).append(parameter)
    return [{"params": p, "lr": config.lr * multiple} for multiple, p in groups.items()]


def freeze(config: Config, model: IDMLModel) -> None:
    """What of the backbone does not train, for the whole run."""
    if config.freeze_backbone:
        model.freeze_backbone()
    if config.backbone_trains:
        trains = {n for n, _ in model.backbone.named_parameters() if re.search(config.backbone_trains, n)}
        if not trains:
            names = [n for n, _ in model.backbone.named_parameters()]
            raise ConfigError(
                f"backbone_trains={config.backbone_trains!r} fits no parameter, such as {', '.join(names[-3:])}"
            )
        for name, parameter in model.backbone.named_parameters():
            parameter.requires_grad_(name in trains)


class _Pooled(nn.Module):
    """The backbone alone, as an embedding that :func:`embed` can take."""

    def __init__(self, model: IDMLModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Embedding:
        features = self.model.forward_features(images).float()
        return FeaturesHead(features.shape[1])(features)


def pooled_features(model: IDMLModel, split: Split, device: torch.device, workers: int, progress: bool) -> Tensor:
    """``(N, F)`` float32 features of every image, without augmentation, on the CPU; each process has all of them."""
    found = embed(_Pooled(model), split, model.transform, workers=workers, device=device, progress=progress, share=True)
    assert found.semantic_norm is not None
    return found.semantic * found.semantic_norm[:, None]


def set_training_mode(model: nn.Module, freeze_batchnorm: bool) -> None:
    """Training mode, with batch-norm statistics frozen where asked."""
    model.train()
    if freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
