"""A fixed image and its embedding by a network, so that another timm or torch cannot silently change results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from idml_zoo.types import Embedding

NAME = "waves-1"
TOLERANCE = 1e-3  # far above the rounding of float32 on another processor, far below another resize or normalisation


def probe_image() -> Any:
    """Returns a PIL image, 320 × 240: waves and squares in whole numbers, the same on every machine."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:240, 0:320]
    waves = [np.abs((a * x + b * y) % 510 - 255) for a, b in ((3, 1), (1, 5))]
    squares = 255 * ((x // 40 + y // 40) % 2)
    return Image.fromarray(np.stack([*waves, (squares + x * 255 // 320) // 2], axis=2).astype(np.uint8))


def measure(network: Callable[[Tensor], Embedding], transform: Callable[[Any], Tensor]) -> dict[str, Any]:
    """Returns the embedding of :func:`probe_image`, as JSON values.

    Args:
        network: in eval mode, in float32, on the CPU.
        transform: PIL image to its input.
    """
    with torch.inference_mode():
        e = network(transform(probe_image()).unsqueeze(0))
    return {"image": NAME, "semantic": _rounded(e.semantic[0]), "uncertainty": _rounded(e.uncertainty[0])}


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{v:.6g}") for v in values.tolist()]


def difference(stored: Mapping[str, Any], measured: Mapping[str, Any]) -> float:
    """Returns the distance of two probes: the larger of ‖Δŝ‖ and ‖Δu‖ / ‖u‖ (u = 0 counts as 1e-6).

    It is inf where their widths differ.

    Raises:
        ValueError: ``stored`` is not a probe, or one of another image.
    """
    if set(stored) != {"image", "semantic", "uncertainty"}:
        raise ValueError(f"a probe has image, semantic and uncertainty, got {', '.join(map(str, stored))}")
    if stored["image"] != measured["image"]:
        raise ValueError(f"a probe of the image {stored['image']!r}, this version knows {measured['image']!r}")
    try:
        parts = [
            [torch.tensor(p[k], dtype=torch.float64) for k in ("semantic", "uncertainty")] for p in (stored, measured)
        ]
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"a probe holds two lists of numbers ({error})") from error
    (s, u), (s2, u2) = parts
    if s.shape != s2.shape or u.shape != u2.shape or s.ndim != 1:
        return float("inf")
    norm = torch.linalg.vector_norm
    return float(torch.maximum(norm(s - s2), norm(u - u2) / norm(u).clamp(min=1e-6)).nan_to_num(float("inf")))
