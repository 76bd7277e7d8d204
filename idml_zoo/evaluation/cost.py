"""What an embedding costs: multiplications, images a second, bytes in an index."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from idml_zoo.data.transforms import TransformConfig
from idml_zoo.evaluation.embed import evaluating
from idml_zoo.metric import Metric

_SECONDS = 0.3  # for which the rate is measured


def embedding_cost(
    model: Any, transform: TransformConfig | None, dim: int, metric: Metric, device: torch.device, batch_size: int = 64
) -> dict[str, float]:
    """Measures what a model that takes tensors costs; of a model that takes PIL images only the bytes.

    Args:
        model: in whatever mode.
        transform: its preprocessing; None where it takes PIL images.
        dim: D of its embedding.
        metric: of the search.
        device: where the rate is measured.
        batch_size: images at once, for the rate.

    Returns:
        ``bytes_per_image``: of float32 vectors in an index (twice as many for the introspective search, which needs the
        uncertainty too); ``gmacs``: 1e9 multiply-adds for one image, as torch counts them; ``images_per_second``:
        forward passes of a batch of random images, on this device and as busy as it was.
    """
    cost = {"bytes_per_image": 4.0 * dim * (2 if metric.introspective else 1)}
    if transform is None:
        return cost
    side = transform.image_size
    with evaluating(model.to(device)), torch.no_grad():
        images = torch.randn(batch_size, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
        if count := gmacs(model, images[:1]):  # a callable that computes without torch has none to be counted
            cost["gmacs"] = count
        cost["images_per_second"] = _rate(model, images)
    return cost


def gmacs(model: Any, images: torch.Tensor) -> float:
    """1e9 multiply-adds of a forward pass, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:  # of their shapes
        return sdpa_flop_count(query, key, value)

    # torch 2.7 leaves out the attention of a CPU
    formulas = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        model(images)
    return counter.get_total_flops() / 2e9


def _rate(model: nn.Module, images: torch.Tensor) -> float:
    def wait() -> None:
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        elif images.device.type == "mps":
            torch.mps.synchronize()

    model(images)
    wait()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS or not count:
        model(images)
        wait()
        count += len(images)
    return count / (time.perf_counter() - start)
