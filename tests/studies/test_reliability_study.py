import json

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from sklearn.metrics import roc_auc_score

from idml_zoo.data.errors import DataError
from idml_zoo.reliability.reliability import default
from idml_zoo.reports.blocks import outdated
from idml_zoo.retrieval.fit import Outcomes
from idml_zoo.studies.reliability import __main__ as study
from idml_zoo.studies.reliability import sources as study_sources
from idml_zoo.studies.reliability.judging import class_weights, compare_scores, difference, promises, weighted_auroc
from idml_zoo.studies.reliability.page import BLOCKS, block
from idml_zoo.studies.reliability.sources import read_sources


def test_a_weighted_auroc_is_that_of_repeated_queries():
    random = np.random.RandomState(0)
    score, wrong = random.randint(0, 20, 300).astype(float), random.rand(300) < 0.3  # many ties
    weights = random.randint(0, 4, (5, 300)).astype(np.uint8)
    for weight, value in zip(weights, weighted_auroc(score, wrong, weights), strict=True):
        assert value == pytest.approx(roc_auc_score(np.repeat(wrong, weight), np.repeat(score, weight)))


def test_classes_are_drawn_with_all_their_queries():
    classes = np.repeat(np.arange(10), 7)
    weights = class_weights(classes, draws=50)
    assert (weights.reshape(50, 10, 7) == weights.reshape(50, 10, 7)[:, :, :1]).all()
    assert (weights.sum(1) == 70).all()


def answers(count=2000, classes=100, seed=0):
    random = np.random.RandomState(seed)
    easy = random.rand(classes)
    member = np.arange(count) % classes
    right = random.rand(count) < 0.4 + 0.5 * easy[member]
    noise = random.rand(count)
    features = {"a": (right + noise).astype(np.float32)}
    return Outcomes(features, right, np.ones(count, bool), member), noise


def test_differences_are_of_the_same_draws():
    outcome, noise = answers()
    figures = compare_scores({"good": -(outcome.right + noise), "noise": noise}, outcome)
    d = difference(figures, "good", "noise")
    assert d["interval"][0] < d["mean"] < d["interval"][1] and d["mean"] > 0.3
    same = difference(figures, "good", "good")
    assert same["mean"] == 0 and same["interval"] == [0, 0]


def test_promises_count_what_was_broken_in_the_other_half():
    outcome, noise = answers()
    confidence = 1 / (1 + np.exp(-(2 * outcome.right + noise - 1)))
    kept = promises(confidence, outcome, "queries", "queries", splits=40)
    assert kept["0.20"]["answered"] >= kept["0.05"]["answered"]
    assert kept["0.20"]["broken"] <= 0.15
    later = np.full_like(confidence, 0.99), np.zeros_like(outcome.right)  # every later query is wrong, and looks sure
    broken = promises(confidence, outcome, "queries", "queries", later, splits=10)
    assert broken["0.20"]["broken"] == broken["0.20"]["reached"]


def test_nothing_is_fitted_on_test_classes(tmp_path):
    path = tmp_path / "sources.yaml"
    entry = {"name": "a", "benchmark": "glyphs", "part": "test", "model": "features"}
    path.write_text(yaml.safe_dump({"fit": [entry]}))
    with pytest.raises(DataError, match="nothing may be fitted on test classes"):
        read_sources(path)
    for source in read_sources(ROOT / "docs" / "reliability" / "sources.yaml")["fit"]:
        assert source.part in ("train", "held-out"), source


def test_the_page_agrees_with_the_measured_figures():
    figures = json.loads(study.MEASURED.read_text())["figures"]
    assert outdated([study.PAGE], lambda name: block(name, figures)) == []
    text = study.PAGE.read_text()
    assert all(f"<!-- made: {name} -->" in text for name in BLOCKS)
    with pytest.raises(ValueError, match="no block"):
        block("nothing", figures)


def test_the_study_fits_measures_and_writes_its_page(tmp_path, monkeypatch):
    features = {"model": "features", "backbone": "test_resnet", "pooling": "avg", "image_size": 32}
    uses = {
        "fit": [
            {"name": "features", "benchmark": name, "part": "train", **features} for name in ("glyphs_subset", "glyphs")
        ],
        "test": [
            {"name": "pixels", "benchmark": "digits", "part": "digits", "model": "pixels"},
            {"name": "features", "benchmark": "glyphs_subset", "part": "test", **features},
        ],
    }
    sources, out, page = tmp_path / "sources.yaml", tmp_path / "measured.json", tmp_path / "page.md"
    sources.write_text(yaml.safe_dump(uses))
    page.write_text("".join(f"<!-- made: {name} -->\n<!-- end -->\n" for name in BLOCKS))
    whole = study_sources._split
    monkeypatch.setattr(study_sources, "_split", lambda *args: whole(*args).select_classes(range(40)))
    monkeypatch.setattr(study, "DEFAULTS", tmp_path / "defaults.json")
    monkeypatch.setattr(study, "PAGE", page)
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    words = ["--sources", str(sources), "--cache", str(tmp_path / "cache"), "--out", str(out)]
    assert study.main(["fit", *words]) == 0
    with pytest.raises(ValueError, match="run `fit` first"):  # the package's coefficients are others
        study.main(["measure", *words])
    fitted = study.Reliability.load(tmp_path / "defaults.json")
    monkeypatch.setattr(study, "default", lambda: fitted)
    monkeypatch.setattr("idml_zoo.studies.reliability.judging.DRAWS", 20)
    assert study.main(["measure", *words, "--promises", "nobody"]) == 0
    figures = json.loads(out.read_text())["figures"]
    digits = figures["digits.digits.pixels"]
    assert digits["queries"] == 1797 and digits["scores"]["confidence"]["auroc"] > 0.8
    assert "level_adds" not in digits  # pixels have no level
    assert study.main(["page", "--out", str(out)]) == 0
    assert study.main(["page", "--out", str(out), "--check"]) == 0
    assert (tmp_path / "auroc.png").stat().st_size > 5000
    assert torch.is_tensor(study.load(read_sources(sources)["test"][0], "data", tmp_path / "cache").labels)
    assert default().fitted_on != fitted.fitted_on
