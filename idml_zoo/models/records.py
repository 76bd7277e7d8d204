"""The table of named models: backbones, heads, benchmarks, and where published weights lie. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from idml_zoo.registry import Registry


@dataclass(frozen=True)
class Backbone:
    """One backbone of the curated list.

    Attributes:
        timm_name: with the pretrained tag whose weights a run should start from.
        options: for ``timm.create_model``, for example the input size of a ViT.
        image_size: side of the input in pixels, where the network takes only one size; None where it takes any.
        pretraining: data that the tagged weights were trained on, for the tables.
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
class Weights:
    """Where trained weights of a named model lie.

    Attributes:
        sha256: of ``model.safetensors``: weights from anywhere must have it.
        repo, revision: "user/name" on the Hub, and the commit; None where they come with the package.
    """

    sha256: str
    repo: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Record:
    """A named model.

    Attributes:
        head: name in the head registry.
        backbone: key of :data:`BACKBONES`.
        benchmark: name of the benchmark that it is, or will be, trained for.
        recipe: path, from the project's root, of the file that trains it with the keys of :meth:`command`.
        embedding_dim: D.
        weights: where published weights lie; None while there are none.
    """

    head: str
    backbone: str
    benchmark: str
    recipe: str
    embedding_dim: int = 512
    weights: Weights | None = None

    @property
    def variant(self) -> str:
        """Variant that :meth:`command` trains: ``idml`` or, without introspection, ``pa``."""
        return "idml" if self.head == "idml" else "pa"

    def command(self, name: str) -> str:
        """Returns the shell command that trains this model; its row is called ``name``."""
        chosen = BACKBONES[self.backbone]
        keys = {"benchmark": self.benchmark, "variant": self.variant}
        keys |= {"name": name, "backbone": chosen.timm_name, "embedding_dim": str(self.embedding_dim)}
        if chosen.image_size is not None:
            keys["image_size"] = str(chosen.image_size)
        if chosen.options:
            keys["backbone_options"] = "'{" + ", ".join(f"{k}: {v}" for k, v in chosen.options.items()) + "}'"
        given = " ".join(f"{k}={v}" for k, v in keys.items())
        return f"accelerate launch recipes/train.py --config {self.recipe} {given}"


models: Registry[Record] = Registry("model")
# by name; `idml-zoo push` prints what belongs here
PUBLISHED: dict[str, Weights] = {
    "idml_test_resnet_glyphs": Weights("4c1b22937dc09ade0041ceaf6b032c6eb7af6abd17f638ee59e283987c3a6977"),
    "idml_tf_efficientnet_lite0_cars196_half": Weights(
        "1e1a69e6910dd8c30df1d7d8f705dac6f4299626152d8941378babc003e922cd"
    ),
    "idml_tf_efficientnet_lite0_cub2010": Weights("eb485c6960c710322a5b9edcabf7a05119eb1894309f32aea590a6a0601c1fe8"),
}
_RECIPES = {b: f"recipes/{b}_resnet50.yaml" for b in ("cub", "cars196", "sop")} | {
    "glyphs": "recipes/glyphs_quickstart.yaml",
    "cub2010": "recipes/cub2010_lite0.yaml",
    "cars196_half": "recipes/cars196_half_lite0.yaml",
}
_COMBINATIONS = [(b, s) for b in BACKBONES for s in ("cub", "cars196", "sop", "glyphs")]
for _head in ("idml", "semantic"):
    for _backbone, _benchmark in [*_COMBINATIONS, *(("tf_efficientnet_lite0", s) for s in ("cub2010", "cars196_half"))]:
        _name, _small = f"{_head}_{_backbone}_{_benchmark}", (_backbone, _benchmark) == ("test_resnet", "glyphs")
        _recipe, _dim = ("recipes/glyphs_test_resnet.yaml", 128) if _small else (_RECIPES[_benchmark], 512)
        models.add(_name, Record(_head, _backbone, _benchmark, _recipe, _dim, PUBLISHED.get(_name)))
