"""The files of a model: ``model.safetensors`` and ``config.json``, written whole and read with suspicion.

What is read may come from a stranger. Only these two formats are read; sizes are bounded before anything is parsed, the
tensors' names, shapes and types must be those of the network that the configuration describes, and nothing in either
file can name another file or make code run.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idml_zoo.data.transforms import TransformConfig
from idml_zoo.models import metadata
from idml_zoo.models.limits import MOST_WIDTH, check_side
from idml_zoo.reliability.reliability import Reliability
from idml_zoo.version import __version__

FORMAT = 2  # 1 had no probe
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_KEYS = {"format", "idml_zoo", "versions", "model", "transform", "probe", "meta"}
_MODEL_KEYS = {"backbone", "head", "embedding_dim", "pooling", "head_options", "backbone_options"}
# What timm may be asked for by a file: sizes and rates. Its other options load files, or build networks of any depth.
BACKBONE_OPTIONS = {
    "img_size",
    "patch_size",
    "window_size",
    "output_stride",
    "dynamic_img_size",
    "dynamic_img_pad",
    "drop_rate",
    "drop_path_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "patch_drop_rate",
    "global_pool",
    "class_token",
    "reg_tokens",
}
# Options of timm.create_model that say where weights come from, not what the network is. They read paths, ask the Hub
# or change what is loaded, and no file describes a model that was made with them.
LOADING_OPTIONS = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "pretrained_filter_fn",
    "pretrained_model_args",
    "checkpoint_path",
    "cache_dir",
    "pruned",
}
MOST_CONFIG, MOST_HEADER = 1 << 20, 1 << 23  # bytes of config.json, and of what describes the tensors
_MOST_NUMBER = 1 << 16
_HALF_OR_FLOAT = {"F16", "BF16", "F32"}


class WeightsError(ValueError):
    """Weights or their configuration are missing, damaged, or of another network."""


@dataclass(frozen=True)
class Spec:
    """The checked content of a ``config.json``.

    Attributes:
        model: what :class:`~idml_zoo.models.model.IDMLModel` needs to build the same network.
        transform: its preprocessing.
        probe: what it said of the probe image when it was saved; None in format 1.
        versions: of the packages it was saved with.
        meta: anything else that was saved with it (benchmark, variant, seed, ...).
        tau: temperature τ > 0 of the introspective metric that the weights were trained with; None where the file has
            none. The file keeps it in ``meta``, where version 0.1 reads it.
        reliability: of the answers of these weights; None where the file has none, or one of another version. The file
            keeps it in ``meta`` too.
    """

    model: dict[str, Any]
    transform: TransformConfig
    probe: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    tau: float | None = None
    reliability: Reliability | None = None

    def to_json(self) -> str:
        """Returns the text of the file."""
        content = {
            "format": FORMAT,
            "idml_zoo": __version__,
            "versions": self.versions,
            "model": self.model,
            "transform": self.transform.to_dict(),
            "probe": self.probe,
            "meta": metadata.joined(self.meta, self.tau, self.reliability),
        }
        return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def check_spec(spec: Spec) -> None:
    """Raises ValueError where a configuration could not be read back."""
    try:
        parse_config(spec.to_json(), CONFIG)
    except WeightsError as error:
        raise ValueError(f"this model could be saved but not loaded: {error}") from error


def write_model(folder: str | Path, tensors: Mapping[str, Tensor], spec: Spec) -> Path:
    """Writes both files into ``folder``, each whole or not at all; makes the folder if it is missing.

    Raises:
        ValueError: the configuration could not be read back; nothing is written.
    """
    from safetensors.torch import save_file

    folder, text = Path(folder), spec.to_json()
    check_spec(spec)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        save_file(dict(tensors), Path(part) / WEIGHTS, metadata={"format": "pt"})
        (Path(part) / CONFIG).write_text(text, encoding="utf-8")
        os.chmod(Path(part) / WEIGHTS, 0o644)
        os.replace(Path(part) / WEIGHTS, folder / WEIGHTS)
        os.replace(Path(part) / CONFIG, folder / CONFIG)
    return folder


def local_files(folder: str | Path, weights: bool = True) -> tuple[Path, Path | None]:
    """Returns ``config.json`` and, with ``weights``, ``model.safetensors`` of a folder: regular files that lie in it.

    A link may point within the folder, or to where the Hub's cache keeps its contents.

    Raises:
        WeightsError: one is missing, leads elsewhere, or is no file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError(f"no folder {folder}; expected one written by save_pretrained, with {CONFIG} and {WEIGHTS}")
    config = _inside(folder, CONFIG, f"expected a folder written by save_pretrained, with {CONFIG} and {WEIGHTS}")
    return config, _inside(folder, WEIGHTS, "the folder has a configuration but no weights") if weights else None


def _inside(folder: Path, name: str, otherwise: str) -> Path:
    path = folder / name
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:  # a link to itself is a RuntimeError before Python 3.13
        raise WeightsError(f"no {path}; {otherwise}") from error
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(h) for h in homes):
        raise WeightsError(f"{path} is a link to {real}, outside of its folder; copy the file itself there")
    if not stat.S_ISREG(mode):
        raise WeightsError(f"{path} is not a regular file")
    return path


def read_config(path: Path) -> Spec:
    """Returns the checked content of a ``config.json``; raises WeightsError with the reason where it is refused."""
    try:
        size = path.stat().st_size
        if size > MOST_CONFIG:
            raise WeightsError(f"{path} has {size:,} bytes; a configuration has at most {MOST_CONFIG:,}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise WeightsError(f"no {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not readable JSON ({error}); copy the folder again") from error
    return parse_config(text, str(path))


def parse_config(text: str, name: str) -> Spec:
    """Returns what :func:`read_config` does, of the text of a file called ``name``."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) != len(pairs):
            raise ValueError("a key stands there twice")
        return dict(pairs)

    def finite(word: str) -> Any:
        value = float(word)
        if not math.isfinite(value):
            raise ValueError(f"{word} is not a number")
        return value

    try:
        content = json.loads(text, object_pairs_hook=unique, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{name} is not readable JSON ({error}); copy the folder again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{name} must hold an object, got {type(content).__name__}")
    version = content.get("format")
    if version not in (1, FORMAT) or isinstance(version, bool):
        raise WeightsError(f"{name} has format {version!r}, this version of idml_zoo reads 1 and {FORMAT}")
    keys = _KEYS if version == FORMAT else _KEYS - {"probe", "versions"}
    _check_keys(name, content, keys)
    model = content["model"]
    if not isinstance(model, dict):
        raise WeightsError(f"{name}: 'model' must be an object, got {type(model).__name__}")
    _check_keys(f"{name}, 'model'", model, _MODEL_KEYS)
    for key in ("versions", "meta"):
        if not isinstance(content.get(key, {}), dict):
            raise WeightsError(f"{name}: {key!r} must be an object")
    if not isinstance(content.get("probe"), (dict, type(None))):
        raise WeightsError(f"{name}: 'probe' must be an object or null")
    try:
        check_model(model)
        transform = _transform(content["transform"])
        meta, tau, reliability = metadata.parted(content["meta"], name)
    except (TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"{name}: {error}") from error
    return Spec(model, transform, content.get("probe"), content.get("versions", {}), meta, tau, reliability)


def _check_keys(where: str, content: dict[str, Any], expected: set[str]) -> None:
    if wrong := sorted(set(content) ^ expected):
        missing = ", ".join(k for k in wrong if k in expected) or "none"
        unknown = ", ".join(k[:40] for k in wrong[:9] if k not in expected) or "none"
        raise WeightsError(f"{where} has missing or unknown keys: missing {missing}; unknown {unknown}")


def check_model(model: Mapping[str, Any]) -> None:
    """Checks what a file asks for: only names without a scheme or a path, and small plain values, are allowed.

    Args:
        model: backbone, head, embedding_dim, pooling, head_options and backbone_options.

    Raises:
        ValueError: one of them is something else; the message names it and what is allowed.
    """
    for key in ("backbone", "head"):
        if not isinstance(model[key], str) or not re.fullmatch(r"[A-Za-z0-9_.+-]{1,120}", model[key]):
            raise ValueError(f"{key} must be a plain name, got {model[key]!r:.80}")
    if not isinstance(model["pooling"], str):
        raise ValueError(f"pooling must be a name, got {model['pooling']!r:.80}")
    dim = model["embedding_dim"]
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= MOST_WIDTH):
        raise ValueError(f"embedding_dim must be in 1–{MOST_WIDTH} or null, got {dim!r:.80}")
    if not isinstance(model["backbone_options"], dict):
        raise ValueError(f"backbone_options must be plain values by name, got {model['backbone_options']!r:.80}")
    if refused := sorted(map(str, model["backbone_options"].keys() - BACKBONE_OPTIONS)):
        raise ValueError(
            f"backbone_options may not have {', '.join(refused)[:80]}; a file may give "
            f"{', '.join(sorted(BACKBONE_OPTIONS))}"
        )
    for key in ("head_options", "backbone_options"):
        options = model[key]
        if not isinstance(options, dict) or not all(is_plain(v) for v in options.values()):
            raise ValueError(f"{key} must be plain values (at most {_MOST_NUMBER}) by name, got {options!r:.80}")


def is_plain(value: Any) -> bool:
    """Returns whether a value is a small number, up to four of them, or a short word, which can name no file."""
    if isinstance(value, (list, tuple)):
        return len(value) <= 4 and all(isinstance(v, (int, float)) and abs(v) <= _MOST_NUMBER for v in value)
    if isinstance(value, (int, float)):
        return abs(value) <= _MOST_NUMBER
    return value is None or (isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_+]{0,40}", value) is not None)


def _transform(values: Any) -> TransformConfig:
    if not isinstance(values, dict):
        raise ValueError(f"'transform' must be an object, got {type(values).__name__}")
    try:
        transform = TransformConfig(**values)
    except TypeError as error:
        raise ValueError(f"bad 'transform' ({error})") from error
    check_side(transform.image_size, transform.crop_fraction)
    return transform


def read_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file, which must be the ``expected`` ones in name, shape and kind.

    Args:
        path: the file.
        expected: the network's; their values are not looked at, so they may lie on the device "meta". Floating tensors
            may be stored in half precision.

    Raises:
        WeightsError: not a safetensors file, damaged, other tensors, or NaN or inf among them.
    """
    from safetensors import SafetensorError, safe_open

    _check_header_length(path)
    try:
        with safe_open(path, framework="pt") as file:
            _check_fit(path, {k: file.get_slice(k) for k in file.keys()}, expected)  # noqa: SIM118
            state = {k: file.get_tensor(k) for k in expected}
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} is not a whole safetensors file ({error}); copy or train it again") from error
    bad = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise WeightsError(f"{path} holds NaN or inf, in {bad[0]}; the training that wrote it had diverged")
    return state


def _check_header_length(path: Path) -> None:
    """Checks the file's first 8 bytes, the length of the description of its tensors, before a parser reads it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error})") from error
    length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
    if len(start) < 9 or length > min(size - 8, MOST_HEADER) or start[8:] != b"{":
        pickled = start[:2] == b"PK" or start[:1] == b"\x80"
        why = "it looks like a pickle of torch.save, which is never loaded" if pickled else f"{size:,} bytes"
        raise WeightsError(
            f"{path} is not a whole safetensors file ({why}); convert it with safetensors.torch.save_file, or copy or "
            "train it again"
        )


def _check_fit(path: Path, stored: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    shared = sorted(expected.keys() & stored.keys())
    shapes = [k for k in shared if tuple(stored[k].get_shape()) != tuple(expected[k].shape)]
    kinds = [k for k in shared if not _same_kind(stored[k].get_dtype(), expected[k].dtype)]
    if missing or extra or shapes or kinds:
        raise WeightsError(
            f"{path} does not fit its configuration: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(extra)} unknown {[k[:60] for k in extra[:3]]}, {len(shapes)} of another shape {shapes[:3]}, "
            f"{len(kinds)} of another type {kinds[:3]}"
        )


def _same_kind(stored: str, expected: torch.dtype) -> bool:
    if expected.is_floating_point:
        return stored in _HALF_OR_FLOAT
    return stored == {torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL", torch.uint8: "U8"}.get(expected)
