"""Exported files give the model's embeddings, for any batch, in a runtime that knows nothing of it."""

import json

import pytest
import torch

import idml_zoo
from idml_zoo.cli.main import main
from idml_zoo.models.export import ExportError, export


def small(backbone="test_resnet", head="idml"):
    model = idml_zoo.create_model(head, backbone=backbone, embedding_dim=16)
    model.transform = model.transform.replace(image_size=160 if backbone == "test_vit" else 64)
    return model


@pytest.mark.parametrize(
    ("backbone", "head"), [("test_resnet", "idml"), ("test_vit", "vmf"), ("test_resnet", "semantic")]
)
def test_onnx_gives_the_same_embeddings(tmp_path, backbone, head):
    pytest.importorskip("onnxscript", reason="needs pip install 'idml-zoo[export]'")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install 'idml-zoo[export]'")
    model = small(backbone, head)
    path = export(model.train(), tmp_path / "deep" / "model.onnx")
    assert model.training, "the model is left as it was"
    model.eval()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.shape[0] for i in session.get_inputs()] == ["batch"]
    about = json.loads(session.get_modelmeta().custom_metadata_map["idml_zoo"])
    assert about["transform"] == model.transform.to_dict()
    size = model.transform.image_size
    for count in (1, 3, 17):
        images = torch.randn(count, 3, size, size)
        semantic, uncertainty = session.run(["semantic", "uncertainty"], {"images": images.numpy()})
        expected = model(images)
        assert torch.allclose(torch.from_numpy(semantic), expected.semantic, atol=1e-4)
        assert torch.allclose(torch.from_numpy(uncertainty), expected.uncertainty, atol=1e-4)
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_a_torch_program_gives_the_same_embeddings(tmp_path):
    model = small()
    program = torch.export.load(export(model, tmp_path / "model.pt2")).module()
    images = torch.randn(5, 3, 64, 64)
    semantic, uncertainty = program(images)
    assert torch.allclose(semantic, model(images).semantic, atol=1e-4)
    assert torch.allclose(uncertainty, model(images).uncertainty, atol=1e-4)


def test_an_export_that_is_off_is_not_written(tmp_path, monkeypatch):
    from idml_zoo.models import export as module

    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"off for a batch of 1; not written"):
        export(small(), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path, capsys):
    out = tmp_path / "glyphs.pt2"
    assert main(["export", "idml_test_resnet_glyphs", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert main(["export", "idml_test_resnet_glyphs", str(tmp_path / "glyphs.tflite")]) == 1
    assert "ends in .onnx or .pt2" in capsys.readouterr().err
