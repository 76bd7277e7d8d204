"""A row comes back from its recipe; what does not come back is said."""

import json

import pytest
import train
from support.tiny_runs import tiny

from idml_zoo.cli.main import main


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Results of one row that was trained, searched both ways."""
    folder = tmp_path_factory.mktemp("repeat")
    more = ["epochs=1", "warmup_epochs=0", "similarity=both", "variant=idml_no_mixup", "name=row", "threads=1"]
    assert train.main([*tiny(folder), *more]) == 0
    return folder / "board" / "results" / "mine"


@pytest.mark.parametrize("row", ["row", "row-introspective"])
def test_a_row_comes_back_bit_for_bit(board, tmp_path, capsys, row):
    assert main(["repeat", str(board / row / "seed0.json"), "--trust", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "weights and metrics are the same, bit for bit" in out and "not the same" not in out
    assert (tmp_path / "leaderboard" / "results" / "mine" / row / "seed0.json").is_file()


def changed(board, folder, change):
    """A result that claims something else."""
    content = json.loads((board / "row" / "seed0.json").read_text())
    change(content)
    path = folder / "mine" / "row" / f"seed{content['seed']}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return str(path)


def test_what_does_not_come_back_is_said(board, tmp_path, capsys):
    def worse(content):
        content["metrics"]["recall@1"] -= 0.02
        content["provenance"]["versions"]["timm"] = "0.1"
        content["provenance"]["recipe"] = content["provenance"]["recipe"].replace("seed: 0", "seed: 1")
        content["seed"] = 1
        content["queries_sha256"] = None

    path = changed(board, tmp_path, worse)
    assert main(["repeat", path, "--trust", "--out", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert "weights differ; the largest difference" in out
    assert "not the same: " in out and "timm 0.1 → " in out
    assert main(["repeat", path, "--trust", "--out", str(tmp_path / "out"), "--within", "100"]) == 0


def test_what_was_not_trained_by_the_recipe_is_refused(board, tmp_path, capsys):
    path = changed(board, tmp_path, lambda c: c["provenance"].update(recipe="", recipe_sha256=None))
    assert main(["repeat", path]) == 1
    assert "mine/row: no recipe in its result" in capsys.readouterr().err
    assert main(["repeat", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
