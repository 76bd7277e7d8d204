"""A model that is stored in the package is measured as it is stored."""

import functools
import shutil

import publish
import pytest
import torch
from safetensors.torch import load_file

import idml_zoo
from idml_zoo.files import sha256_of
from idml_zoo.models.zoo import EMBEDDED
from idml_zoo.reports.card import check_card
from idml_zoo.results import read_results

NAME = "idml_test_resnet_glyphs"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A trained model and its leaderboard; measuring takes a few classes."""
    shutil.copytree(EMBEDDED / NAME, tmp_path / "model")
    shutil.move(tmp_path / "model" / "results", tmp_path / "board" / "results")
    some = idml_zoo.benchmarks["glyphs"].splits().test.select_classes(range(8))
    monkeypatch.setattr(publish, "evaluate", functools.partial(idml_zoo.evaluate, split=some, progress=False))
    return [
        "package",
        str(tmp_path / "model"),
        NAME,
        "--leaderboard",
        str(tmp_path / "board"),
        "--into",
        str(tmp_path / "zoo"),
    ]


def test_half_the_bytes_with_a_card_of_their_own(run, tmp_path, capsys):
    assert publish.main(run) == 0
    made = tmp_path / "zoo" / NAME
    line = capsys.readouterr().out.strip()
    assert line == f'"{NAME}": Weights("{sha256_of(made / "model.safetensors")}"),'
    half, whole = (load_file(p / "model.safetensors") for p in (made, EMBEDDED / NAME))
    assert {v.dtype for v in half.values() if v.is_floating_point()} == {torch.float16}
    assert all(torch.equal(half[k], whole[k].to(half[k].dtype)) for k in whole)
    assert check_card(made) == []
    (result,), (old,) = read_results(made / "results"), read_results(EMBEDDED / NAME / "results")
    assert result.queries == 8 * 12 != old.queries, "measured anew"
    assert result.training == f"{old.training}, stored as float16" and result.provenance.recipe == old.provenance.recipe
    assert result.provenance.trained["commit"] == old.provenance.trained.get("commit", old.provenance.commit)
    model = idml_zoo.create_model(f"local-dir:{made}", pretrained=True)  # its probe agrees
    assert next(model.parameters()).dtype == torch.float32


def test_what_does_not_fit_is_refused(run, tmp_path, monkeypatch, capsys):
    assert publish.main([*run[:2], "idml_resnet50_cub", *run[3:]]) == 1
    assert "is idml_test_resnet_glyphs, not idml_resnet50_cub" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(publish, "MAX_BYTES", 100_000)
        assert publish.main(run) == 1
    assert "at most 0 come with the package" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "board")
    (tmp_path / "board" / "results").mkdir(parents=True)
    assert publish.main(run) == 1
    assert "has no result of the weights" in capsys.readouterr().err
    assert not (tmp_path / "zoo").exists()
