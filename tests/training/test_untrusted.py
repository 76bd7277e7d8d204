"""A stranger's recipe, out of a result file, names no other place; one's own may not load what cannot be saved."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import train
from conftest import ROOT

from idml_zoo.cli.main import main as command
from idml_zoo.results import ResultError
from idml_zoo.studies import repeat
from idml_zoo.training.config import Config, ConfigError
from idml_zoo.training.untrusted import check_recipe, read_recipe

RESULTS = ROOT / "leaderboard" / "results"
A_RESULT = next(RESULTS.glob("glyphs/idml-test_resnet-*tuned/seed0.json"))

HOSTILE = {
    "code in a checkpoint": ({"backbone_options": {"checkpoint_path": "evil.pt"}}, "backbone_options"),
    "an address": ({"backbone_options": {"pretrained_cfg": {"url": "http://127.0.0.1:9/x"}}}, "backbone_options"),
    "a file": ({"backbone_options": {"pretrained_cfg_overlay": {"file": "/etc/passwd"}}}, "backbone_options"),
    "a cache": ({"backbone_options": {"cache_dir": "/tmp/x"}}, "backbone_options may not have cache_dir"),
    "an option of the network": ({"backbone_options": {"depth": 50000}}, "backbone_options may not have depth"),
    "keys of two kinds": ({"backbone_options": {1: 1, "depth": 1}}, "backbone_options may not have 1, depth"),
    "a backbone of the Hub": ({"backbone": "hf-hub:evil/model"}, "backbone must be a plain name"),
    "a backbone of a Hub by another word": ({"backbone": "hf_hub:evil/model"}, "backbone must be a plain name"),
    "a backbone of a folder": ({"backbone": "local-dir:/tmp/evil"}, "backbone must be a plain name"),
    "a backbone of a path": ({"backbone": "evil/resnet18"}, "backbone must be a plain name"),
    "images of the Hub": ({"source": "evil/images"}, "source: 'evil/images'; allowed is a registered benchmark"),
    "images of a path": ({"source": "/home"}, "may not have source"),
    "a stream": ({"stream": "evil/images", "steps_per_epoch": 1}, "may not have stream"),
    "another folder": ({"data_root": "/etc"}, "may not have data_root: '/etc'; allowed is a folder below this one"),
    "a folder above": ({"data_root": "data/../../x"}, "Name yours with --root"),
    "a compiler of a package": ({"compile": "evil"}, "may not have compile: 'evil'; allowed is no, inductor"),
    "a huge image": ({"image_size": 10**6}, "image_size must be a whole number up to 2048"),
    "a huge resize": ({"image_size": 2000, "crop_fraction": 0.001}, "images are resized to"),
    "a huge cache": ({"cache_side": 10**6}, "may not have cache_side"),
    "processes without end": ({"workers": 10**5}, "may not have workers: '100000'; allowed is 0 to 64"),
    "a wide head": ({"embedding_dim": 10**6}, "embedding_dim must be in 1–8192"),
    "a nested loss": ({"loss_options": {"margin": {"a": 1}}}, "may not have loss_options"),
    "an expression of groups": ({"backbone_trains": "((a+)+)+$"}, "may not have backbone_trains"),
    "an expression of choices": ({"backbone_trains": "(.|.)" * 15 + "!"}, "may not have backbone_trains"),
    "an expression of repeats": ({"lora_targets": ".*" * 15 + "!"}, "may not have lora_targets"),
    "an unknown key": ({"surprise": 1}, "unknown key 'surprise'"),
    "a date": ({"lr": {"a": [1]}}, "lr must be float"),
}


def result(tmp_path, **changes):
    """A result file of the leaderboard with another recipe."""
    import yaml

    content = json.loads(A_RESULT.read_text())
    recipe = yaml.safe_load(content["provenance"]["recipe"]) | changes
    content["provenance"]["recipe"] = yaml.safe_dump(recipe)
    path = tmp_path / content["benchmark"] / content["row"] / "seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def runs(monkeypatch):
    """Recipes that training was started with; none is trained."""
    started = []

    def main(arguments):
        started.append(read_recipe(Path(arguments[1]).read_text()))
        return 1

    monkeypatch.setattr(train, "main", main)
    return started


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_recipes_are_refused_before_anything_starts(tmp_path, runs, capsys, what):
    changes, message = HOSTILE[what]
    start = time.perf_counter()
    assert command(["repeat", result(tmp_path, **changes), "--out", str(tmp_path / "out")]) == 1
    assert time.perf_counter() - start < 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and len(err.splitlines()) == 1
    assert runs == [] and not (tmp_path / "out").exists()


def test_who_knows_the_recipe_trusts_it(tmp_path, runs, capsys):
    path = result(tmp_path, source="me/images", backbone="hf-hub:me/net", tracker="wandb")
    assert command(["repeat", path, "--out", str(tmp_path / "out")]) == 1
    assert "Read the recipe; where you trust who wrote it, repeat it with --trust" in capsys.readouterr().err
    command(["repeat", path, "--trust", "--out", str(tmp_path / "out")])
    assert [r["backbone"] for r in runs] == ["hf-hub:me/net"]
    assert runs[0]["tracker"] == "", "a repeated run sends nothing to anybody"


def test_ones_own_folder_of_data_may_be_anywhere(tmp_path, runs):
    path = result(tmp_path, data_root="/home/them/data", output="/home/them", leaderboard="/home/them")
    command(["repeat", path, "--root", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    assert runs[0]["data_root"] == str(tmp_path / "data")
    assert runs[0]["output"] == str(tmp_path / "out") and runs[0]["leaderboard"] == str(tmp_path / "out/leaderboard")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("[" * 8000, "more than 64 brackets"),
        ("- " * 4000, "no YAML"),
        ("a: &a [x]\nb: *a", "anchors"),
        ("a: &a {x: 1}\n<<: [*a, *a]", "anchors"),
        ("lr: 1\n" * 2000, "12,000 characters"),
        ("!!python/object/apply:os.system [id]", "no YAML"),
        ("lr: : 1", "no YAML"),
        ("3", "got int"),
    ],
)
def test_what_is_no_recipe_is_refused_quickly(recipe, message):
    start = time.perf_counter()
    with pytest.raises(ResultError, match=message):
        read_recipe(recipe)
    assert time.perf_counter() - start < 2


def test_every_recipe_of_the_leaderboard_and_of_the_project_may_be_repeated():
    texts = {json.loads(p.read_text())["provenance"].get("recipe") for p in RESULTS.glob("*/*-tuned/seed0.json")}
    texts |= {p.read_text() for p in (ROOT / "recipes").glob("*.yaml") if p.name != "stream.yaml"}
    known = [read_recipe(t) for t in texts if t]
    assert len(known) > 20
    for recipe in known:
        if "scale" not in recipe:  # of before loss_options, which train.py refuses
            check_recipe(recipe)
    with pytest.raises(ResultError, match="may not have threads"):
        check_recipe({"threads": 10**8})
    check_recipe({"backbone": "vit_small_patch14_dinov2.lvd142m", "backbone_weights": "timm"})


@pytest.mark.parametrize(
    "option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "pretrained"]
)
def test_nobody_loads_weights_by_an_option(option):
    with pytest.raises(ConfigError, match=f"backbone_options may not have {option}.*backbone_weights"):
        Config.from_flat({"backbone_options": {option: "x"}})


@pytest.mark.parametrize("name", ["{variant:>999999999}", "{variant.__class__}", "{0}", "{seed}", "../x", "a/b"])
def test_a_name_holds_only_its_fields(name):
    with pytest.raises(ConfigError, match="name must be letters"):
        Config(name=name)


def test_a_result_says_what_its_recipe_is(tmp_path):
    old = SimpleNamespace(provenance=SimpleNamespace(recipe="", weights_sha256="x"), benchmark="b", row="r")
    with pytest.raises(ResultError, match="b/r: no recipe"):
        repeat.repeat(old, tmp_path)
