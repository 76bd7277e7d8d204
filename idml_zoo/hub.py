"""Saving and loading a model: ``model.safetensors`` and ``config.json`` in one folder."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from idml_zoo.data.transforms import TransformConfig
from idml_zoo.model import IDMLModel
from idml_zoo.version import __version__

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
_KEYS = {"format", "idml_zoo", "model", "transform", "meta"}
_MODEL_KEYS = {"backbone", "head", "embedding_dim", "pooling", "head_options", "backbone_options"}


class WeightsError(ValueError):
    """Weights or their configuration are missing, damaged, or of another network."""


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_pretrained(model: IDMLModel, folder: str | Path, **meta: Any) -> Path:
    """Writes ``model.safetensors`` and ``config.json`` into ``folder``; each file whole or not at all.

    Args:
        model: the network.
        folder: made if it is not there.
        meta: JSON values to keep with it (benchmark, variant, seed, ...).
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "idml_zoo": __version__,
        "model": model.config,
        "transform": model.transform.to_dict(),
        "meta": meta,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        save_file(tensors, Path(part) / WEIGHTS, metadata={"format": "pt"})
        (Path(part) / CONFIG).write_text(text, encoding="utf-8")
        os.replace(Path(part) / WEIGHTS, folder / WEIGHTS)
        os.replace(Path(part) / CONFIG, folder / CONFIG)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The checked content of ``folder/config.json``; WeightsError with the reason where it will not do."""
    path = folder / CONFIG
    if not path.is_file():
        raise WeightsError(f"no {path}; expected a folder written by save_pretrained, with {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise WeightsError(f"{path} is not readable JSON ({error}); copy the folder again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise WeightsError(f"{path} has format {found!r}, this version of idml_zoo reads format {FORMAT}")
    model = config.get("model")
    if set(config) != _KEYS or not isinstance(model, dict) or set(model) != _MODEL_KEYS:
        odd = sorted((set(config) ^ _KEYS) | (set(model) ^ _MODEL_KEYS if isinstance(model, dict) else set()))
        raise WeightsError(f"{path} has missing or unknown keys: {', '.join(odd)}")
    return config


def load_local(folder: str | Path, pretrained: bool = True) -> IDMLModel:
    """The network of a folder written by :func:`save_pretrained`, in eval mode.

    Args:
        folder: where it lies.
        pretrained: load the weights (strictly); False gives the same network freshly initialised.

    Raises:
        WeightsError: a file is missing, truncated, or holds other tensors than the configuration says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    config = read_config(folder)
    spec = config["model"]
    try:
        transform = TransformConfig(**config["transform"])
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{folder / CONFIG}: bad 'transform' ({error})") from error
    model = IDMLModel(
        spec["backbone"],
        spec["head"],
        spec["embedding_dim"],
        spec["pooling"],
        spec["head_options"],
        transform,
        **spec["backbone_options"],
    )
    if pretrained:
        path = folder / WEIGHTS
        if not path.is_file():
            raise WeightsError(f"no {path}; the folder has a configuration but no weights")
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is not a whole safetensors file ({error}); copy or train it again") from error
        expected = model.state_dict()
        wrong = [k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape]
        if state.keys() != expected.keys() or wrong:
            missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
            raise WeightsError(
                f"{path} does not fit its configuration: {len(missing)} tensors missing {missing[:3]}, "
                f"{len(extra)} unknown {extra[:3]}, {len(wrong)} of another shape {wrong[:3]}"
            )
        if any(v.is_floating_point() and not bool(torch.isfinite(v).all()) for v in state.values()):
            raise WeightsError(f"{path} holds NaN or inf; the training that wrote it had diverged")
        model.load_state_dict(state, strict=True)
    return model.eval()
