"""The table of named models. Listing it imports no torch; building one does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idml_zoo.registry import Registry, benchmarks, heads, unknown_name

if TYPE_CHECKING:
    from idml_zoo.data.transforms import TransformConfig
    from idml_zoo.model import IDMLModel

LOCAL = "local-dir:"


@dataclass(frozen=True)
class Backbone:
    """One backbone of the curated list.

    Attributes:
        timm_name: with the pretrained tag whose weights a run should start from.
        options: for ``timm.create_model``, for example the input size of a ViT.
        image_size: the side that the network takes, where it takes just one; None where any will do.
        pretraining: what the tagged weights have seen, for the tables.
    """

    timm_name: str
    options: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    pretraining: str = "ImageNet-1k"


BACKBONES: dict[str, Backbone] = {
    "resnet18": Backbone("resnet18.tv_in1k"),
    "resnet50": Backbone("resnet50.tv_in1k"),
    "resnet101": Backbone("resnet101.tv_in1k"),
    "convnext_tiny": Backbone("convnext_tiny.fb_in1k"),
    "tf_efficientnet_lite0": Backbone("tf_efficientnet_lite0.in1k"),
    "mobilenetv3_small_100": Backbone("mobilenetv3_small_100.lamb_in1k"),
    "deit_small_patch16_224": Backbone("deit_small_patch16_224.fb_in1k", image_size=224),
    "vit_small_patch16_224": Backbone("vit_small_patch16_224.augreg_in21k", image_size=224, pretraining="ImageNet-21k"),
    "vit_small_patch16_dino": Backbone("vit_small_patch16_224.dino", image_size=224, pretraining="ImageNet-1k (DINO)"),
    "vit_small_patch14_dinov2": Backbone(
        "vit_small_patch14_dinov2.lvd142m", {"img_size": 224}, 224, "LVD-142M (DINOv2)"
    ),
    "vit_small_patch16_dinov3": Backbone(
        "vit_small_patch16_dinov3.lvd1689m", {"img_size": 224}, 224, "LVD-1689M (DINOv3)"
    ),
    "swin_tiny": Backbone("swin_tiny_patch4_window7_224.ms_in1k", image_size=224),
    "test_resnet": Backbone("test_resnet.r160_in1k"),
    "test_vit": Backbone("test_vit.r160_in1k", image_size=160),
}


@dataclass(frozen=True)
class Record:
    """A named model.

    Attributes:
        head: name in the head registry.
        backbone: key of :data:`BACKBONES`.
        benchmark: what it is, or will be, trained for.
        recipe: the file that trains it, with what :meth:`command` adds; from the project's root.
        embedding_dim: D.
        weights: where published weights lie; None while there are none.
    """

    head: str
    backbone: str
    benchmark: str
    recipe: str
    embedding_dim: int = 512
    weights: str | None = None

    def command(self, name: str) -> str:
        """What to type to train this model; its row is called ``name``."""
        chosen = BACKBONES[self.backbone]
        keys = {"benchmark": self.benchmark, "variant": "idml" if self.head == "idml" else "pa"}
        keys |= {"name": name, "backbone": chosen.timm_name, "embedding_dim": str(self.embedding_dim)}
        if chosen.image_size is not None:
            keys["image_size"] = str(chosen.image_size)
        if chosen.options:
            keys["backbone_options"] = "'{" + ", ".join(f"{k}: {v}" for k, v in chosen.options.items()) + "}'"
        given = " ".join(f"{k}={v}" for k, v in keys.items())
        return f"accelerate launch recipes/train.py --config {self.recipe} {given}"


models: Registry[Record] = Registry("model")
_RECIPES = {b: f"recipes/{b}_resnet50.yaml" for b in ("cub", "cars196", "sop")} | {
    "glyphs": "recipes/glyphs_quickstart.yaml",
    "cub2010": "recipes/cub2010_lite0.yaml",
}
for _head in ("idml", "semantic"):
    for _backbone in BACKBONES:
        for _benchmark in ("cub", "cars196", "sop", "glyphs"):
            models.add(
                f"{_head}_{_backbone}_{_benchmark}", Record(_head, _backbone, _benchmark, recipe=_RECIPES[_benchmark])
            )
    models.add(
        f"{_head}_tf_efficientnet_lite0_cub2010",
        Record(_head, "tf_efficientnet_lite0", "cub2010", recipe=_RECIPES["cub2010"]),
    )


def list_models(filter: str = "*", exclude: str | Iterable[str] = (), pretrained: bool = False) -> list[str]:
    """Names of the zoo's models, sorted.

    Args:
        filter: shell pattern, "idml_*_cub".
        exclude: a pattern or several; a plain string is one pattern.
        pretrained: only those with published weights.
    """
    return [n for n in models.names(filter, exclude) if not pretrained or models[n].weights is not None]


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    backbone: str | None = None,
    embedding_dim: int | None = None,
    backbone_pretrained: bool | str = False,
    pooling: str | None = None,
    head_options: dict[str, Any] | None = None,
    **backbone_options: Any,
) -> IDMLModel:
    """Builds a model, in eval mode.

    Args:
        name: a name of :func:`list_models` ("idml_resnet50_cub"); a head ("idml", "semantic", "features") together
            with ``backbone``; or "local-dir:PATH", a folder written by ``save_pretrained``.
        pretrained: load the trained weights of that name.
        backbone: any timm model, for a head's name.
        embedding_dim: D; default 512.
        backbone_pretrained: start the backbone from ImageNet weights: True or "timm", those of timm (from the Hub or
            its cache); "package", those of the extra ``idml-zoo[weights]`` (no Hub needed). False or "none": random.
        pooling: "avg+max", "avg" or "native"; see :func:`idml_zoo.model.create_backbone`.
        head_options: further options of the head, such as ``{"uncertainty_input": "features"}``.
        backbone_options: passed to ``timm.create_model``.

    Raises:
        UnknownNameError: no such name; the nearest ones are given.
        ValueError: options that do not go together, or ``pretrained=True`` for a name without published weights.
        WeightsError: a local folder that does not hold what it should.
    """
    if name.startswith(LOCAL):
        if (
            backbone
            or embedding_dim
            or pooling
            or head_options
            or backbone_options
            or backbone_pretrained not in (False, "none")
        ):
            raise ValueError(f"{name}: the folder's config.json says what the network is; give no other options")
        from idml_zoo.hub import load_local

        return load_local(Path(name[len(LOCAL) :]), pretrained)
    transform: dict[str, Any] = {}
    if name in models:
        record = models[name]
        if backbone is not None:
            raise ValueError(
                f"{name!r} names its backbone already ({record.backbone}); use {record.head!r} with backbone="
            )
        if pretrained:
            raise ValueError(_no_weights(name, record))
        chosen = BACKBONES[record.backbone]
        head, backbone = record.head, chosen.timm_name
        embedding_dim = embedding_dim or record.embedding_dim
        backbone_options = {**chosen.options, **backbone_options}
        transform = dict(benchmarks[record.benchmark].transform)
        if chosen.image_size is not None:
            transform["image_size"] = backbone_options.get("img_size", chosen.image_size)
    elif backbone is not None:
        head = name
        if head not in heads:
            raise unknown_name("head", head, heads)
        if pretrained:
            raise ValueError(f"a head over {backbone} has no published weights; backbone_pretrained=True gives timm's")
    elif name in heads:
        raise ValueError(f"{name!r} is a head: create_model({name!r}, backbone='resnet50') puts it on a timm model")
    else:
        raise unknown_name("model", name, models, "idml_zoo.list_models() lists all; idml-zoo list on the command line")
    return _build(
        head, backbone, embedding_dim, backbone_pretrained, pooling, head_options, transform, backbone_options
    )


def _build(
    head: str,
    backbone: str,
    embedding_dim: int | None,
    backbone_pretrained: bool | str,
    pooling: str | None,
    head_options: dict[str, Any] | None,
    transform: dict[str, Any],
    backbone_options: dict[str, Any],
) -> IDMLModel:
    from idml_zoo.model import IDMLModel

    if backbone_pretrained not in (True, False, "timm", "none", "package"):
        raise ValueError(f"backbone_pretrained must be True ('timm'), 'package' or False, got {backbone_pretrained!r}")
    model = IDMLModel(
        backbone,
        head,
        embedding_dim,
        pooling,
        head_options,
        pretrained=backbone_pretrained in (True, "timm"),
        **backbone_options,
    )
    if backbone_pretrained == "package":
        from idml_zoo.package_weights import load_package_weights

        weights = load_package_weights(model.backbone, backbone)
        transform = {**transform, "mean": weights.mean, "std": weights.std}
    model.transform = model.transform.replace(**transform)
    return model.eval()


def _no_weights(name: str, record: Record) -> str:
    return (
        f"{name!r} has no published weights yet. Train it: `{record.command(name)}`, then "
        "create_model('local-dir:RUN_FOLDER/model', pretrained=True); "
        "or start from ImageNet with backbone_pretrained=True"
    )


def weights_source(kind: str, backbone: str) -> str:
    """What a result says of a backbone's first weights: "none", "timm:resnet50.tv_in1k", "package:<name>".

    Args:
        kind: "none", "timm" or "package".
        backbone: timm name; the tag of packaged weights is dropped, for they are not timm's.
    """
    return kind if kind == "none" else f"{kind}:{backbone.split('.')[0] if kind == 'package' else backbone}"


def create_transforms(model: IDMLModel | TransformConfig) -> tuple[Any, Any]:
    """(training, evaluation) transforms that fit a model: PIL RGB image to float32 ``(3, S, S)``.

    Size, interpolation, mean and std come from the backbone's pretrained configuration (or were saved with the
    weights); the test crop is the paper's (resize S/0.875, centre crop S) unless the benchmark needs another.
    """
    from idml_zoo.data.transforms import TransformConfig, build_transforms

    return build_transforms(model if isinstance(model, TransformConfig) else model.transform)
