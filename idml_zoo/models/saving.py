"""A model to its files, with a check that :mod:`idml_zoo.models.pretrained` can read them again.

Knows a model by the protocol :class:`SavableModel` only, so that the model's own file can import this one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from idml_zoo.data.transforms import TransformConfig, build_transforms
from idml_zoo.metric import TAU
from idml_zoo.models import limits, probe
from idml_zoo.models.files import CONFIG, Spec, WeightsError, check_spec, parse_config, write_model
from idml_zoo.reliability.reliability import Reliability
from idml_zoo.results import CHECKPOINTS, TrainingRecord


class SavableModel(Protocol):
    """What saving needs of a model; :class:`~idml_zoo.models.model.IDMLModel` is one.

    Attributes:
        config: arguments that build the same network, as plain JSON values.
        transform: preprocessing that belongs to the weights.
        origin: where the weights come from; None for a network that was not loaded.
        reliability: of the answers of a search with its embeddings; None where there is none.
    """

    config: dict[str, Any]
    transform: TransformConfig
    origin: Origin | None
    reliability: Reliability | None

    @property
    def tau(self) -> float:
        """Temperature τ of the introspective metric that belongs to the weights."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns the weights by name."""
        ...

    @staticmethod
    def of_spec(spec: Spec) -> nn.Module:
        """Returns the network of a configuration, freshly initialised."""
        ...


@dataclass(frozen=True)
class Origin:
    """Where a model's weights come from.

    Attributes:
        source: folder, or "user/name" of the Hub.
        spec: what was saved with them.
        sha256: of ``model.safetensors``.
        revision: commit on the Hub; None where they come from elsewhere.
        sums: of each floating tensor as it was loaded.
    """

    source: str
    spec: Spec
    sha256: str
    revision: str | None = None
    sums: tuple[float, ...] = field(default=(), repr=False)

    @property
    def tau(self) -> float:
        """Temperature of the introspective metric that the weights were trained with; 5 where the file has none."""
        return TAU if self.spec.tau is None else self.spec.tau

    def still(self, model: SavableModel) -> bool:
        """Whether the model has these weights still; False where it was trained since."""
        sums = tensor_sums(model)
        return len(sums) == len(self.sums) and np.allclose(self.sums, sums, rtol=1e-9, atol=1e-9)

    def training_record(self, model: SavableModel) -> TrainingRecord:
        """Returns what a result says of the training of ``model``, which was loaded from these weights."""
        if not self.still(model):
            return TrainingRecord(
                pretrained=f"begun from weights {self.sha256[:12]} of {self.source}", checkpoint="last"
            )
        meta, checkpoint = self.spec.meta, self.spec.meta.get("checkpoint")
        return TrainingRecord(
            variant=str(meta.get("variant", "unknown")),
            pretrained=str(meta.get("pretrained", "unknown")),
            checkpoint=checkpoint if checkpoint in CHECKPOINTS else "last",
            description="weights of its own" if self.revision is None else f"weights of {self.source}@{self.revision}",
            weights_sha256=self.sha256,
        )


def save(
    model: SavableModel,
    folder: Path,
    dtype: torch.dtype | None = None,
    meta: dict[str, Any] | None = None,
    tau: float | None = None,
) -> Path:
    """Writes a model's two files; see :meth:`idml_zoo.models.model.IDMLModel.save_pretrained`."""
    check_can_be_loaded(model)
    reliability = _reliability(model)
    twin: Any = copy.deepcopy(model)
    twin = twin.cpu().eval()
    if bad := _not_finite(twin):
        raise ValueError(f"{bad} holds NaN or inf; a diverged model is not saved")
    if dtype is None and next(twin.parameters()).dtype == torch.float64:  # no network is loaded in more than float32
        dtype = torch.float32
    if dtype is not None:
        twin = twin.to(dtype)
    if bad := _not_finite(twin):
        raise ValueError(f"{bad} is too large for {dtype}; save it in bfloat16 or float32")
    tensors = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in twin.state_dict().items()}
    measured = probe.measure(twin.float(), build_transforms(model.transform)[1])
    inherited, inherited_tau = _inherited(model)
    spec = Spec(
        model.config,
        model.transform,
        measured,
        package_versions(),
        {**inherited, **(meta or {})},
        inherited_tau if tau is None else tau,
        reliability,
    )
    return write_model(folder, tensors, spec)


def _inherited(model: SavableModel) -> tuple[dict[str, Any], float | None]:
    """Returns (meta, τ) that go over to the new files: of unchanged weights all, of weights trained since τ alone."""
    if model.origin is None:
        return {}, None
    if model.origin.still(model):
        return model.origin.spec.meta, model.origin.spec.tau
    return {}, model.tau


def _reliability(model: SavableModel) -> Reliability | None:
    """Returns the reliability that goes into the files: none that came with weights which were trained since."""
    if not isinstance(model.reliability, Reliability | None):
        raise TypeError(
            f"model.reliability must be an idml_zoo.Reliability or None, got {type(model.reliability).__name__}; "
            "idml_zoo.Reliability.load reads one from a file"
        )
    origin = model.origin
    stale = origin is not None and model.reliability == origin.spec.reliability and not origin.still(model)
    return None if stale else model.reliability


def check_can_be_loaded(model: SavableModel) -> None:
    """Raises ValueError where the files of this network would be refused by :func:`idml_zoo.models.pretrained.load`.

    Called before hours are spent on its training.
    """
    spec = Spec(model.config, model.transform)
    check_spec(spec)
    try:
        _check_fits(model.of_spec, spec.to_json())
    except WeightsError as error:
        raise ValueError(f"this model could be saved but not loaded: {error}") from error


@lru_cache(64)  # a training saves the same network after every epoch
def _check_fits(build: Callable[[Spec], nn.Module], text: str) -> None:
    expected_tensors(build, parse_config(text, CONFIG), CONFIG)


def expected_tensors(
    build: Callable[[Spec], nn.Module], spec: Spec, config: Path | str, run: bool = True
) -> dict[str, Tensor]:
    """Returns the tensors of a configuration's network on the device "meta": no memory, whatever a stranger asks for.

    Args:
        build: :meth:`idml_zoo.models.model.IDMLModel.of_spec`.
        spec: the configuration.
        config: its file, for messages.
        run: refuse also what costs too much to run on one image.

    Raises:
        WeightsError: the network cannot be built, or passes one of the limits of :mod:`idml_zoo.models.limits`.
    """
    import timm  # noqa: F401 - not for the first time on "meta": what it imports of torch 2.7 fails there

    with torch.device("meta"):
        network = build_network(build, spec, config).eval()
    if not limits.lifted():
        try:
            limits.check_parameters(network)
            if run:
                limits.check_work(network, spec.transform.image_size)
        except ValueError as error:
            raise WeightsError(f"{config}: the network that it describes is refused, {error}") from error
    return dict(network.state_dict())


def build_network(build: Callable[[Spec], Any], spec: Spec, config: Path | str) -> Any:
    """Returns the network of a configuration; raises WeightsError, naming the file, where it cannot be built."""
    try:
        return build(spec)
    except (ValueError, TypeError, RuntimeError, AssertionError, LookupError, ArithmeticError) as error:
        raise WeightsError(f"{config}: the network that it describes cannot be built ({error})") from error


def tensor_sums(model: SavableModel) -> tuple[float, ...]:
    """Returns the sum of each floating tensor, which tells trained weights from those that were loaded."""
    return tuple(float(v.cpu().double().sum()) for v in model.state_dict().values() if v.is_floating_point())


def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that an embedding depends on."""
    return {name: version(name) for name in ("torch", "torchvision", "timm", "pillow")}


def _not_finite(model: SavableModel) -> str | None:
    """Returns the name of the first tensor that holds NaN or inf; None where there is none."""
    state = model.state_dict().items()
    return next((k for k, v in state if v.is_floating_point() and not bool(torch.isfinite(v).all())), None)
