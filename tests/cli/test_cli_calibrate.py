"""idml-zoo calibrate: from labelled images to a file, a model's folder and a table that says what was measured."""

import re
import shlex

import numpy as np
import pytest
import torch
from conftest import make_folder

import idml_zoo
from idml_zoo.cli import calibrate
from idml_zoo.cli.main import build_parser, main
from idml_zoo.files import sha256_of
from idml_zoo.reliability.reliability import default
from idml_zoo.reliability.risk import UNITS
from idml_zoo.retrieval.fit import COEFFICIENTS, half_of


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    """The embedded model, calibrated on the quickstart's images: the folder of the outcome, and what was printed."""
    import contextlib
    import io

    place, said = tmp_path_factory.mktemp("calibrated"), io.StringIO()
    command = ["calibrate", "idml_test_resnet_glyphs", "glyphs_subset", "--device", "cpu", "--batch-size", "256"]
    with contextlib.redirect_stdout(said):
        assert main([*command, "--out", str(place / "r.json"), "--into", str(place / "model")]) == 0
    return place, said.getvalue()


def rows(said):
    """(gallery, at most wrong) of the table: (answered, wrong among them), all in percent."""
    found = re.findall(r"^(with\w*) labels +(\d+) % +(\d+) % +([\d.]+) %$", said, re.MULTILINE)
    return {(form, int(risk)): (int(answered), float(wrong)) for form, risk, answered, wrong in found}


def test_the_table_is_what_a_search_with_the_saved_model_does(glyphs):
    place, said = glyphs
    model = idml_zoo.create_model(f"local-dir:{place / 'model'}", pretrained=True)
    split = idml_zoo.benchmarks["glyphs_subset"].splits().test
    images, labels = idml_zoo.embed(model, split, device="cpu"), torch.from_numpy(np.asarray(split.labels))
    calibrating = ~np.isin(split.labels, half_of(np.asarray(split.labels)))
    table = rows(said)
    assert len(table) >= 5 and all(("with", risk) in table for risk in (5, 10, 20))
    for form, gallery_labels in (("with", labels), ("without", None)):
        for risk in (5, 10, 20):
            how = {"reliability": model.reliability, "max_risk": risk / 100, "gallery_labels": gallery_labels}
            if (form, risk) not in table:
                with pytest.raises(idml_zoo.RiskNotReachable):
                    idml_zoo.search(images, images, 50, exclude_self=True, **how)
                continue
            near = idml_zoo.search(images, images, 50, exclude_self=True, **how)
            answered = ~near.declined.numpy() & calibrating
            wrong = (labels[near.indices[:, 0]] != labels).numpy()
            assert table[form, risk][0] == pytest.approx(100 * answered.sum() / calibrating.sum(), abs=0.6)
            assert table[form, risk][1] == pytest.approx(100 * wrong[answered].mean(), abs=0.1)
            assert table[form, risk][1] < risk


def test_the_file_and_the_model_hold_the_same_reliability_and_the_same_weights(glyphs):
    place, said = glyphs
    original = idml_zoo.create_model("idml_test_resnet_glyphs", pretrained=True)
    saved = idml_zoo.create_model(f"local-dir:{place / 'model'}", pretrained=True)
    assert saved.reliability == idml_zoo.Reliability.load(place / "r.json") is not None
    assert saved.origin.sha256 == original.origin.sha256, "results of these weights stay theirs"
    assert saved.origin.spec.meta == original.origin.spec.meta
    risk = saved.reliability.labelled.risk
    assert (risk.queries, risk.classes, risk.unit) == (1200, 100, "classes"), "half of 200 classes of 12 images"
    assert saved.reliability.fitted_on.startswith("1200 queries of 100 classes of Glyphs")
    assert f"file     {place / 'r.json'}" in said and f'create_model("local-dir:{place / "model"}"' in said


def test_it_says_what_the_promise_rests_on_and_what_voids_it(glyphs):
    assert "if later classes are drawn as the 100 classes of the calibration were" in glyphs[1]
    assert "warning: the classes must not be those that the model was trained on" in glyphs[1]
    assert "by cosine: 1,200 queries of 100 classes" in glyphs[1]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "photos")
    return ["mine", "--source", "photos", "--device", "cpu"]


def trained(folder, dtype=None):
    torch.manual_seed(0)
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=8)
    model.transform = model.transform.replace(image_size=32)
    return model.save_pretrained(folder, dtype)


def test_plain_features_and_ones_own_images_of_the_test_classes(photos, tmp_path, capsys):
    features = ["calibrate", "features", *photos, "--backbone", "test_resnet", "--into", "calibrated"]
    assert main([*features, "--note", "three colours"]) == 0
    said = capsys.readouterr()
    assert "Calibrated on three colours: 12 queries of 3 classes." in said.out
    assert f"Coefficients: {default().fitted_on}." in said.out, "too few for coefficients of their own"
    assert "note: this model is untrained" in said.err
    model = idml_zoo.create_model("local-dir:calibrated", pretrained=True)
    assert model.config["head"] == "features"
    assert model.reliability == idml_zoo.Reliability.load("reliability.json")
    assert model.reliability.labelled.confidence == default().labelled.confidence
    assert model.origin.spec.meta == {"pretrained": "none", "variant": "none"}
    assert main(["calibrate", "local-dir:calibrated", *photos, "--test-classes", "all", "--out", "all.json"]) == 0
    assert "photos" not in (note := idml_zoo.Reliability.load("all.json").calibrated_on) and "mine" in note
    assert "24 queries of 6 classes" in capsys.readouterr().out


def test_the_similarity_and_the_unit_are_what_is_calibrated(photos, monkeypatch, capsys):
    from idml_zoo.retrieval import fit

    metrics, real = [], fit.fit_reliability
    monkeypatch.setattr(fit, "fit_reliability", lambda *a, **k: metrics.append(k["metric"]) or real(*a, **k))
    command = ["calibrate", f"local-dir:{trained('model')}", *photos, "--unit", "queries"]
    assert main([*command, "--similarity", "introspective", "--tau", "2"]) == 0
    assert metrics == [idml_zoo.Metric("introspective", 2.0)]
    made = idml_zoo.Reliability.load("reliability.json")
    assert made.labelled.risk.unit == made.label_free.risk.unit == "queries"
    assert made.calibrated_on.endswith("by introspective")
    assert "with labels               5 %  not reachable; lowest: " in capsys.readouterr().out


def test_where_nothing_can_be_promised_it_says_so(photos, capsys):
    assert main(["calibrate", f"local-dir:{trained('model')}", *photos, "--test-classes", "0,1"]) == 0
    said = capsys.readouterr().out
    assert said.count("not reachable; ") == 6 and rows(said) == {}
    assert "None of these risks can be promised" in said and "At most" not in said


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_weights_keep_the_precision_of_their_file(photos, dtype, tmp_path):
    folder = trained(tmp_path / "model", dtype)
    assert main(["calibrate", f"local-dir:{folder}", *photos, "--into", "made"]) == 0
    assert sha256_of(tmp_path / "made" / "model.safetensors") == sha256_of(folder / "model.safetensors")
    assert main(["calibrate", f"local-dir:{folder}", *photos, "--into", str(folder)]) == 0, "in its own place too"
    assert idml_zoo.create_model(f"local-dir:{folder}", pretrained=True).reliability is not None


def test_what_cannot_be_is_said_before_anything_is_computed(photos, tmp_path, capsys, monkeypatch):
    import idml_zoo.evaluation.embed

    monkeypatch.setattr(idml_zoo.evaluation.embed, "embed", None)
    (tmp_path / "file").write_text("")
    model = f"local-dir:{trained('model')}"
    for arguments, message in (
        ([model, *photos, "--out", "file/r.json"], "cannot write file/r.json"),
        ([model, *photos, "--out", "photos"], "cannot write photos (is a folder)"),
        ([model, *photos, "--into", "file"], "cannot write file/config.json"),
        ([model, "cub3"], "unknown benchmark 'cub3'"),
        (["idml_resnet5_cub", *photos], "did you mean 'idml_resnet50_cub'"),
        ([model, "cub", "--root", "/nowhere"], "extract the official archive there"),
    ):
        assert main(["calibrate", *arguments]) == 1, arguments
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and said.out == ""
    for arguments, message in (
        (["--note", "x" * 201], "--note: a reliability's calibrated_on must be a text of at most 200 characters"),
        (["--unit", "pixels"], "--unit: invalid choice: 'pixels'"),
        (["--coefficients", "mine"], "--coefficients: invalid choice: 'mine'"),
    ):
        with pytest.raises(SystemExit):
            main(["calibrate", model, *photos, *arguments])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "reliability.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--test-classes", "0"], "at least two"),
        (["--coefficients", "fitted"], "at least 4 classes"),
    ],
)
def test_images_that_calibrate_nothing_are_one_line(photos, tmp_path, capsys, more, message):
    assert main(["calibrate", f"local-dir:{trained('model')}", *photos, *more, "--into", "made"]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "reliability.json").exists() and not (tmp_path / "made" / "config.json").exists()


def test_the_examples_of_the_help_are_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["calibrate", "--help"])
    assert caught.value.code == 0
    examples = re.findall(r"^  idml-zoo (calibrate .*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(examples) >= 3
    for line in examples:
        assert build_parser().parse_args(shlex.split(line)).run is calibrate._calibrate


@pytest.mark.parametrize(("option", "words"), [("coefficients", COEFFICIENTS), ("unit", UNITS)])
def test_every_choice_of_fit_reliability_has_its_word(option, words):
    assert len(words) > 1
    for word in words:
        assert getattr(build_parser().parse_args(["calibrate", "m", "b", f"--{option}", word]), option) == word
