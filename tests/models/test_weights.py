"""Saving and loading: the same network comes back, with what was said of it."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from support.saved_models import edit, load, refused, small

import idml_zoo
from idml_zoo.evaluation.embed import embed
from idml_zoo.files import sha256_of
from idml_zoo.models import probe
from idml_zoo.models.zoo import EMBEDDED, PUBLISHED
from idml_zoo.registry import benchmarks
from idml_zoo.reports.bootstrap import load_queries
from idml_zoo.reports.card import check_card
from idml_zoo.results import read_result, read_results

IMAGES = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64).sin()


def test_save_and_load_give_the_same_embedding(original):
    model, folder = original
    again = load(folder)
    assert torch.equal(model(IMAGES).semantic, again(IMAGES).semantic)
    assert torch.equal(model(IMAGES).uncertainty, again(IMAGES).uncertainty)
    assert again.transform == model.transform
    assert again.origin.sha256 == sha256_of(folder / "model.safetensors")
    assert again.origin.spec.meta == {"benchmark": "glyphs", "seed": 3}
    fresh = idml_zoo.create_model(f"local-dir:{folder}")
    assert not torch.equal(model(IMAGES).semantic, fresh(IMAGES).semantic)
    assert fresh.origin is None
    with pytest.raises(ValueError, match="leave out embedding_dim"):
        idml_zoo.create_model(f"local-dir:{folder}", embedding_dim=8)


def test_what_was_said_of_weights_goes_with_them_until_they_are_trained(original, tmp_path):
    loaded = load(original[1])
    again = load(loaded.save_pretrained(tmp_path / "again", tau=1.0))
    assert again.origin.spec.meta == {"benchmark": "glyphs", "seed": 3} and again.tau == again.origin.spec.tau == 1.0
    with torch.no_grad():
        again.head.semantic.weight.mul_(1.01)
    other = load(again.save_pretrained(tmp_path / "other", variant="mine"))
    assert other.origin.spec.meta == {"variant": "mine"} and other.tau == 1.0, "of other weights nothing was said"
    assert loaded.origin.still(loaded) and not again.origin.still(again)
    loaded.head.more = torch.nn.Linear(2, 2)
    assert not loaded.origin.still(loaded)


def test_the_temperature_is_typed_and_stays_where_version_01_reads_it(original, tmp_path):
    model, folder = original
    assert model.tau == load(folder).tau == 5.0 and load(folder).origin.spec.tau is None, "none was recorded"
    saved = model.save_pretrained(tmp_path / "saved", tau=2, benchmark="glyphs")
    content = json.loads((saved / "config.json").read_text())
    assert content["format"] == 2 and content["meta"] == {"benchmark": "glyphs", "tau": 2}
    again = load(saved)
    assert again.metric == idml_zoo.Metric("cosine", 2.0) and again.origin.spec.meta == {"benchmark": "glyphs"}
    assert again.metric.by("introspective") == idml_zoo.Metric("introspective", 2.0)
    assert load(again.save_pretrained(tmp_path / "twice")).tau == 2.0
    assert load(again.save_pretrained(tmp_path / "other", tau=0.5)).tau == 0.5
    for wrong in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="tau must be positive and finite"):
            model.save_pretrained(tmp_path / "never", tau=wrong)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("value", ["hot", -1, 0, 10**400, None, [5.0]])
def test_a_temperature_of_a_file_that_is_none_is_ignored(original, tmp_path, value):
    saved = original[0].save_pretrained(tmp_path / "saved", tau=2.0)
    content = json.loads((saved / "config.json").read_text())
    content["meta"]["tau"] = value
    (saved / "config.json").write_text(json.dumps(content))
    assert load(saved).tau == 5.0


def test_a_result_says_which_weights_were_measured(original, tmp_path):
    from conftest import make_folder

    mine = idml_zoo.table_benchmark("mine", make_folder(tmp_path / "photos"))
    how = {"progress": False, "cluster_seeds": (0,), "device": "cpu"}
    model = load(original[1])
    result = idml_zoo.evaluate(model, mine, **how)
    assert result.provenance.weights_sha256 == model.origin.sha256 and result.protocol.checkpoint == "last"
    given = idml_zoo.TrainingRecord(variant="pa")
    assert idml_zoo.evaluate(model, mine, training=given, **how).model.variant == "pa", "what is given goes first"
    with torch.no_grad():
        model.head.semantic.weight.mul_(1.01)
    trained = idml_zoo.evaluate(model, mine, **how)
    assert trained.provenance.weights_sha256 is None and trained.model.pretrained.startswith("begun from weights")
    plain = idml_zoo.evaluate(small(), mine, **how)
    assert (plain.model.pretrained, plain.model.variant, plain.protocol.checkpoint) == ("none", "none", "none")


def test_keywords_of_other_libraries_are_no_metadata(original, tmp_path):
    with pytest.raises(TypeError, match="commit_message is no argument here: .* message="):
        original[0].push_to_hub("user/name", commit_message="first")
    with pytest.raises(TypeError, match="push_to_hub is no argument"):
        original[0].save_pretrained(tmp_path / "m", push_to_hub=True)
    assert not (tmp_path / "m").exists()


def test_the_configuration_says_everything(original):
    content = json.loads((original[1] / "config.json").read_text())
    assert set(content) == {"format", "idml_zoo", "versions", "model", "transform", "probe", "meta"}
    assert content["model"]["backbone"] == "test_resnet"
    assert set(content["versions"]) == {"torch", "torchvision", "timm", "pillow"}
    assert len(content["probe"]["semantic"]) == len(content["probe"]["uncertainty"]) == 16


def test_files_are_readable_by_others_and_leave_nothing_behind(original):
    assert {p.name for p in original[1].iterdir()} == {"config.json", "model.safetensors"}
    assert (original[1] / "model.safetensors").stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path, original, dtype):
    model, whole = original
    folder = model.save_pretrained(tmp_path / "half", dtype=dtype)
    assert next(model.parameters()).dtype == torch.float32, "the model itself is left as it is"
    size, full = ((f / "model.safetensors").stat().st_size for f in (folder, whole))
    assert size < 0.55 * full
    again = load(folder)
    assert next(again.parameters()).dtype == torch.float32
    cosine = (again(IMAGES).semantic * model(IMAGES).semantic).sum(1)
    assert (cosine > 0.99).all()


def test_a_model_in_half_precision_or_in_training_is_saved_too(tmp_path):
    model = small().half().train()
    assert load(model.save_pretrained(tmp_path / "m")).head.semantic.weight.dtype == torch.float32
    assert model.training


def test_a_model_in_double_precision_is_saved_as_it_can_be_loaded(tmp_path, original):
    model, _ = original
    twin = copy.deepcopy(model).double()
    again = idml_zoo.create_model(f"local-dir:{twin.save_pretrained(tmp_path / 'model')}", pretrained=True)
    assert all(v.dtype != torch.float64 for v in load_file(tmp_path / "model" / "model.safetensors").values())
    assert torch.equal(again.head.semantic.weight, model.head.semantic.weight)


def test_what_is_too_large_for_half_precision_is_told(tmp_path, original):
    model = copy.deepcopy(original[0])
    next(b for n, b in model.named_buffers() if n.endswith("running_var")).fill_(1e5)
    with pytest.raises(ValueError, match=r"running_var is too large for torch.float16; save it in bfloat16"):
        model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    model.save_pretrained(tmp_path / "brain", dtype=torch.bfloat16)


def test_the_memory_format_does_not_matter(tmp_path, original):
    model = small().to(memory_format=torch.channels_last)
    again = load(model.save_pretrained(tmp_path / "m"))
    assert torch.equal(again(IMAGES).semantic, original[0](IMAGES).semantic)


def test_format_1_without_probe_is_read(saved):
    content = json.loads((saved / "config.json").read_text())
    del content["probe"], content["versions"]
    (saved / "config.json").write_text(json.dumps(content | {"format": 1}))
    assert load(saved).origin.spec.probe is None


def test_a_changed_outcome_is_refused_by_the_probe(saved):
    edit(saved, transform__mean=[0.4, 0.5, 0.5])
    message = refused(saved)
    assert "embedding of the probe image" in message
    assert "no version has changed" in message
    edit(saved, versions__timm="0.1")
    assert "timm 0.1 → " in refused(saved)
    assert load(saved, verify=False).transform.mean == (0.4, 0.5, 0.5)


def test_the_probe_is_the_same_picture_everywhere():
    import hashlib

    assert hashlib.sha256(probe.probe_image().tobytes()).hexdigest()[:16] == "0ef01ca41851b4cc"


def test_the_difference_of_probes():
    a = {"image": probe.NAME, "semantic": [0.6, 0.8], "uncertainty": [0.0, 0.1]}
    assert probe.difference(a, a) == 0
    assert probe.difference(a, a | {"semantic": [0.6, 0.79]}) == pytest.approx(0.01)
    assert probe.difference(a, a | {"uncertainty": [0.0, 0.11]}) == pytest.approx(0.1)
    assert probe.difference(a, a | {"semantic": [0.6]}) == float("inf")
    with pytest.raises(ValueError, match="this version knows"):
        probe.difference(a | {"image": "cat-7"}, a)
    with pytest.raises(ValueError, match="two lists of numbers"):
        probe.difference(a | {"semantic": ["x"]}, a)


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    model = small()
    model.config["backbone_options"] = {"depth": 3}
    with pytest.raises(ValueError, match="could be saved but not loaded.*depth"):
        model.save_pretrained(tmp_path / "m")
    model = small()
    with torch.no_grad():
        model.head.semantic.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"head.semantic.weight holds NaN"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("name", [name for name, weights in PUBLISHED.items() if weights.repo is None])
def test_weights_that_come_with_the_package(name):
    """Small, with a card of their result, and the picture in their file is embedded as it was when they were stored."""
    folder = EMBEDDED / name
    assert check_card(folder) == [] and (folder / "model.safetensors").stat().st_size < 10_000_000
    assert sum(p.stat().st_size for p in (folder / "results").rglob("*")) < 1 << 20
    (result,) = read_results(folder / "results")
    model = idml_zoo.create_model(name, pretrained=True)
    assert result.provenance.weights_sha256 == model.origin.sha256 == PUBLISHED[name].sha256
    found = probe.measure(model, idml_zoo.create_transforms(model)[1])
    assert probe.difference(model.origin.spec.probe, found) < 1e-3
    assert model.origin.spec.meta["variant"] == result.model.variant and result.protocol.split == "test"
    if benchmarks[result.benchmark].embedded:  # the images are here: their levels are those of the row's queries
        rows = ROOT / "leaderboard" / "results"
        stored = load_queries(rows, read_result(result.path(rows)))["level"]
        test = benchmarks[result.benchmark].splits().test
        some = embed(model, test.select_classes(range(20)), model.transform, progress=False, device="cpu")
        np.testing.assert_allclose(some.level, stored[test.labels < 20], atol=1e-3 * stored.max())
