"""Publishing: cards made of result files, dry runs, and pushing all that was trained."""

import json
import re
import shutil

import publish
import pytest
from support.model_hub import WRITE

import idml_zoo
from idml_zoo.cli.main import main
from idml_zoo.reports.card import model_card


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained and measured model: run folder and leaderboard."""
    from idml_zoo.models.zoo import EMBEDDED

    place = tmp_path_factory.mktemp("run")
    model = idml_zoo.create_model("idml_test_resnet_glyphs", pretrained=True)
    model.save_pretrained(place / "seed0" / "model", **model.origin.spec.meta)
    board = place / "board"
    for path in (EMBEDDED / "idml_test_resnet_glyphs" / "results").rglob("*.json"):
        copy = board / "results" / path.relative_to(EMBEDDED / "idml_test_resnet_glyphs" / "results")
        copy.parent.mkdir(parents=True)
        copy.write_bytes(path.read_bytes())
    return place / "seed0", board


def push(run, *more):
    return main(["push", str(run[0]), "--repo", "user/glyphs", "--leaderboard", str(run[1]), *more])


def test_a_dry_run_shows_all_and_sends_nothing(hub, run, capsys):
    assert push(run, "--dry-run") == 0
    out = capsys.readouterr().out
    (result,) = (run[1] / "results").rglob("*.json")
    for name in ("config.json", "model.safetensors", "README.md", result.relative_to(run[1]).as_posix()):
        assert name in out
    assert "Nothing was uploaded" in out
    assert hub.requests == []


def test_what_was_measured_is_what_is_pushed(tmp_path, model):
    """With select=best that is the model of the best epoch, not of the last."""
    from idml_zoo.cli.hub import _model_folder

    model.save_pretrained(tmp_path / "seed0" / "model")
    (tmp_path / "seed0" / "config.yaml").write_text("select: best\n")
    assert _model_folder(tmp_path / "seed0") == tmp_path / "seed0", "nothing of it is there: told by who reads it"
    model.save_pretrained(tmp_path / "seed0" / "best")
    assert _model_folder(tmp_path / "seed0") == tmp_path / "seed0" / "best"
    (tmp_path / "seed0" / "config.yaml").write_text("select: last\n")
    assert _model_folder(tmp_path / "seed0") == tmp_path / "seed0" / "model"
    assert _model_folder(tmp_path / "seed0" / "model") == tmp_path / "seed0" / "model"


def test_push_prints_the_record_and_the_card_runs(hub, run, capsys):
    assert push(run, "--token", WRITE) == 0
    out = capsys.readouterr().out
    commit = hub.repos["user/glyphs"].branches["main"]
    sha = idml_zoo.create_model("idml_test_resnet_glyphs", pretrained=True).origin.sha256
    assert f'Weights("{sha}", "user/glyphs", "{commit}")' in out
    files = hub.repos["user/glyphs"].commits[commit]
    assert set(files) >= {"config.json", "model.safetensors", "README.md"}
    (result,) = (run[1] / "results").rglob("*.json")
    assert result.relative_to(run[1]).as_posix() in files
    card = files["README.md"].decode()
    code = card.split("```python\n")[1].split("```")[0]
    assert 'create_model("hf-hub:user/glyphs", pretrained=True)' in code
    names: dict = {}
    exec(code, names)
    assert names["e"].semantic.shape == (1, 128)


def test_the_hubs_own_reader_understands_the_card(run):
    from huggingface_hub import ModelCard

    assert push(run, "--dry-run") == 0
    data = ModelCard((run[0] / "model" / "README.md").read_text()).data
    assert data.library_name == "idml-zoo"
    assert data.license == "apache-2.0"
    values = {r.metric_type: r.metric_value for r in data.eval_results}
    (result,) = (run[1] / "results").rglob("*.json")
    assert values["recall@1"] == pytest.approx(json.loads(result.read_text())["metrics"]["recall@1"], abs=1e-4)
    assert {r.dataset_type for r in data.eval_results} == {"glyphs"}


def test_a_model_without_results_is_not_pushed_by_accident(hub, model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    command = ["push", str(tmp_path), "--repo", "user/m", "--leaderboard", str(tmp_path), "--token", WRITE]
    assert main(command) == 1
    assert "--allow-unmeasured" in capsys.readouterr().err
    assert main([*command, "--allow-unmeasured"]) == 0
    assert "Nothing yet" in hub.repos["user/m"].commits[hub.repos["user/m"].branches["main"]]["README.md"].decode()


def test_card_check_finds_what_the_results_do_not_say(run, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(run[0] / "model", folder)
    build = ["card", "build", str(folder), "--repo", "user/glyphs", "--leaderboard", str(run[1])]
    assert main(build) == 0
    assert main(["card", "check", str(folder)]) == 0
    card = folder / "README.md"
    text = card.read_text()
    card.write_text(re.sub(r"value: 0\.\d+", "value: 0.9525", text, count=1))
    assert main(["card", "check", str(folder)]) == 1
    assert "+      value: 0.9525" in capsys.readouterr().err
    card.write_text(text)
    (result,) = (folder / "results").rglob("*.json")
    data = json.loads(result.read_text())
    data["provenance"]["weights_sha256"] = "0" * 64
    result.write_text(json.dumps(data))
    assert main(["card", "check", str(folder)]) == 1
    assert "is of other weights" in capsys.readouterr().err
    card.unlink()
    assert main(["card", "check", str(folder)]) == 1
    assert "card build" in capsys.readouterr().err


def test_cards_name_the_terms_of_the_data(model, tmp_path):
    from idml_zoo.models.files import read_config

    folder = model.save_pretrained(tmp_path / "m", benchmark="cub", variant="idml")
    text = model_card(read_config(folder / "config.json"), [], "hf-hub:user/birds")
    assert "license: other" in text
    assert "non-commercial research and education only" in text
    assert "Nothing yet" in text


def test_runs_with_a_name_and_results_are_pushed(hub, run, tmp_path, capsys, monkeypatch):
    from idml_zoo.models import zoo

    other = idml_zoo.create_model("semantic", backbone="test_resnet", embedding_dim=128)
    other.save_pretrained(tmp_path / "runs" / "b" / "model", benchmark="glyphs")
    trial = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=128)
    trial.save_pretrained(tmp_path / "runs" / "1st" / "model", benchmark="glyphs")  # before the measured one by path
    idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=7).save_pretrained(
        tmp_path / "runs" / "c" / "model", benchmark="glyphs"
    )
    (tmp_path / "runs" / "d" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "d" / "model" / "config.json").write_text("{")
    shutil.copytree(run[0], tmp_path / "runs" / "a")
    words = [str(tmp_path / "runs"), "--owner", "zoo", "--leaderboard", str(run[1]), "--token", WRITE]
    assert publish.main(["hub", *words, "--dry-run"]) == 1
    assert hub.requests == []
    captured = capsys.readouterr()
    assert "idml_test_resnet_glyphs: published already" in captured.out
    assert "semantic_test_resnet_glyphs: no result of trained weights" in captured.err
    assert "not published: semantic_test_resnet_glyphs" in captured.err
    monkeypatch.delitem(zoo.PUBLISHED, "idml_test_resnet_glyphs")
    assert publish.main(["hub", *words]) == 1
    assert set(hub.repos) == {"zoo/idml_test_resnet_glyphs"}
    assert 'record   Weights("' in capsys.readouterr().out
