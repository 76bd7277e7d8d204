"""A reliability in a model's configuration: the same numbers come back, and a stranger's do no harm."""

import copy
import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_embedding
from hypothesis import given
from hypothesis import strategies as st
from support.fuzzing import FUZZ, JSON
from support.model_hub import WRITE
from support.saved_models import edit, load, refused

import idml_zoo
from idml_zoo.files import sha256_of
from idml_zoo.models import zoo
from idml_zoo.models.files import WeightsError, parse_config, read_config
from idml_zoo.reliability.reliability import default
from idml_zoo.reliability.risk import RiskTable
from idml_zoo.reports.card import model_card

QUERIES, GALLERY = make_embedding(40, seed=1), make_embedding(120, seed=2)
LABELS = torch.arange(120) % 12


def a_reliability(**words):
    """The default's coefficients with a calibration: 400 queries of 20 classes, the less sure the more often wrong."""
    rng = np.random.default_rng(0)
    score = rng.random(400)
    table = RiskTable.of(score, rng.random(400) > 0.6 + 0.4 * score, np.arange(400) % 20)
    forms = {name: replace(getattr(default(), name), risk=table) for name in ("labelled", "label_free")}
    return replace(default(), **forms, **{"calibrated_on": "my photographs", **words})


@pytest.fixture
def reliable(original, tmp_path):
    """A model with a reliability, and the folder that it was saved in; the model is a copy."""
    model = copy.deepcopy(original[0])
    model.reliability = a_reliability()
    return model, model.save_pretrained(tmp_path / "reliable", benchmark="glyphs")


def content(folder):
    return json.loads((folder / "config.json").read_text())


def confidences(reliability):
    """What a search says with it, in both forms."""
    return [
        idml_zoo.search(QUERIES, GALLERY, 50, gallery_labels=labels, reliability=reliability, confidence=True)
        for labels in (None, LABELS)
    ]


def test_the_same_numbers_and_the_same_confidence_come_back(reliable):
    model, folder = reliable
    again = load(folder)
    assert again.reliability == model.reliability and again.reliability is not model.reliability
    assert again.reliability.limit(0.3) == model.reliability.limit(0.3)
    for before, after in zip(confidences(model.reliability), confidences(again.reliability), strict=True):
        assert torch.equal(before.confidence, after.confidence) and torch.equal(before.unknown, after.unknown)
        assert before.confidence.unique().numel() > 20
    assert again.origin.spec.meta == {"benchmark": "glyphs"}
    assert idml_zoo.create_model(f"local-dir:{folder}").reliability is None, "other weights, of which nothing was said"


def test_a_model_has_none_until_it_is_given_one(original):
    model, folder = original
    assert model.reliability is None and load(folder).reliability is None
    assert "reliability" not in content(folder)["meta"]
    assert copy.deepcopy(model).reset_head().reliability is None


def test_versions_01_and_02_can_read_the_file(original, reliable):
    """They read format 2 with exactly these keys, and any object as meta."""
    new, old = content(reliable[1]), content(original[1])
    assert new["format"] == 2
    assert set(new) == set(old) == {"format", "idml_zoo", "versions", "model", "transform", "probe", "meta"}
    assert isinstance(new["meta"]["reliability"], dict)
    assert {**new, "meta": 0} == {**old, "meta": 0}


def test_format_1_has_none_or_one(reliable):
    values = content(reliable[1])
    values = {**{k: v for k, v in values.items() if k not in ("probe", "versions")}, "format": 1}
    (reliable[1] / "config.json").write_text(json.dumps(values))
    assert load(reliable[1]).reliability == reliable[0].reliability
    del values["meta"]["reliability"]
    (reliable[1] / "config.json").write_text(json.dumps(values))
    assert load(reliable[1]).reliability is None


def test_weights_of_the_package_and_of_a_folder_of_weights(tmp_path, monkeypatch):
    name = "idml_test_resnet_glyphs"
    model = idml_zoo.create_model(name, pretrained=True)
    model.reliability = a_reliability()
    folder = model.save_pretrained(tmp_path / "embedded" / name)
    assert sha256_of(folder / "model.safetensors") == model.origin.sha256
    shutil.copytree(tmp_path / "embedded", tmp_path / "weights")
    with monkeypatch.context() as patch:
        patch.setattr(zoo, "EMBEDDED", tmp_path / "embedded")
        assert idml_zoo.create_model(name, pretrained=True).reliability == model.reliability
    monkeypatch.setenv("IDML_ZOO_WEIGHTS", str(tmp_path / "weights"))
    assert idml_zoo.create_model(name, pretrained=True).reliability == model.reliability


def test_it_is_pushed_and_pulled(hub, reliable):
    reliable[0].push_to_hub("user/birds", token=WRITE)
    assert idml_zoo.create_model("hf-hub:user/birds", pretrained=True).reliability == reliable[0].reliability


def test_it_goes_with_its_weights_until_they_are_trained(reliable, tmp_path):
    loaded = load(reliable[1])
    assert load(loaded.save_pretrained(tmp_path / "same")).reliability == loaded.reliability
    with torch.no_grad():
        loaded.head.semantic.weight.mul_(1.01)
    assert load(loaded.save_pretrained(tmp_path / "other")).reliability is None
    loaded.reliability = a_reliability(calibrated_on="once more, after the training")
    assert load(loaded.save_pretrained(tmp_path / "new")).reliability == loaded.reliability


def test_what_is_no_reliability_is_not_saved(original, tmp_path):
    model = copy.deepcopy(original[0])
    for wrong in (a_reliability().to_dict(), "reliability.json"):
        model.reliability = wrong
        with pytest.raises(TypeError, match="model.reliability must be an idml_zoo.Reliability or None, got"):
            model.save_pretrained(tmp_path / "never")
    model.reliability = None
    with pytest.raises(TypeError, match="set model.reliability"):
        model.save_pretrained(tmp_path / "never", reliability=a_reliability())
    model.reliability = a_reliability(calibrated_on="x" * 201)
    with pytest.raises(ValueError, match="could be saved but not loaded.*calibrated_on must be a text of at most 200"):
        model.save_pretrained(tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_without_a_calibration_there_is_confidence_but_no_limit(original, tmp_path):
    model = copy.deepcopy(original[0])
    model.reliability = default()
    again = load(model.save_pretrained(tmp_path / "model"))
    assert torch.equal(confidences(again.reliability)[1].confidence, confidences(None)[1].confidence)
    with pytest.raises(idml_zoo.ReliabilityError, match="no limit without a calibration.*idml-zoo calibrate"):
        again.reliability.limit(0.1)


@pytest.mark.parametrize("version", [2, 10**300])
def test_of_another_version_only_the_weights_are_loaded(reliable, tmp_path, version):
    model, folder = reliable
    edit(folder, meta__reliability={"version": version, "what": "nobody knows"})
    with pytest.warns(UserWarning, match=r"config.json: its reliability is of version \d{1,20}, .*idml-zoo calibrate"):
        again = load(folder)
    assert again.reliability is None
    images = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64).sin()
    assert torch.equal(again(images).semantic, model(images).semantic)
    assert "reliability" not in content(again.save_pretrained(tmp_path / "again"))["meta"]


def damaged(*path, value):
    """A reliability's JSON values with one of them replaced."""
    values = a_reliability().to_dict()
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return values


def nested(levels):
    return json.loads("[" * levels + "]" * levels)


ESTIMATOR, SHARE = ("labelled", "confidence"), ("label_free", "risk", "shares", 3)
HOSTILE = {
    "list": ([1, 2], "must be an object, got list"),
    "text": ("reliability.json", "must be an object, got str"),
    "number": (10**400, "must be an object, got int"),
    "no version": ({}, "is of version another kind"),
    "version of words": (damaged("version", value="latest"), "is of version another kind"),
    "version zero": (damaged("version", value=0), "is of version 0"),
    "key more": (damaged("file", value="/etc/passwd"), "must have version, fitted_on"),
    "form of another kind": (damaged("labelled", value=[]), "a form must be an object"),
    "words without end": (damaged("fitted_on", value="x" * 100_000), "a text of at most 200 characters"),
    "words of another kind": (damaged("calibrated_on", value=7), "a text of at most 200 characters"),
    "estimator with code": (damaged(*ESTIMATOR, "__reduce__", value="os.system"), "an estimator must be an object"),
    "huge list": (damaged(*ESTIMATOR, "weights", value=[0.0] * 100_000), "lists of at most 64 values"),
    "more weights than features": (damaged(*ESTIMATOR, "weights", value=[0.0]), "one mean, scale and weight per"),
    "no features": (
        damaged(*ESTIMATOR, value={n: [] for n in ("features", "mean", "scale", "weights")} | {"intercept": 0}),
        "one mean, scale and weight per feature",
    ),
    "weight of words": (damaged(*ESTIMATOR, "weights", 0, value="1"), "no finite number within"),
    "weight of null": (damaged(*ESTIMATOR, "weights", 0, value=None), "no finite number within"),
    "huge weight": (damaged(*ESTIMATOR, "weights", 0, value=1e7), "no finite number within ±1e+06"),
    "weight beyond floats": (damaged(*ESTIMATOR, "weights", 0, value=10**400), "no finite number within ±1e+06"),
    "intercept beyond floats": (damaged(*ESTIMATOR, "intercept", value=-(10**400)), "no finite number within ±1e+06"),
    "deep nesting": (damaged(*ESTIMATOR, "weights", 0, value=nested(200)), "no finite number within"),
    "scale zero": (damaged(*ESTIMATOR, "scale", 0, value=0), "scales must be at least"),
    "feature of another kind": (
        damaged(*ESTIMATOR, "features", 0, value=["a"]),
        "different names of at most 40 characters",
    ),
    "too few shares": (damaged("label_free", "risk", "shares", value=[]), "must have 20 shares"),
    "too many shares": (damaged("label_free", "risk", "shares", value=[[0] * 8] * 5000), "must have 20 shares"),
    "share of words": (damaged(*SHARE, 0, value="0.5"), "8 numbers that agree"),
    "more wrong than answered": (damaged(*SHARE, 2, value=10**6), "8 numbers that agree"),
    "more answered than asked": (damaged(*SHARE, 1, value=10**6), "8 numbers that agree"),
    "squares beyond floats": (damaged(*SHARE, 3, value=10**400), "8 numbers that agree"),
    "queries beyond count": (damaged("labelled", "risk", "queries", value=1 << 60), "must count its queries"),
    "unit": (damaged("labelled", "risk", "unit", value="pixels"), "of the unit classes or queries"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_reliabilities_are_refused_with_what_to_do(saved, what):
    value, message = HOSTILE[what]
    edit(saved, meta__reliability=value)
    said = refused(saved)
    assert message in said
    assert said.startswith(f"{saved / 'config.json'}: 'meta' has a reliability that cannot be used")
    assert "delete the key reliability there, or fit it again with idml-zoo calibrate" in said
    assert len(said) < 600


@pytest.mark.parametrize(
    ("number", "message"),
    [("NaN", "not a number"), ("-Infinity", "not a number"), ("1e999", "not a number"), ("9" * 5000, "not readable")],
)
def test_numbers_that_are_none_are_refused(reliable, number, message):
    path = reliable[1] / "config.json"
    text = path.read_text()
    intercept = json.dumps(content(reliable[1])["meta"]["reliability"]["labelled"]["confidence"]["intercept"])
    assert f'"intercept": {intercept}' in text
    path.write_text(text.replace(f'"intercept": {intercept}', f'"intercept": {number}'))
    assert message in refused(reliable[1])


def places(value, path=()):
    """Every place in JSON values."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


PLACES = [p for p in places(a_reliability().to_dict()) if p]


@FUZZ
@given(place=st.sampled_from(PLACES), value=JSON | st.integers() | st.just(10**400))
def test_fuzzed_reliabilities_give_probabilities_or_are_refused(original, place, value):
    values = content(original[1])
    values["meta"]["reliability"] = damaged(*place, value=value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another version
        try:
            spec = parse_config(json.dumps(values), "config.json")
        except WeightsError:
            return
    for form in () if spec.reliability is None else (spec.reliability.labelled, spec.reliability.label_free):
        features = {n: np.linspace(-9, 9, 5) for n in (*form.confidence.features, *form.unknown.features)}
        for probability in form.assess(features):
            assert ((probability >= 0) & (probability <= 1)).all()
        if form.risk is not None:
            try:
                limit = form.risk.limit(0.3)
            except idml_zoo.ReliabilityError:
                continue
            assert 0 <= limit.threshold <= 1 and 0 < limit.coverage <= 1


def test_the_card_says_what_it_was_fitted_and_calibrated_on(original, reliable):
    without = model_card(read_config(original[1] / "config.json"), [], "hf-hub:user/birds")
    assert "Confidence of every answer" not in without
    model, folder = reliable
    text = model_card(read_config(folder / "config.json"), [], "hf-hub:user/birds")
    assert f"coefficients: {default().fitted_on}." in text.replace("\\", "")
    assert "calibrated on my photographs, 400 queries of 20 classes. They hold for later classes that are drawn" in text
    model.reliability = a_reliability(fitted_on="", calibrated_on="<img src=x>\n\n# [mine](javascript:a)")
    text = model_card(read_config(model.save_pretrained(folder) / "config.json"), [], "hf-hub:user/birds")
    assert "coefficients: of unknown origin." in text
    assert r"calibrated on \<img src=x\> \# \[mine\](javascript:a), 400 queries" in text
    model.reliability = default()
    text = model_card(read_config(model.save_pretrained(folder) / "config.json"), [], "hf-hub:user/birds")
    assert "It was not calibrated, so it has no limits" in text
