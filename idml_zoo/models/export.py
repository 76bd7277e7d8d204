"""A model as one file for other runtimes: ONNX, or a torch.export program. Each outputs both embeddings of a batch."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from idml_zoo.models.model import IDMLModel

FORMATS = (".onnx", ".pt2")
TOLERANCE = 1e-4
_MOST = 65536  # images in a batch


class ExportError(ValueError):
    """A file that could not be made, or that gives other embeddings than the model."""


class _Pair(nn.Module):
    """Exporters know tensors, not dataclasses."""

    def __init__(self, model: IDMLModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        e = self.model(images)
        return e.semantic, e.uncertainty


def export(model: IDMLModel, path: str | Path) -> Path:
    """Writes a model for another runtime, and compares its embeddings with the model's; returns the path.

    The file takes ``images``, float32 ``(B, 3, S, S)`` preprocessed as ``create_transforms(model)[1]`` does, with any
    B; it gives ``semantic`` and ``uncertainty``, ``(B, D)`` each. An ONNX file holds the preprocessing as JSON, under
    the key "idml_zoo" of its metadata.

    Args:
        model: in eval mode or not; the file is of eval mode, in float32.
        path: ends in ".onnx" (needs ``pip install 'idml-zoo[export]'``) or ".pt2".

    Raises:
        ValueError: another ending.
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ExportError: the network cannot be exported, or the file's embeddings differ by more than 1e-4.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"an exported model ends in {' or '.join(FORMATS)}, got {path.name!r}")
    if path.suffix == ".onnx":
        _import_onnx()
    twin = _twin(model)
    size = model.transform.image_size
    example = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        batch = {0: torch.export.Dim("batch", min=1, max=_MOST)}
        program = torch.export.export(_Pair(twin), (example,), dynamic_shapes={"images": batch})
    except Exception as error:
        raise ExportError(f"{model.config['backbone']} cannot be exported ({_first_line(error)})") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as part:
        whole = Path(part) / path.name
        if path.suffix == ".onnx":
            _write_onnx(program, whole, model)
        else:
            torch.export.save(program, whole)
        for images in (example[:1], torch.cat([example, -example, 0.5 * example])):
            with torch.inference_mode():
                expected = _Pair(twin)(images)
            gap = max(float((a - b).abs().max()) for a, b in zip(_run(whole, images), expected, strict=True))
            if not gap <= TOLERANCE:
                raise ExportError(
                    f"the exported {path.name} is {gap:.2g} off for a batch of {len(images)}; not written"
                )
        whole.replace(path)
    return path


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _twin(model: IDMLModel) -> IDMLModel:
    import copy

    twin: IDMLModel = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    twin.backbone_frozen = False  # grad mode is no part of a graph
    return twin


def _import_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ONNX files need {error.name}: pip install 'idml-zoo[export]'", name=error.name) from error


def _largest(features: Tensor, output_size: list[int]) -> Any:
    """``adaptive_max_pool2d`` to one value for each channel, in operations that every exporter knows."""
    if any(side != 1 for side in output_size):
        return NotImplemented
    return features.amax((-2, -1), keepdim=True), features.flatten(-2).argmax(-1)[..., None, None]


def _write_onnx(program: Any, path: Path, model: IDMLModel) -> None:
    import onnx

    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["semantic", "uncertainty"]}
    try:
        # torch 2.7 has no ONNX function for it, and does not take it apart
        program = program.run_decompositions({torch.ops.aten.adaptive_max_pool2d.default: _largest})
        onnx_program = torch.onnx.export(program, (), None, dynamo=True, verbose=False, **names)
        assert onnx_program is not None
        onnx_program.save(path, external_data=False)
    except Exception as error:
        raise ExportError(f"{model.config['backbone']} cannot be written as ONNX ({_first_line(error)})") from error
    content = onnx.load(path)
    for value in (*content.graph.input, *content.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    about = {"model": model.config, "transform": model.transform.to_dict(), "tau": model.tau}
    onnx.helper.set_model_props(content, {"idml_zoo": json.dumps(about, sort_keys=True)})
    onnx.checker.check_model(content)
    onnx.save(content, path)


def _run(path: Path, images: Tensor) -> tuple[Tensor, ...]:
    if path.suffix == ".pt2":
        with torch.inference_mode():
            return tuple(torch.export.load(path).module()(images))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return tuple(torch.from_numpy(v) for v in session.run(["semantic", "uncertainty"], {"images": images.numpy()}))
