"""The training variants on offer, never mixed under one name. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from idml_zoo.registry import Registry


@dataclass(frozen=True)
class Variant:
    """What a variant fixes of a training run; everything else is the recipe's.

    Attributes:
        head: name in the head registry.
        similarity: what the loss sees: "cosine", "introspective" or "released".
        mixup: whether the three-term mixup loss is used.
        why: one line for people.
    """

    head: str
    similarity: str
    mixup: bool
    why: str


variants: Registry[Variant] = Registry("variant")
variants.add("pa", Variant("semantic", "cosine", False, "Proxy Anchor: the baseline"))
variants.add("pa_mixup", Variant("semantic", "cosine", True, "Proxy Anchor with IDML's mixup: the control"))
variants.add("idml_released", Variant("idml", "released", True, "the authors' released code, exactly"))
variants.add(
    "idml", Variant("idml", "introspective", True, "the paper's metric with a learned uncertainty: the default")
)
variants.add("idml_no_mixup", Variant("idml", "introspective", False, "the paper's metric without mixup"))
