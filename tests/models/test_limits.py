"""What a stranger's configuration may cost: counted before anything is allocated, and nothing of the zoo is refused."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from support.saved_models import edit, load, refused, small

import idml_zoo
from idml_zoo.models import limits
from idml_zoo.models.files import WeightsError
from idml_zoo.models.pretrained import most_bytes
from idml_zoo.models.zoo import BACKBONES
from idml_zoo.registry import heads

# loads folders with and without weights; a line for each: loaded or the message, seconds, gigabytes beyond those before
LOAD = """
import resource, sys, time
import idml_zoo
from idml_zoo.models.files import WeightsError
idml_zoo.create_model("idml", backbone="test_resnet")
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
for folder in sys.argv[1:]:
    for pretrained in (True, False):
        before, start, said = peak(), time.process_time(), "loaded"
        try:
            idml_zoo.create_model("local-dir:" + folder, pretrained=pretrained)
        except WeightsError as error:
            said = "refused"
        print(said, time.process_time() - start, peak() - before)
"""

VIT = {"model__pooling": "native"}
ATTACKS = {
    "resized to 40,960 pixels": {"transform__image_size": 4096, "transform__crop_fraction": 0.1},
    "16 million pixels of a ViT": {"model__backbone": "test_vit", **VIT, "transform__image_size": 2048}
    | {"transform__crop_fraction": 1.0, "model__backbone_options": {"dynamic_img_size": True}},
    "patches of a pixel": {"model__backbone": "test_vit", **VIT, "transform__image_size": 160}
    | {"model__backbone_options": {"patch_size": 1}},
    "a giant with a wide head": {"model__backbone": "vit_giant_patch14_dinov2", **VIT, "model__embedding_dim": 65536},
    "a giant": {"model__backbone": "vit_giant_patch14_dinov2", **VIT, "model__embedding_dim": 8192},
}


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_attacks_are_refused_before_they_cost_anything(original, tmp_path):
    for number, attack in enumerate(ATTACKS):
        shutil.copytree(original[1], tmp_path / str(number))
        edit(tmp_path / str(number), **ATTACKS[attack])
    folders = [str(tmp_path / str(number)) for number in range(len(ATTACKS))]
    done = subprocess.run([sys.executable, "-c", LOAD, *folders], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 2 * len(ATTACKS)
    for (said, seconds, gigabytes), attack in zip(lines, [a for a in ATTACKS for _ in range(2)], strict=True):
        assert said == "refused" and float(seconds) < 5 and float(gigabytes) < 0.5, (attack, said, seconds, gigabytes)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_of_the_zoo_is_allowed_at_large_sizes(name):
    chosen, wide = BACKBONES[name], {"img_size": 518} if "dinov2" in name else {}
    size = 518 if wide else chosen.image_size or 448
    with torch.device("meta"):
        network = idml_zoo.create_model("idml", backbone=chosen.timm_name, embedding_dim=2048, **wide)
    limits.check_parameters(network)
    limits.check_work(network, size)


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_base_patch14_dinov2", 518), ("vit_base_patch16_siglip_512", 512), ("beit_base_patch16_384", 384)],
)
def test_large_published_networks_are_allowed(name, size):
    with torch.device("meta"):
        network = idml_zoo.create_model("idml", backbone=name)
    limits.check_parameters(network)
    limits.check_work(network, size)


def test_multiplications_and_activations_are_counted_right():
    with torch.device("meta"):
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 5)
        )
        meter = limits.Meter(network)
        with torch.no_grad(), meter:
            network(torch.empty(1, 3, 4, 4))
    assert meter.work == 3 * 8 * 9 * 16 + 8 * 16 * 5
    image, maps, end = 4 * 3 * 16, 4 * 8 * 16, 4 * 5
    assert meter.most == meter.traffic == image + maps + end and meter.live == 0


def test_resnet50_costs_what_is_published():
    with torch.device("meta"):
        network = idml_zoo.create_model("idml", backbone="resnet50").backbone
        meter = limits.Meter(network)
        with torch.no_grad(), meter:
            network(torch.empty(1, 3, 224, 224))
    assert meter.work == pytest.approx(4.09e9, rel=0.01)


def test_attention_matrices_count(saved):
    """Few multiplications, but N² × heads numbers at one time where attention is not fused."""

    class Attention(torch.nn.Module):
        def forward(self, images):
            x = images.flatten(2).mT
            return (x @ x.mT).softmax(-1) @ x

    with pytest.raises(ValueError, match="of activations at one time, at most 1 GB"):
        limits.check_work(Attention(), 160)
    limits.check_work(Attention(), 64)


def test_who_trusts_a_large_network_says_so(saved, monkeypatch):
    monkeypatch.setattr(limits, "MOST_PARAMETERS", 1000)
    assert "parameters, at most 1,000; where you trust it, set IDML_ZOO_LARGE=1" in refused(saved)
    with pytest.raises(WeightsError, match="at most 1,000"):
        most_bytes(saved / "config.json")  # before a download
    monkeypatch.setenv("IDML_ZOO_LARGE", "1")
    assert load(saved).config["head"] == "idml"


def test_work_is_no_matter_without_the_probe(saved, monkeypatch):
    monkeypatch.setattr(limits, "MOST_WORK", 1000)
    assert "multiplications" in refused(saved)
    assert load(saved, verify=False).config["head"] == "idml"


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path, monkeypatch):
    model = small()
    model.transform = model.transform.replace(image_size=1111)  # a network that was not looked at before
    monkeypatch.setattr(limits, "MOST_WORK", 1000)
    with pytest.raises(ValueError, match="could be saved but not loaded.*multiplications"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_configuration_of_the_sizes_of_before_is_still_read(saved):
    edit(saved, transform__image_size=1024, transform__crop_fraction=0.875, probe=None)
    assert (
        load(saved).transform.image_size == json.loads((saved / "config.json").read_text())["transform"]["image_size"]
    )


def test_a_users_own_head_may_do_what_the_device_meta_cannot(tmp_path):
    class Drawn(torch.nn.Module):
        def __init__(self, in_features, embedding_dim=8):
            super().__init__()
            self.semantic = torch.nn.Linear(in_features, embedding_dim)

        def forward(self, features):
            with torch.autocast(features.device.type, enabled=False):  # not on "meta"
                semantic = torch.nn.functional.normalize(self.semantic(features))
            return idml_zoo.Embedding(semantic, torch.zeros_like(semantic))

    heads.add("drawn_for_a_test", Drawn)
    try:
        model = idml_zoo.create_model("drawn_for_a_test", backbone="test_resnet")
        folder = model.save_pretrained(tmp_path / "model")
        again = idml_zoo.create_model(f"local-dir:{folder}", pretrained=True)
        assert torch.equal(again.head.semantic.weight, model.head.semantic.weight)
    finally:
        del heads._entries["drawn_for_a_test"]
