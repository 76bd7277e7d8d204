import csv
import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from rich.console import Console
from support.rows import make_result

from idml_zoo import results
from idml_zoo.cli.main import main
from idml_zoo.evaluation.protocol import save_result
from idml_zoo.files import FileError, write_file
from idml_zoo.reports import leaderboard
from idml_zoo.reports.leaderboard import rows
from idml_zoo.results import PROTOCOL, Result, ResultError, read_result, read_results


def save(result: Result, root) -> None:
    write_file(result.path(root), result.to_json())


def test_round_trip(tmp_path):
    result = make_result()
    save(result, tmp_path)
    assert read_result(result.path(tmp_path)) == result
    assert result.to_json() == read_result(result.path(tmp_path)).to_json()


def damage(data, path, value):
    *parents, last = path
    for p in parents:
        data = data[p]
    if value is KeyError:
        del data[last]
    else:
        data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], 4, "schema is 4, this version reads 1–3"),
        (["schema"], "2", "schema is '2'"),
        (["cost"], {"euros": 3.0}, "cost must hold gmacs"),
        (["cost"], {"gmacs": -3.0}, "got gmacs = -3.0"),
        (["corruptions"], {"blur": {"6": {"recall@1": 0.1, "level": 1.0}}}, r"corruptions\.blur\.6"),
        (["corruptions"], {"blur": {"1": {"recall@1": 1.1, "level": 1.0}}}, r"recall@1 in \[0, 1\]"),
        (["corruptions"], {"blur": {"1": {"recall@1": 0.1}}}, r"corruptions\.blur\.1 must hold"),
        (["open_set"], {"level": {"unknown": 0.5}}, r"open_set\.level must hold unknown, unknown_std, wrong"),
        (["open_set"], {"level": dict.fromkeys(("unknown", "unknown_std", "wrong", "wrong_std"), 1.5)}, r"in \[0, 1\]"),
        (
            ["open_set"],
            {"luck": dict.fromkeys(("unknown", "unknown_std", "wrong", "wrong_std"), 0.5)},
            r"open_set\.luck",
        ),
        (["metrics", "recall@1"], 57.4, r"recall@1 must be a fraction in \[0, 1\] or null, got 57.4"),
        (["metrics", "recall@1"], "57.4", "must be a fraction"),
        (["metrics", "recall@1"], float("nan"), "must be a fraction"),
        (["metrics", "recal@1"], 0.4, "unknown metric 'recal@1'"),
        (["metrics", "recall@1"], KeyError, "no recall@1"),
        (["metrics", "recall@1"], None, "no recall@1"),
        (["benchmark"], "reported", "no benchmark can be called 'reported'"),
        (["corruptions"], {"<script>": {"1": {"recall@1": 0.1, "level": 1.0}}}, "a corruption's name must be letters"),
        (["protocol", "split"], "<script>", "protocol.split must be letters"),
        (["provenance", "versions"], None, "provenance.versions must be an object"),
        (["seed"], -1, "seed must be an integer"),
        (["row"], "../../etc", "row must be letters"),
        (["protocol", "version"], 7, "protocol version is 7, this version knows 1–4"),
        (["protocol", "checkpoint"], "best", "checkpoint must be one of"),
        (["provenance"], [], "provenance must be an object"),
        (["provenance", "command"], KeyError, "provenance: missing command"),
        (["model", "colour"], "red", "model: unknown colour"),
        (["queries"], 0, "queries must be a positive"),
        (["queries_without_positive"], 10, "queries_without_positive is 10 of 10"),
        (["seed"], 1, "must lie under its own benchmark, row and seed"),
    ],
)
def test_damaged_results_are_refused_by_name(tmp_path, path, value, message):
    result = make_result()
    data = json.loads(result.to_json())
    damage(data, path, value)
    file = result.path(tmp_path)
    write_file(file, json.dumps(data))
    with pytest.raises(ResultError, match=message) as caught:
        read_results(tmp_path)
    assert str(file) in str(caught.value)


def test_files_of_the_first_schema_are_read(tmp_path):
    result = make_result()
    data = json.loads(result.to_json()) | {"schema": 1}
    del data["cost"], data["corruptions"]
    write_file(result.path(tmp_path), json.dumps(data))
    old = read_result(result.path(tmp_path))
    assert old.schema == 1 and old.cost == {} and replace(old, schema=results.SCHEMA) == result


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1', "[1, 2]", "null", "\xff"])
def test_half_written_results_are_refused_by_name(tmp_path, text):
    file = make_result().path(tmp_path)
    write_file(file, text)
    with pytest.raises(ResultError, match="seed0.json"):
        read_result(file)


def test_an_unwritable_place_is_one_clear_error_and_leaves_no_rubbish(tmp_path):
    (tmp_path / "results").write_text("a file where a folder should be")
    with pytest.raises(FileError, match=r"cannot write .*seed0.json .*; free space or choose another folder"):
        save(make_result(), tmp_path / "results")
    save(make_result(), tmp_path / "good")
    assert sorted(p.name for p in (tmp_path / "good").rglob("*") if p.is_file()) == ["seed0.json"]


def test_the_table_has_mean_and_sample_std_and_missing_cells_stay_missing(tmp_path):
    for seed, recall in enumerate((0.50, 0.52, 0.57)):
        save(make_result(seed=seed, recall=recall), tmp_path / "results")
    partly = make_result("idml-b", 1, 0.9)
    save(make_result("idml-b", 0, 0.9), tmp_path / "results")
    save(replace(partly, metrics={k: v for k, v in partly.metrics.items() if k != "map@r"}), tmp_path / "results")
    leaderboard.build_leaderboard(tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "| 53.0 ± 3.6 |" in page and page.index("idml-b") < page.index("idml-a"), "best first"
    line = next(x for x in page.splitlines() if "idml-b" in x)
    assert "| 90.0 ± 0.0 | 90.0 ± 0.0 | – |" in line, "MAP@R of one seed is missing: no mean of the other"
    assert "[0](results/mine/idml-a/seed0.json) [1](results/mine/idml-a/seed1.json)" in page
    assert "AUROC ‖u‖" not in page.split("## ")[1], "a column with no value is left out"
    rows = list(csv.DictReader((tmp_path / "mine.csv").read_text().splitlines()))
    assert float(rows[1]["recall@1"]) == pytest.approx(0.53) and float(rows[1]["recall@1_seed_std"]) == pytest.approx(
        0.036056
    )


def test_many_rows_fit_a_terminal():
    """And a log, which has 80 letters a line: no value is broken, no name cut off."""
    for count in (3, 4, 12):
        names = [f"idml_multi_similarity_no_mixup-tf_efficientnet_lite0-96px-lr0.{i}-tau1.0" for i in range(count)]
        some = [make_result(row=name, seed=seed, recall=0.5 + 0.01 * seed) for name in names for seed in (0, 1)]
        out = Console(soft_wrap=True, width=80, file=io.StringIO())
        out.print(leaderboard.summary(some))
        told = out.file.getvalue()
        assert told.count("50.5 ± 0.7") == (count if count > 3 else 2 * count), told  # R@1 alone, R@1 and R@2
        if count > 3:
            assert max(map(len, told.splitlines())) <= 80
            letters = "".join(line.split("  ")[0].strip() for line in told.splitlines()[2:])
            assert letters == "".join(sorted(names))


def test_reported_rows_stand_apart(tmp_path):
    save(make_result(), tmp_path / "results")
    header = "benchmark,method,backbone,dim,source,note,recall@1,nmi\n"
    (tmp_path / "reported.csv").write_text(header + "mine,Theirs,R50,512,their README,No seeds.,70.7,\n")
    leaderboard.build_leaderboard(tmp_path)
    page = (tmp_path / "README.md").read_text()
    measured, reported = page.split("### Reported")
    assert (
        "Theirs" not in measured
        and "| Theirs | 70.7 | R50 | 512 | their README |" in reported
        and "No seeds." in reported
    )
    for line, message in [
        ("mine,Theirs,R50,512,,x,70.7,\n", "line 2: needs a source"),
        ("mine,Theirs,R50,512,s, with a comma,x,70,\n", "line 2: more cells than columns; quote a cell"),
        ("mine,Theirs,R50,512,s,x,170,\n", "recall@1 must be a percentage or empty, got '170'"),
        ("mine,Theirs,R50,512,s,x,~71 (chart),\n", "must be a percentage"),
    ]:
        (tmp_path / "reported.csv").write_text(header + line)
        with pytest.raises(ResultError, match=message):
            leaderboard.render(tmp_path)


def test_seeds_of_different_protocols_never_share_a_row(tmp_path):
    one, two = make_result(), make_result(seed=1)
    save(one, tmp_path / "results")
    save(replace(two, protocol=replace(two.protocol, image_size=128)), tmp_path / "results")
    with pytest.raises(ResultError, match="seed 1 has another protocol, model or training than seed 0"):
        leaderboard.render(tmp_path)


def test_only_files_of_its_own_are_written_over(tmp_path):
    """A project's root may be given as the leaderboard's folder by mistake."""
    save(make_result(), tmp_path / "results")
    (tmp_path / "precious.csv").write_text("a,b\n1,2\n")
    (tmp_path / "README.md").write_text("# My project\n")
    with pytest.raises(ResultError, match=r"README.md was not made by .*; give the leaderboard a folder of its own"):
        leaderboard.build_leaderboard(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My project\n" and not (tmp_path / "mine.csv").exists()
    (tmp_path / "README.md").unlink()
    leaderboard.build_leaderboard(tmp_path)
    (tmp_path / "results" / "mine" / "idml-a" / "seed0.json").unlink()
    leaderboard.build_leaderboard(tmp_path)
    assert (tmp_path / "precious.csv").exists() and not (tmp_path / "mine.csv").exists()


def test_rows_are_ranked_among_those_of_the_same_images(tmp_path):
    for i, recall in enumerate((0.9, 0.8, 0.2)):
        odd = {"data_sha256": "other"} if i == 0 else {}
        top1 = np.arange(400) < 400 * recall
        values = {"top1": top1, "r_precision": top1 / 1.0, "map@r": top1 / 1.0}
        made = make_result(f"row{i}", recall=recall, queries=400, per_query=values)
        save_result(replace(made, provenance=replace(made.provenance, **odd)), tmp_path / "results")
    (section,) = rows.sections(tmp_path)
    assert [(r.first.row, r.rank) for r in section.measured[("test", PROTOCOL)]] == [
        ("row0", None),
        ("row1", 1),
        ("row2", 2),
    ]
    other = make_result("row1", seed=1)
    save(replace(other, provenance=replace(other.provenance, data_sha256="other")), tmp_path / "results")
    with pytest.raises(ResultError, match="seed 1 was measured on other images than seed 0"):
        leaderboard.render(tmp_path)


def test_a_checkpoint_chosen_on_the_test_set_and_dirty_code_are_flagged(tmp_path):
    one = make_result()
    one = replace(
        one, protocol=replace(one.protocol, checkpoint="test"), provenance=replace(one.provenance, dirty=True)
    )
    save(one, tmp_path / "results")
    page = leaderboard.render(tmp_path)["README.md"]
    assert "⚠ checkpoint chosen on the test set" in page and "uncommitted changes" in page


def test_check_finds_a_single_byte(tmp_path, capsys):
    save(make_result(), tmp_path / "results")
    assert main(["leaderboard", "build", "--root", str(tmp_path)]) == 0
    assert main(["leaderboard", "check", "--root", str(tmp_path)]) == 0
    page = tmp_path / "README.md"
    page.write_bytes(page.read_bytes() + b"\n")
    (tmp_path / "gone.csv").write_text("kind,rank,row,split\n")
    assert main(["leaderboard", "check", "--root", str(tmp_path)]) == 1
    assert "README.md, gone.csv differ from the result files" in capsys.readouterr().err
    assert main(["leaderboard", "build", "--root", str(tmp_path)]) == 0
    assert leaderboard.check(tmp_path) == []
    assert main(["leaderboard", "check", "--root", str(tmp_path / "nowhere")]) == 1
    assert "run from the project's root or give --root" in capsys.readouterr().err


def test_the_project_s_own_leaderboard_agrees_with_its_files():
    assert leaderboard.check(ROOT / "leaderboard") == []


def test_building_tables_needs_no_torch():
    arguments = ["leaderboard", "check", "--root", str(ROOT / "leaderboard")]
    code = (
        f"import sys; sys.modules['torch'] = sys.modules['timm'] = None; sys.path.insert(0, {str(ROOT)!r}); "
        f"from idml_zoo.cli.main import main; sys.exit(main({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
