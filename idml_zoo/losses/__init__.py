"""Losses over a pairwise similarity matrix, and mixup. Importing this registers them."""

from idml_zoo.losses.mixup import Mixup, mixup
from idml_zoo.losses.proxies import ProxyAnchor, proxy_anchor

__all__ = ["Mixup", "ProxyAnchor", "mixup", "proxy_anchor"]
