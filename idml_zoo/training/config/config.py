"""The configuration of a training run: six groups, and the keys that name the run and its files."""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import yaml

from idml_zoo.registry import nearest
from idml_zoo.results import NAME
from idml_zoo.training.config.checks import ConfigError, require_choice, require_positive
from idml_zoo.training.config.groups import (
    DataConfig,
    EvaluationConfig,
    HardwareConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
)

_ROW = re.compile(r"([A-Za-z0-9_.+-]|\{(variant|backbone|image_size)\})*")


@dataclass(frozen=True)
class Config:
    """Everything a run depends on.

    Recipes, checkpoints and result files hold it flat, one line for each key: see :meth:`flat` and :meth:`from_flat`.
    """

    benchmark: str = "cub"  # registered name; with `source`, the name for one's own images
    variant: str = "idml"  # see `idml-zoo list --what variants`
    name: str = ""  # row of the leaderboard; default: {variant}-{backbone}-{image_size}px
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracker: str = ""  # tensorboard | wandb, beside log.csv (pip install 'idml-zoo[track]')
    log_every: int = 10  # steps
    resume: str = "auto"  # auto: go on where a checkpoint of this run is | no: begin anew
    checkpoint_every: int = 0  # steps; besides, one after every epoch
    output: str = "runs"  # run folders go here
    leaderboard: str = "runs/leaderboard"  # result files and their table go here

    def __post_init__(self) -> None:
        require_choice(self, resume=("auto", "no"), tracker=("", "tensorboard", "wandb"))
        require_positive(self, "log_every")
        if self.checkpoint_every < 0:
            raise ConfigError(f"checkpoint_every must be 0 or a number of steps, got {self.checkpoint_every}")
        if self.tracker and not find_spec(self.tracker):
            raise ConfigError(f"tracker={self.tracker} needs its package: pip install 'idml-zoo[track]'")
        self._check_names()
        self._check_pieces()
        self._check_groups()

    def _check_names(self) -> None:
        """Raises where ``name`` or ``benchmark`` is no name of a folder: before the run, not after it."""
        # nothing but these fields: a format can also say how wide, or reach into an object
        row = self.row(0) if _ROW.fullmatch(self.name) else ""
        for key, value, made in (("name", self.name, row), ("benchmark", self.benchmark, self.benchmark)):
            if not NAME.fullmatch(made):
                fields = " and may hold {variant}, {backbone} and {image_size}" if key == "name" else ""
                raise ConfigError(f"{key} must be letters, digits, '.', '_', '+' or '-'{fields}, got {value!r}")

    def _check_pieces(self) -> None:
        """Raises where a batch does not divide into pieces, or a piece has no pairs of a class."""
        data, pieces = self.data, self.hardware.accumulate
        if pieces < 1 or data.batch_size % pieces:
            raise ConfigError(f"accumulate must divide batch_size {data.batch_size}, got {pieces}")
        if data.sampler == "pk" and pieces > 1:
            each, rest = divmod(data.images_per_class, pieces)
            if rest or each < 2:
                raise ConfigError(
                    f"sampler=pk with accumulate={pieces} needs images_per_class={2 * pieces}, or a multiple of "
                    f"{pieces} above, for pairs of a class in each piece; got {data.images_per_class}"
                )

    def _check_groups(self) -> None:
        """Raises where keys of two groups exclude each other."""
        data, network, optimizer, hardware = self.data, self.network, self.optimizer, self.hardware
        if hardware.shard and (optimizer.ema_decay or hardware.compile != "no" or network.cache_features):
            raise ConfigError("shard goes without ema_decay, compile and cache_features")
        if self.evaluation.validate_every > optimizer.epochs:
            raise ConfigError(
                f"validate_every={self.evaluation.validate_every} never comes in {optimizer.epochs} epochs"
            )
        if network.cache_features and (data.stream or data.augment_on_device):
            raise ConfigError("cache_features takes the training images as they are: no stream, no augment_on_device")
        if network.lora_rank and (
            network.freeze_backbone or network.backbone_trains or optimizer.ema_decay or hardware.shard
        ):
            raise ConfigError("lora_rank goes without freeze_backbone, backbone_trains, ema_decay and shard")

    def row(self, image_size: int) -> str:
        """Returns the row of the leaderboard: ``name`` with its fields filled in."""
        name = self.name or "{variant}-{backbone}-{image_size}px"
        row = name.format(variant=self.variant, backbone=self.network.short_backbone, image_size=image_size)
        return row + ("-validation" if self.evaluation.evaluate_on == "validation" else "")

    def flat(self) -> dict[str, Any]:
        """Returns every key with its value, without the groups, in the order of recipes and result files."""
        values = dataclasses.asdict(self)
        return {key: values[group][key] if group else values[key] for key, group in GROUP_OF.items()}

    @classmethod
    def from_flat(cls, values: dict[str, Any]) -> Config:
        """Makes a configuration of keys and values without groups; a key that is left out has its default.

        Raises:
            ConfigError: an unknown key, or an impossible value.
        """
        check_keys(values, "configuration")
        groups = {
            name: group(**{k: v for k, v in values.items() if GROUP_OF[k] == name}) for name, group in GROUPS.items()
        }
        return cls(**{k: v for k, v in values.items() if not GROUP_OF[k]}, **groups)

    def replace(self, **values: Any) -> Config:
        """Returns a copy with other values of some keys, named without their group."""
        return Config.from_flat(self.flat() | values)

    def to_yaml(self) -> str:
        """Returns the resolved configuration as text: every key, in the order of :meth:`flat`."""
        return yaml.safe_dump(self.flat(), sort_keys=False)


GROUPS: dict[str, Any] = {
    "data": DataConfig,
    "network": NetworkConfig,
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "hardware": HardwareConfig,
    "evaluation": EvaluationConfig,
}

# Keys whose place in files is older than the groups: each follows the key beside it. Stored recipes keep their order,
# and two runs with the same settings write the same text.
_PLACES = {
    "threads": "workers",
    "batch_size": "max_steps",
    "freeze_batchnorm": "clip_value",
    "ema_decay": "compile",
    "tracker": "select",
}


def _group_of() -> dict[str, str]:
    """Returns the group of each key ("" for the configuration itself), in the order of files."""
    order: dict[str, str] = {}
    for outer in dataclasses.fields(Config):
        for name in [f.name for f in dataclasses.fields(GROUPS[outer.name])] if outer.name in GROUPS else [outer.name]:
            assert name not in order, f"two keys are named {name}"
            order[name] = outer.name if outer.name in GROUPS else ""
    names = [name for name in order if name not in _PLACES]
    for name, before in _PLACES.items():
        names.insert(names.index(before) + 1, name)
    return {name: order[name] for name in names}


GROUP_OF = _group_of()
TYPES: dict[str, Any] = {
    key: typing.get_type_hints(GROUPS[group] if group else Config)[key] for key, group in GROUP_OF.items()
}
DEFAULTS: dict[str, Any] = Config().flat()


def check_keys(values: dict[str, Any], source: str) -> None:
    """Raises ConfigError for an unknown key, with the nearest one; ``source`` says where it stands."""
    for key in values:
        if key not in GROUP_OF:
            close = nearest(str(key), GROUP_OF)
            raise ConfigError(
                f"{source}: unknown key {key!r}; "
                + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(GROUP_OF)}")
            )
