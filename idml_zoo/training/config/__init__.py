"""The configuration of a training run: its groups, the checks of their keys, and reading it from files and words."""

from idml_zoo.training.config.checks import ConfigError
from idml_zoo.training.config.config import DEFAULTS, GROUP_OF, Config
from idml_zoo.training.config.groups import (
    DataConfig,
    EvaluationConfig,
    HardwareConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
)
from idml_zoo.training.config.load import check_values, load_config

__all__ = [
    "DEFAULTS",
    "GROUP_OF",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "HardwareConfig",
    "LossConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "check_values",
    "load_config",
]
