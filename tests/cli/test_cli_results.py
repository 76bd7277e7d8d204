"""``idml-zoo results``: what it shows is in the files, and what is damaged is named."""

import json

import pytest
from support.rows import row

from idml_zoo.cli.main import main


def test_show(tmp_path, capsys):
    folder = row(tmp_path, "a", 0.5, cost={"gmacs": 1.5}, corruptions={"blur": {"2": {"recall@1": 0.25, "level": 0.5}}})
    assert main(["results", "show", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "mine / a, 400 queries" in out and "seed 1" in out and "mean ± std" in out
    assert "gmacs 1.5" in out and "blur, by severity: 2: 25.0 (level 0.5)" in out and "commit abc" in out
    assert main(["results", "show", str(folder / "seed1.json")]) == 0
    assert "mean ± std" not in capsys.readouterr().out


def test_diff(tmp_path, capsys):
    low, high = row(tmp_path, "low", 0.5), row(tmp_path, "high", 0.6)
    assert main(["results", "diff", str(high), str(low)]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "R@1" in x)
    interval = line.split("[")[1].split("]")[0].split(",")
    assert 0 < float(interval[0]) < 10 < float(interval[1]) + 8 and "=" not in line
    same = row(tmp_path, "same", 0.5)
    assert main(["results", "diff", str(same), str(low)]) == 0
    out = capsys.readouterr().out
    assert " = " in next(x for x in out.splitlines() if "R@1" in x) and "cannot be told apart" in out


def test_rows_of_other_images_are_not_compared(tmp_path, capsys):
    a, b = row(tmp_path, "a", 0.5, seeds=1), row(tmp_path, "b", 0.5, seeds=1)
    file = b / "seed0.json"
    file.write_text(file.read_text().replace('"data_sha256": "ff"', '"data_sha256": "ee"'))
    assert main(["results", "diff", str(a), str(b)]) == 1
    assert "measured on different images" in capsys.readouterr().err


def test_published_results_are_whole_without_the_values_of_their_queries(tmp_path, capsys):
    folder = row(tmp_path / "results", "a", 0.5, seeds=1)
    (folder / "seed0.queries.npz").unlink()
    assert main(["results", "validate", str(tmp_path / "results")]) == 1
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    capsys.readouterr()
    assert main(["results", "validate", str(tmp_path / "results")]) == 0
    assert "1 of 1 result files are whole" in capsys.readouterr().out


def test_validate_names_what_is_wrong(tmp_path, capsys):
    root, tmp_path = tmp_path, tmp_path / "results"
    a, b, c, d = (row(tmp_path, name, 0.5, seeds=1) for name in "abcd")
    assert main(["results", "validate", str(root)]) == 0
    assert "4 of 4 result files are whole" in capsys.readouterr().out
    (a / "seed0.queries.npz").unlink()
    (b / "seed0.queries.npz").write_bytes((b / "seed0.queries.npz").read_bytes()[:-1])
    data = json.loads((c / "seed0.json").read_text())
    data["metrics"]["recall@1"] += 0.01
    (c / "seed0.json").write_text(json.dumps(data))
    (d / ".seed0.json.half").write_text("{")
    assert main(["results", "validate", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "a/seed0.queries.npz is missing" in captured.err
    assert "b/seed0.queries.npz is not the file that seed0.json was written with" in captured.err
    assert "c/seed0.json: recall@1 is" in captured.err and ".seed0.json.half is no result file" in captured.err
    assert "1 of 4 result files are whole" in captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere"], "no result file nowhere"),
        (["validate", "nowhere"], "no result files under nowhere"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["results", *arguments]) == 1
    assert message in capsys.readouterr().err
