"""The table of losses, and the modules that put a similarity and a loss together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from idml_zoo.losses.probabilistic import LossPrediction, VMFProxyLoss
from idml_zoo.losses.proxies import ProxyLoss
from idml_zoo.registry import losses, unknown_name
from idml_zoo.similarity import TAU

PAIR_SIMILARITIES = ("cosine", "introspective")


@dataclass(frozen=True)
class LossSpec:
    """One loss of the table.

    Attributes:
        title: its name in the literature, with the source.
        matrix: what it is a function of: "similarity", "distance" or "squared" (distance).
        proxies: whether it compares with learned proxies, instead of the batch with itself.
        similarities: what it can be combined with.
        mixup: whether the three-term mixup makes sense for it: a function of the batch's labels, whoever draws what.
        function: for losses over pairs, ``function(matrix, labels, **settings)``.
    """

    title: str
    matrix: str
    proxies: bool
    similarities: tuple[str, ...] = PAIR_SIMILARITIES
    mixup: bool = True
    function: Callable[..., Tensor] | None = None


for _name, _spec in {
    "proxy_nca": LossSpec("ProxyNCA (Movshovitz-Attias et al., ICCV 2017)", "squared", True),
    "proxy_anchor": LossSpec(
        "Proxy Anchor (Kim et al., CVPR 2020)", "similarity", True, (*PAIR_SIMILARITIES, "released")
    ),
    "vmf": LossSpec("vMF expected-likelihood proxies (Kirchhof et al., ECCV 2022)", "similarity", True, ("cosine",)),
    "loss_prediction": LossSpec(
        "Proxy Anchor with loss prediction (Yoo and Kweon, CVPR 2019)", "similarity", True, ("cosine",), mixup=False
    ),
}.items():
    losses.add(_name, _spec)


def create_criterion(
    loss: str,
    num_classes: int,
    embedding_dim: int,
    similarity: str = "introspective",
    *,
    tau: float = TAU,
    proxy_uncertainty: str = "learned",
    **settings: Any,
) -> ProxyLoss | VMFProxyLoss | LossPrediction:
    """The module of a loss of the table, with a similarity of one's choice.

    Args:
        loss: a name of the loss registry.
        num_classes: C, for losses with proxies.
        embedding_dim: D.
        similarity: "cosine", "introspective", or "released" (Proxy Anchor only).
        tau, proxy_uncertainty: of the introspective metric.
        settings: of the loss's function: margins, scales, bins.

    Returns:
        ``criterion(embedding, labels) -> scalar``, with ``criterion.statistics(embedding, labels)``.

    Raises:
        ValueError: unknown loss, similarity or setting (the nearest names are given), or a combination that is none.
    """
    spec: LossSpec = losses[loss]
    if similarity not in spec.similarities:
        raise unknown_name(f"similarity for {loss}", similarity, spec.similarities)
    if loss == "vmf":
        return VMFProxyLoss(num_classes, embedding_dim, **settings)
    if loss == "loss_prediction":
        return LossPrediction(num_classes, embedding_dim, **settings)
    return ProxyLoss(num_classes, embedding_dim, similarity, loss, tau, proxy_uncertainty, **settings)
