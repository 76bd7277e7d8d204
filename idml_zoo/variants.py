"""The table of training variants. No torch here.

Seven losses, each plain, plain with IDML's mixup (the control), introspective, and
introspective without mixup; the authors' released form; and the other uncertainty heads. With a recipe of a benchmark,
which holds what depends on the data, a variant makes a run:
``recipes/train.py --config recipes/cub_resnet50.yaml variant=idml_triplet``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from idml_zoo.registry import Registry


@dataclass(frozen=True)
class Variant:
    """What a variant fixes of a training run; the recipe has everything else.

    Attributes:
        head: name in the head registry.
        similarity: that the loss is computed from: "cosine", "introspective" or "released".
        mixup: whether the three-term mixup loss is used.
        why: one line for people.
        loss: name in the loss registry.
        settings: defaults of the recipe's keys that the loss needs, where neither file nor command line sets them:
            batches of classes × images for losses over pairs.
    """

    head: str
    similarity: str
    mixup: bool
    why: str
    loss: str = "proxy_anchor"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def has_level(self) -> bool:
        """Returns whether its images have an uncertainty level."""
        return self.head not in ("semantic", "features")


variants: Registry[Variant] = Registry("variant")

_PAIRS: dict[str, Any] = {"sampler": "pk", "images_per_class": 4}
# loss: (its plain row, its introspective row, title, settings)
_LOSSES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "proxy_anchor": ("pa", "idml", "Proxy Anchor", {}),
    "proxy_nca": ("proxy_nca", "idml_proxy_nca", "ProxyNCA", {}),
    "contrastive": ("contrastive", "idml_contrastive", "Contrastive", _PAIRS),
    "triplet": ("triplet", "idml_triplet", "Triplet, semi-hard", _PAIRS),
    "margin": ("margin", "idml_margin", "Margin, distance-weighted sampling", _PAIRS),
    "fastap": ("fastap", "idml_fastap", "FastAP", _PAIRS),
    "multi_similarity": ("multi_similarity", "idml_multi_similarity", "Multi-Similarity", _PAIRS),
}
for _loss, (_plain, _ours, _title, _settings) in _LOSSES.items():
    for _name, _variant in {
        _plain: Variant("semantic", "cosine", False, f"{_title}: the baseline", _loss, _settings),
        f"{_plain}_mixup": Variant(
            "semantic", "cosine", True, f"{_title} with IDML's mixup: the control", _loss, _settings
        ),
        _ours: Variant(
            "idml", "introspective", True, f"{_title} over the paper's metric, with mixup", _loss, _settings
        ),
        f"{_ours}_no_mixup": Variant(
            "idml", "introspective", False, f"{_title} over the paper's metric, without mixup", _loss, _settings
        ),
    }.items():
        variants.add(_name, _variant)
variants.add("idml_released", Variant("idml", "released", True, "the authors' released code, exactly"))
variants.add("vmf", Variant("vmf", "cosine", False, "a learned concentration for each image: vMF proxies", "vmf"))
variants.add(
    "loss_prediction",
    Variant("loss_prediction", "cosine", False, "Proxy Anchor; the level predicts the image's loss", "loss_prediction"),
)
