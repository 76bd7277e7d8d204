"""A model to its files and back: strictly, checked by its probe."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from idml_zoo.data.transforms import build_transforms
from idml_zoo.files import sha256_of
from idml_zoo.models import limits, probe
from idml_zoo.models.files import (
    CONFIG,
    MOST_HEADER,
    Spec,
    WeightsError,
    check_spec,
    parse_config,
    read_config,
    read_tensors,
    write_model,
)
from idml_zoo.models.model import IDMLModel
from idml_zoo.results import CHECKPOINTS
from idml_zoo.similarity import TAU


@dataclass(frozen=True)
class Origin:
    """Where a model's weights come from.

    Attributes:
        source: folder, or "user/name" of the Hub.
        spec: what was saved with them.
        sha256: of ``model.safetensors``.
        revision: commit on the Hub; None where they come from elsewhere.
        sums: of each tensor as it was loaded.
    """

    source: str
    spec: Spec
    sha256: str
    revision: str | None = None
    sums: tuple[float, ...] = field(default=(), repr=False)

    @property
    def tau(self) -> float:
        """The temperature of the introspective metric that they were trained with; 5 where the file names none."""
        tau = self.spec.meta.get("tau")
        return float(tau) if isinstance(tau, (int, float)) and 0 < tau < 1e30 else TAU

    def still(self, model: IDMLModel) -> bool:
        """Whether the model has these weights still, or was trained since."""
        now = _sums(model)
        return len(now) == len(self.sums) and np.allclose(self.sums, now, rtol=1e-9, atol=1e-9)

    def about(self, model: IDMLModel) -> dict[str, Any]:
        """What a result file says of the model: arguments of :func:`idml_zoo.evaluate`."""
        meta = self.spec.meta
        if not self.still(model):
            old = f"begun from weights {self.sha256[:12]} of {self.source}"
            return {
                "pretrained": old,
                "variant": "unknown",
                "checkpoint": "last",
                "weights_sha256": None,
                "training": "",
            }
        return {
            "pretrained": str(meta.get("pretrained", "unknown")),
            "variant": str(meta.get("variant", "unknown")),
            "checkpoint": meta.get("checkpoint") if meta.get("checkpoint") in CHECKPOINTS else "last",
            "weights_sha256": self.sha256,
            "training": "weights of its own" if self.revision is None else f"weights of {self.source}@{self.revision}",
        }


def save(model: IDMLModel, folder: Path, dtype: torch.dtype | None = None, meta: dict[str, Any] | None = None) -> Path:
    """See :meth:`IDMLModel.save_pretrained`."""
    check_can_be_loaded(model)
    twin = copy.deepcopy(model).cpu().eval()
    first = next(twin.parameters()).dtype
    if bad := _not_finite(twin):
        raise ValueError(f"{bad} holds NaN or inf; a diverged model is not saved")
    if dtype is None and first == torch.float64:  # no network is loaded in more than float32
        dtype = torch.float32
    if dtype is not None:
        twin = twin.to(dtype)
    if bad := _not_finite(twin):
        raise ValueError(f"{bad} is too large for {dtype}; save it in bfloat16 or float32")
    tensors = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in twin.state_dict().items()}
    measured = probe.measure(twin.float(), build_transforms(model.transform)[1])
    known = model.origin.spec.meta if model.origin else {}
    if model.origin and not model.origin.still(model):  # what was said of the weights is no longer so
        known = {"tau": model.tau}
    return write_model(
        folder, tensors, Spec(model.config, model.transform, measured, _versions(), {**known, **(meta or {})})
    )


def check_can_be_loaded(model: IDMLModel) -> None:
    """ValueError where the files of this network would be refused by :func:`load`: before hours are spent on it."""
    spec = Spec(model.config, model.transform)
    check_spec(spec)
    try:
        _fits(spec.to_json())
    except WeightsError as error:
        raise ValueError(f"this model could be saved but not loaded: {error}") from error


@lru_cache(64)  # a training saves the same network after every epoch
def _fits(text: str) -> None:
    _plan(parse_config(text, CONFIG), CONFIG)


def _sums(model: IDMLModel) -> tuple[float, ...]:
    """Of each floating tensor: what tells trained weights from those that were loaded."""
    return tuple(float(v.cpu().double().sum()) for v in model.state_dict().values() if v.is_floating_point())


def _not_finite(model: IDMLModel) -> str | None:
    """The first tensor that holds NaN or inf."""
    state = model.state_dict().items()
    return next((k for k, v in state if v.is_floating_point() and not bool(torch.isfinite(v).all())), None)


def load(
    config: Path,
    weights: Path | None,
    verify: bool = True,
    source: str = "",
    revision: str | None = None,
    sha256: str | None = None,
) -> IDMLModel:
    """The network of a ``config.json``, in eval mode, float32, on the CPU.

    Args:
        config: path of the file.
        weights: path of its ``model.safetensors``; None for the same network freshly initialised.
        verify: compute the probe again, and refuse where it has changed, or where that costs too much.
        source, revision: for :class:`Origin`.
        sha256: that the weights must have; None for any.

    Raises:
        WeightsError: see :mod:`idml_zoo.models.files`; or the sha256 or the probe is another.
    """
    spec = read_config(config)
    expected = _plan(spec, config, verify)  # before the weights are looked at
    if weights is None:
        return _build(spec, config).eval()
    if (size := weights.stat().st_size) > _most_bytes(expected):
        raise WeightsError(f"{weights} has {size:,} bytes, the network of {config} at most {_most_bytes(expected):,}")
    found = sha256_of(weights)
    if sha256 not in (None, found):
        raise WeightsError(
            f"{weights} has the sha256 {found[:12]}…, expected {str(sha256)[:12]}…: other weights, or damaged ones; "
            "delete it and get it again"
        )
    state = read_tensors(weights, expected)
    model = _build(spec, config).eval()
    model.load_state_dict(state, strict=True)
    model.origin = Origin(source or str(config.parent), spec, found, revision, _sums(model))
    if verify and spec.probe is not None:
        _verify(model, spec, weights)
    return model


def most_bytes(config: Path) -> int:
    """What the weights of a ``config.json`` may weigh at most: in float32, with their description."""
    return _most_bytes(_plan(read_config(config), config, False))


def _most_bytes(expected: dict[str, Tensor]) -> int:
    return sum(v.numel() * max(v.element_size(), 4) for v in expected.values()) + MOST_HEADER


def _plan(spec: Spec, config: Path | str, run: bool = True) -> dict[str, Tensor]:
    """The network's tensors without values: costs no memory, whatever a stranger asks for.

    Raises:
        WeightsError: it has more parameters, or costs more to ``run`` on one image, than
            :mod:`idml_zoo.models.limits` allow.
    """
    with torch.device("meta"):
        network = _build(spec, config).eval()
    if not limits.lifted():
        try:
            limits.check_parameters(network)
            if run:
                limits.check_work(network, spec.transform.image_size)
        except ValueError as error:
            raise WeightsError(f"{config}: the network that it describes is refused, {error}") from error
    return dict(network.state_dict())


def _build(spec: Spec, config: Path | str) -> IDMLModel:
    m = spec.model
    try:
        return IDMLModel(
            m["backbone"],
            m["head"],
            m["embedding_dim"],
            m["pooling"],
            m["head_options"],
            spec.transform,
            **m["backbone_options"],
        )
    except (ValueError, TypeError, RuntimeError, AssertionError, LookupError, ArithmeticError) as error:
        raise WeightsError(f"{config}: the network that it describes cannot be built ({error})") from error


def _verify(model: IDMLModel, spec: Spec, weights: Path) -> None:
    found = probe.measure(model, build_transforms(model.transform)[1])
    try:
        off = probe.difference(spec.probe or {}, found)
    except ValueError as error:
        raise WeightsError(f"{weights.parent}: {error}; verify=False loads the weights without it") from error
    if off > probe.TOLERANCE:
        now = _versions()
        changed = [f"{k} {v} → {now.get(k)}" for k, v in spec.versions.items() if v != now.get(k)]
        raise WeightsError(
            f"{weights.parent}: the embedding of the probe image is {off:.2g} away from the stored one (at most "
            f"{probe.TOLERANCE:g}), so results would not be those of these weights; since they were saved: "
            f"{', '.join(changed) or 'no version has changed'}. verify=False loads them all the same"
        )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "torchvision", "timm", "pillow")}
