"""How much a stranger's configuration may cost, measured on the device "meta" before anything is allocated.

A ``config.json`` names a network and a size of image. Both are cheap to write but can be expensive to build and to
run, so they are bounded here. A refusal comes within 2 GB and 5 s. Every network of the zoo is allowed at any size that
it was published for. ``IDML_ZOO_LARGE=1`` lifts the limits, for networks that you trust.
"""

from __future__ import annotations

import os
import weakref
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

LARGE = "IDML_ZOO_LARGE"

# Pixels of the shorter side that an image is resized to, and of a network's `img_size`: the probe, 4:3, then has
# 5.6 million pixels, 22 MB in PIL. The largest input of timm's pretrained networks is 1,024.
MOST_SIDE = 2048
# D. Published embeddings have up to 2,048 numbers, networks' features up to about 5,000 (which a head passes on).
MOST_WIDTH = 8192
# Values to allocate and to draw: 1.8 GB in float32. ViT-L has 304 million, SigLIP's SO400M 428 million.
MOST_PARAMETERS = 450_000_000
# Bytes of buffers (masks, tables of positions): these are computed, with intermediates of several times their size.
# BEiT-L at 512 pixels has 200 MB of them, most networks under 1 MB.
MOST_BUFFERS = 256 << 20
# Multiplications and additions of one image, in pairs: about 5 s on two cores. DINOv2 ViT-B at 518 pixels has 152
# billion, SigLIP ViT-B at 512 pixels 108 billion, ResNet-50 at 448 pixels 16 billion.
MOST_WORK = 160_000_000_000
# Bytes of activations that live at one time, attention matrices included (N² × heads for N tokens).
MOST_ACTIVATIONS = 1 << 30
# Bytes of all activations one after the other, for what costs time without multiplying: pooling, norms, resizing.
MOST_TRAFFIC = 16 << 30


def check_side(image_size: Any, crop_fraction: float = 1.0) -> None:
    """Raises ValueError where an image would be resized to more than :data:`MOST_SIDE` pixels.

    Args:
        image_size: side of the network's input.
        crop_fraction: the image is resized to ``image_size / crop_fraction``, before the rest is cropped away.
    """
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not 1 <= image_size <= MOST_SIDE:
        raise ValueError(f"image_size must be a whole number up to {MOST_SIDE}, got {image_size!r:.40}")
    if not crop_fraction * MOST_SIDE >= image_size:
        raise ValueError(
            f"image_size / crop_fraction, the side that images are resized to, must be up to {MOST_SIDE} pixels, got "
            f"{image_size} / {crop_fraction!r:.40}"
        )


def check_parameters(network: nn.Module) -> None:
    """Raises ValueError where a network has too many parameters, or too large buffers.

    Args:
        network: on the device "meta", where it takes no memory.
    """
    count = sum(p.numel() for p in network.parameters())
    if count > MOST_PARAMETERS:
        raise _too_much(f"{count:,} parameters", f"{MOST_PARAMETERS:,}")
    size = sum(b.numel() * b.element_size() for b in network.buffers())
    if size > MOST_BUFFERS:
        raise _too_much(f"{_gigabytes(size)} of buffers", _gigabytes(MOST_BUFFERS))


def check_work(network: nn.Module, image_size: int) -> None:
    """Raises ValueError where one image costs too much time or memory.

    A head that the user has registered is left out: it is the user's code, and may do what "meta" cannot.

    Args:
        network: in eval mode, on the device "meta".
        image_size: side of its input, pixels.

    Raises:
        ValueError: too much of either, or the network does not take an image of that size.
    """
    meter = Meter(network)
    head: Any = getattr(network, "head", None)
    is_ours = head is None or type(head).__module__.startswith("idml_zoo.")
    forward: Any = network if is_ours else network.forward_features
    try:
        with torch.device("meta"), torch.no_grad(), meter:
            forward(torch.empty(1, 3, image_size, image_size))
    except TooMuch as error:
        raise ValueError(f"an image of {image_size} pixels costs too much: {error}") from None
    except Exception as error:  # whatever a network says to an image that it does not take
        raise ValueError(
            f"it does not take an image of {image_size} pixels ({type(error).__name__}: {str(error)[:300]})"
        ) from error


class TooMuch(ValueError):
    """A limit is passed."""


class Meter(TorchDispatchMode):
    """Adds up what a network's operations cost; raises :class:`TooMuch` once a limit is passed.

    Attributes:
        work: multiplications and additions, in pairs.
        live, most: bytes of activations now, and the most that there were.
        traffic: bytes of all activations.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.work = self.live = self.most = self.traffic = 0
        self._seen = {t.untyped_storage()._cdata for t in chain(network.parameters(), network.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.work += count(*args, **(kwargs or {}), out_val=result) // 2
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        if self.work > MOST_WORK:
            raise _too_much("over " + _billions(self.work) + " multiplications", _billions(MOST_WORK))
        if self.most > MOST_ACTIVATIONS:
            raise _too_much(_gigabytes(self.most) + " of activations at one time", _gigabytes(MOST_ACTIVATIONS))
        if self.traffic > MOST_TRAFFIC:
            raise _too_much("over " + _gigabytes(self.traffic) + " of activations", _gigabytes(MOST_TRAFFIC))
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        size, key = storage.nbytes(), storage._cdata
        if key in self._seen:  # a view, or in place
            return
        self._seen.add(key)
        self.live += size
        self.traffic += size
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def lifted() -> bool:
    """Returns whether the environment variable ``IDML_ZOO_LARGE`` lifts the limits."""
    return os.environ.get(LARGE) == "1"


def _too_much(what: str, most: str) -> TooMuch:
    return TooMuch(f"{what}, at most {most}; where you trust it, set {LARGE}=1")


def _gigabytes(size: int) -> str:
    return f"{size / (1 << 30):.3g} GB"


def _billions(count: int) -> str:
    return f"{count / 1e9:.3g} billion"
