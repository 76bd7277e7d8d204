"""Losses over pairwise matrices, and mixup. Importing this registers them."""

from idml_zoo.losses.common import Criterion
from idml_zoo.losses.criteria import LossSpec, MarginLoss, PairLoss, create_criterion
from idml_zoo.losses.mixup import Mixup, mixup
from idml_zoo.losses.probabilistic import LossPrediction, VMFProxyLoss, log_vmf_normalizer
from idml_zoo.losses.proxies import ProxyLoss, proxy_anchor, proxy_nca

__all__ = [
    "Criterion",
    "LossPrediction",
    "LossSpec",
    "MarginLoss",
    "Mixup",
    "PairLoss",
    "ProxyLoss",
    "VMFProxyLoss",
    "create_criterion",
    "log_vmf_normalizer",
    "mixup",
    "proxy_anchor",
    "proxy_nca",
]
