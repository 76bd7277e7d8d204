"""A model from its files: strictly, and checked by its probe. :mod:`idml_zoo.models.saving` writes them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from idml_zoo.data.transforms import build_transforms
from idml_zoo.files import sha256_of
from idml_zoo.models import probe
from idml_zoo.models.files import MOST_HEADER, Spec, WeightsError, read_config, read_tensors
from idml_zoo.models.model import IDMLModel
from idml_zoo.models.saving import Origin, build_network, expected_tensors, package_versions, tensor_sums


def load(
    config: Path,
    weights: Path | None,
    verify: bool = True,
    source: str = "",
    revision: str | None = None,
    sha256: str | None = None,
) -> IDMLModel:
    """Returns the network of a ``config.json``, in eval mode, float32, on the CPU.

    The reliability that was saved with its weights comes with them. One of another version does not, with a warning:
    the weights are sound without it, and refusing them would leave nothing to fit a new one with.

    Args:
        config: path of the file.
        weights: path of its ``model.safetensors``; None for the same network freshly initialised.
        verify: compute the probe again, and refuse where it has changed, or where that costs too much.
        source, revision: for :class:`~idml_zoo.models.saving.Origin`.
        sha256: that the weights must have; None for any.

    Raises:
        WeightsError: see :mod:`idml_zoo.models.files`; or the sha256 or the probe is another.
    """
    spec = read_config(config)
    expected = expected_tensors(IDMLModel.of_spec, spec, config, verify)  # before the weights are looked at
    model: IDMLModel
    if weights is None:
        model = build_network(IDMLModel.of_spec, spec, config)
        return model.eval()
    if (size := weights.stat().st_size) > _size_limit(expected):
        raise WeightsError(f"{weights} has {size:,} bytes, the network of {config} at most {_size_limit(expected):,}")
    actual = sha256_of(weights)
    if sha256 not in (None, actual):
        raise WeightsError(
            f"{weights} has the sha256 {actual[:12]}…, expected {str(sha256)[:12]}…: other weights, or damaged ones; "
            "delete it and get it again"
        )
    state = read_tensors(weights, expected)
    model = build_network(IDMLModel.of_spec, spec, config)
    model.eval().load_state_dict(state, strict=True)
    model.origin = Origin(source or str(config.parent), spec, actual, revision, tensor_sums(model))
    model.reliability = spec.reliability
    if verify and spec.probe is not None:
        _verify(model, spec, weights)
    return model


def most_bytes(config: Path) -> int:
    """Returns what the weights of a ``config.json`` may weigh at most: in float32, with their description."""
    return _size_limit(expected_tensors(IDMLModel.of_spec, read_config(config), config, False))


def _size_limit(expected: dict[str, Tensor]) -> int:
    return sum(v.numel() * max(v.element_size(), 4) for v in expected.values()) + MOST_HEADER


def _verify(model: IDMLModel, spec: Spec, weights: Path) -> None:
    measured = probe.measure(model, build_transforms(model.transform)[1])
    try:
        difference = probe.difference(spec.probe or {}, measured)
    except ValueError as error:
        raise WeightsError(f"{weights.parent}: {error}; verify=False loads the weights without it") from error
    if difference > probe.TOLERANCE:
        versions = package_versions()
        changed = [f"{k} {v} → {versions.get(k)}" for k, v in spec.versions.items() if v != versions.get(k)]
        raise WeightsError(
            f"{weights.parent}: the embedding of the probe image is {difference:.2g} away from the stored one (at most "
            f"{probe.TOLERANCE:g}), so results would not be those of these weights; since they were saved: "
            f"{', '.join(changed) or 'no version has changed'}. verify=False loads them all the same"
        )
