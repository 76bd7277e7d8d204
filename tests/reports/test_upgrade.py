"""Results of an older protocol become those of this one where the values of their queries tell all that changed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import idml_zoo
from idml_zoo.cli.main import main
from idml_zoo.evaluation.uncertainty import calibration_error
from idml_zoo.files import write_file
from idml_zoo.reports.leaderboard import build_leaderboard
from idml_zoo.reports.upgrade import SCORES
from idml_zoo.results import read_results


@pytest.fixture(scope="module")
def fresh():
    """Measured by this version: random embeddings, so that most nearest neighbours are wrong, but not all."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(200, 8, generator=rng).repeat_interleave(12, 0)
    semantic = torch.nn.functional.normalize(centres + 0.8 * torch.randn(2400, 8, generator=rng))
    uncertainty = torch.rand(2400, 8, generator=rng)
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=8)
    split = idml_zoo.benchmarks["glyphs_subset"].splits().test
    return idml_zoo.evaluate(
        model,
        "glyphs_subset",
        split=idml_zoo.MeasuredSplit(split, embedding=idml_zoo.Embedding(semantic, uncertainty)),
        row="mine",
        cluster_seeds=(),
        progress=False,
    )


def as_old(result, root, **changes):
    """The file that version 2 would have written, with other calibration errors."""
    saved = idml_zoo.save_result(result, root)
    (now,) = read_results(root)
    known = {k: v for k, v in now.metrics.items() if "_" not in k or k == "r_precision" or k.endswith(SCORES)}
    metrics = {k: 0.5 if k.startswith("ece_") else v for k, v in known.items() if not k.startswith("coverage")}
    old = replace(now, metrics=metrics | changes, protocol=replace(now.protocol, version=2))
    write_file(saved, old.to_json())
    return old


def test_an_old_result_becomes_what_would_be_measured_now(fresh, tmp_path, capsys):
    as_old(fresh, tmp_path / "results")
    assert main(["results", "upgrade", str(tmp_path)]) == 0
    assert "1 results upgraded, 0 left" in capsys.readouterr().out
    (new,) = read_results(tmp_path / "results")
    assert new.protocol.version == 3 and new.provenance.upgraded["from"] == "protocol 2"
    assert any(k.startswith("ece_") for k in new.metrics)
    assert {"recall@1", "map@r", "auroc_level", "eaurc_margin", "ece_top1_similarity"} <= set(new.metrics)
    for name, value in new.metrics.items():
        assert value == pytest.approx(fresh.metrics[name], abs=1e-6), name
    assert replace(new.provenance, upgraded={}) == fresh.provenance
    build_leaderboard(tmp_path)
    assert "protocol 2" in (tmp_path / "index.html").read_text(), "the page says so"
    assert main(["results", "upgrade", str(tmp_path)]) == 0
    assert "0 results upgraded, 0 left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: replace(r, protocol=replace(r.protocol, version=1)), "only version 2 on the test classes"),
        (lambda r: replace(r, queries_sha256=None), "has no values of its queries"),
        (lambda r: replace(r, provenance=replace(r.provenance, data_sha256="ff")), "was measured on other images"),
        (lambda r: replace(r, metrics=r.metrics | {"auroc_level": 0.9}), "its AUROC of level is 0.9, but 0."),
    ],
)
def test_what_cannot_be_upgraded_is_left_with_the_reason(fresh, tmp_path, capsys, damage, message):
    old = damage(as_old(fresh, tmp_path))
    write_file(old.path(tmp_path), old.to_json())
    assert main(["results", "upgrade", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert message in said.err and "0 results upgraded, 1 left" in said.out
    assert read_results(tmp_path) == [old]


def test_the_calibration_error_does_not_depend_on_the_order_of_the_images():
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 20, 900))
    wrong = rng.random(900) < 0.2 + 0.6 * (labels % 3 == 0)  # what is wrong depends on the class
    score = rng.normal(size=900) + 0.3 * wrong
    expected = calibration_error(score, wrong, labels)
    for _ in range(5):
        order = rng.permutation(900)
        assert calibration_error(score[order], wrong[order], labels[order]) == pytest.approx(expected, abs=1e-12)
