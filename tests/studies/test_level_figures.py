import json

import numpy as np
import pytest
from conftest import ROOT
from sklearn.metrics import roc_auc_score

import idml_zoo
from idml_zoo.reports.bootstrap import load_queries
from idml_zoo.reports.leaderboard import Row
from idml_zoo.results import ResultError, read_result
from idml_zoo.studies import level_figures
from idml_zoo.studies.level_figures import class_runs, classes_of
from idml_zoo.studies.sets import read_sets

ROWS = ROOT / "leaderboard" / "results" / "glyphs_subset"


def test_the_kept_classes_are_those_of_the_images():
    for name in ("glyphs", "glyphs_subset"):
        split = idml_zoo.benchmarks[name].splits().test
        np.testing.assert_array_equal(classes_of(split.fingerprint()), split.labels)
    with pytest.raises(ResultError, match="does not hold the classes of the images 00"):
        classes_of("0" * 64)


def test_runs_of_labels():
    assert class_runs([3, 3, 1, 3]) == [[3, 2], [1, 1], [3, 1]]
    assert class_runs([]) == []


def test_every_measured_image_has_its_class():
    for measured in read_sets():
        result = next(iter(measured.lines.values())).row.first
        assert len(classes_of(result.provenance.data_sha256)) == result.queries


def test_a_row_is_compared_with_the_strongest_free_score_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(level_figures, "DRAWS", 40)
    results = [read_result(p) for p in sorted((ROWS / "idml-test_resnet-quickstart").glob("seed*.json"))]
    row = Row(tuple(results))

    class OfTheSubset:
        leaderboard = tmp_path

    for name in ("results", "classes.json"):
        (tmp_path / name).symlink_to(ROOT / "leaderboard" / name)
    monkeypatch.setattr(level_figures, "_COMPUTED", {})
    path = tmp_path / "levels.json"
    figures = level_figures.level_figures(OfTheSubset, row)
    assert not path.exists(), "nothing is written until it is asked for"
    level_figures.keep(OfTheSubset)
    means = {}
    for name in ("level", "top1_similarity", "margin"):
        values = [load_queries(ROOT / "leaderboard" / "results", r) for r in results]
        means[name] = np.mean([roc_auc_score(~v["top1"].astype(bool), v[name]) for v in values])
    strongest = max(("top1_similarity", "margin"), key=means.get)
    assert figures["strongest"] == strongest
    assert figures["difference"] == pytest.approx(means["level"] - means[strongest], abs=1e-5)
    assert figures["interval"][0] < figures["difference"] < figures["interval"][1]
    kept = json.loads(path.read_text())
    (key,) = kept
    kept[key]["difference"] = 0.25  # what is kept is read, not computed again
    path.write_text(json.dumps(kept))
    assert level_figures.level_figures(OfTheSubset, row)["difference"] == 0.25
