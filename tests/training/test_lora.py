"""LoRA: a backbone that stays as it is, but for a product of two narrow matrices."""

import copy

import numpy as np
import pytest
import torch
import train
from conftest import ROOT
from safetensors.torch import load_file
from support.tiny_runs import tiny

import idml_zoo
from idml_zoo.reports.bootstrap import load_queries
from idml_zoo.results import read_results
from idml_zoo.training.config import ConfigError, load_config
from idml_zoo.training.errors import INTERRUPTED
from idml_zoo.training.lora import LowRank, add_lora, merge


@pytest.fixture
def model():
    torch.manual_seed(0)
    return idml_zoo.create_model("idml", backbone="test_vit", embedding_dim=16).eval()


def test_it_begins_as_the_network_and_merges_into_one(model):
    plain, images = copy.deepcopy(model), torch.randn(2, 3, 160, 160)
    chosen = add_lora(model, 4, 16.0, r"attn\.(qkv|proj)$")
    assert chosen and all(isinstance(model.backbone.get_submodule(n), LowRank) for n in chosen)
    assert torch.equal(model(images).semantic, plain(images).semantic), "B is 0 at first"
    trains = [n for n, p in model.backbone.named_parameters() if p.requires_grad]
    assert len(trains) == 2 * len(chosen) and {n.rpartition(".")[2] for n in trains} == {"down", "up"}
    with torch.no_grad():
        for name in chosen:
            model.backbone.get_submodule(name).up.normal_(std=0.1)
        model.head.semantic.weight.mul_(1.5)
    merged = copy.deepcopy(plain)
    merge(model, merged)
    assert not torch.allclose(merged(images).semantic, plain(images).semantic, atol=1e-3)
    for a, b in ((model(images), merged(images)),):
        torch.testing.assert_close(a.semantic, b.semantic, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.uncertainty, b.uncertainty, atol=1e-5, rtol=1e-4)
    layer = model.backbone.get_submodule(chosen[0])
    dense = layer.layer.weight.double() + 16 / 4 * layer.up.double() @ layer.down.double()
    torch.testing.assert_close(merged.backbone.get_submodule(chosen[0]).weight.double(), dense, atol=1e-6, rtol=1e-6)


def test_a_backbone_that_multiplies_by_itself_is_adapted_too():
    """Swin v2, BEiT and EVA take a layer's weight instead of calling it."""
    model = idml_zoo.create_model("idml", backbone="beit_base_patch16_224", embedding_dim=8, depth=1, embed_dim=96)
    plain, images = copy.deepcopy(model).eval(), torch.randn(1, 3, 224, 224)
    chosen = add_lora(model.eval(), 2, 4.0, r"attn\.(qkv|proj)$")
    assert torch.allclose(model(images).semantic, plain(images).semantic, atol=1e-6)
    model(images).semantic[0, 0].backward()
    up = [model.backbone.get_submodule(n).up for n in chosen]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in up)


def test_a_run_that_was_killed_while_measuring_measures_what_it_trained(tmp_path, monkeypatch):
    more = ["backbone=test_vit", "image_size=160", "variant=idml_no_mixup", "lora_rank=2", "lr=1e-1", "name=killed"]
    with monkeypatch.context() as patched:
        patched.setattr(train, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert train.main(tiny(tmp_path, *more)) == INTERRUPTED
    assert train.main(tiny(tmp_path, *more)) == 0
    (result,) = read_results(tmp_path / "board" / "results")
    folder = tmp_path / "runs" / "mine" / "killed" / "seed0" / "model"
    again = idml_zoo.evaluate(
        idml_zoo.create_model(f"local-dir:{folder}", pretrained=True),
        idml_zoo.table_benchmark("mine", tmp_path / "photos"),
        device="cpu",
        progress=False,
    )
    assert result.metrics["auroc_margin"] == again.metrics["auroc_margin"]
    near = [np.sort(v) for v in (load_queries(tmp_path / "board" / "results", result)["top1_similarity"],)]
    np.testing.assert_allclose(near[0], np.sort(again.per_query["top1_similarity"]), atol=1e-5)


def test_a_run_saves_a_network_like_any_other_and_goes_on_where_it_was(tmp_path, monkeypatch):
    from idml_zoo.training import checkpoints

    # a learned embedding of images needs no warm-up; the head's own rate is enough to see that A and B learn
    more = ["backbone=test_vit", "variant=idml_no_mixup", "lora_rank=2", "warmup_epochs=0", "epochs=3", "lr=1e-2"]
    whole = tiny(tmp_path, *more, "name=whole")
    whole = [w for w in whole if w != "warmup_epochs=1"]
    assert train.main(whole) == 0
    folder = tmp_path / "runs" / "mine" / "whole" / "seed0" / "model"
    saved = load_file(folder / "model.safetensors")
    assert not [k for k in saved if "down" in k or ".layer." in k]
    model = idml_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    fresh = tmp_path / "start"
    assert train.main([*whole, "name=start", "lr=1e-12", f"output={fresh}"]) == 0
    start = load_file(fresh / "mine" / "start" / "seed0" / "model" / "model.safetensors")
    moved = {k for k in saved if not torch.allclose(saved[k], start[k], atol=1e-6)}
    assert {k for k in moved if k.startswith("backbone.")} == {
        f"backbone.{n}.weight" for n, m in model.backbone.named_modules() if n.endswith(("attn.qkv", "attn.proj"))
    }
    # stopped after its second epoch, it ends as the whole one
    real, written = checkpoints.write, []

    def stop(*arguments):
        written.append(real(*arguments))
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write", stop)
        assert train.main([*whole, "name=parts"]) == INTERRUPTED
    assert train.main([*whole, "name=parts"]) == 0
    parts = load_file(tmp_path / "runs" / "mine" / "parts" / "seed0" / "model" / "model.safetensors")
    assert all(torch.equal(saved[k], parts[k]) for k in saved)


def test_what_cannot_be_is_said(model, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"fits none of the backbone's \d+ linear layers, such as"):
        add_lora(model, 4, 16.0, "conv")
    with pytest.raises(ConfigError, match="lora_rank goes without freeze_backbone"):
        load_config(ROOT / "recipes" / "cub_dinov2_lora.yaml", ["freeze_backbone=true"])
    with pytest.raises(ConfigError, match="lora_alpha above 0"):
        load_config(ROOT / "recipes" / "cub_dinov2_lora.yaml", ["lora_alpha=0"])
    assert train.main(tiny(tmp_path, "lora_rank=2")) == 1
    assert "LoRA is for transformers" in capsys.readouterr().err
