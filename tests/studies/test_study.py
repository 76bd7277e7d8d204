"""A study tunes every variant alike on held-out classes, then opens the test classes once; a page is made of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import train
import yaml
from conftest import ROOT
from PIL import Image
from rich.console import Console
from support.tiny_runs import TINY

from idml_zoo.cli.main import main
from idml_zoo.reports.bootstrap import Difference
from idml_zoo.results import ResultError, read_results
from idml_zoo.studies import pages, study, sweep


def write_study(folder):
    """A study of two variants and a scout over pictures of noise, so that trials differ in what they reach."""
    for c in range(6):
        (folder / "photos" / f"class_{c}").mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng([c, i]).integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / f"class_{c}" / f"{i}.png")
    settings = dict(w.split("=", 1) for w in TINY) | {"source": str(folder / "photos"), "epochs": "1"}
    classes = {"val_classes": 0.5, "train_classes": "0-3", "test_classes": "4-5"}
    content = {
        "recipe": str(ROOT / "recipes" / "cub_resnet50.yaml"),
        "set": {k: yaml.safe_load(v) for k, v in settings.items()}
        | {"output": str(folder / "runs"), "warmup_epochs": 0, **classes},
        "variants": ["pa", "idml_no_mixup"],
        "trials": {"cosine": [{"lr": 4e-3}, {"lr": 2e-3}], "introspective": [{"tau": 5.0}, {"tau": 1.0}]},
        "scout": {"variants": ["proxy_nca"], "trials": [{"lr": 4e-3}]},
        "controls": [{"variant": "pa", "lr": 1e-3}],  # the rate of idml_no_mixup
        "seeds": [0, 1],
        "measure": {"similarity": "both", "corruptions": "blur"},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return content


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Such a study and its arguments; nothing may run."""
    content = write_study(tmp_path)
    monkeypatch.setattr(study, "run_all", None)
    return tmp_path / "small.yaml", content, ["--leaderboard", str(tmp_path / "board")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Such a study, all of it done in this process: its folder, and the configurations in the order they ran."""
    folder, ran = tmp_path_factory.mktemp("study"), []
    write_study(folder)

    def in_process(next_run, jobs, logs, out):
        while run := next_run():
            ran.append(run.config)
            assert train.main(["--config", run.file, *run.words]) == 0
        return 0

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(study, "run_all", in_process)
        arguments = [str(folder / "small.yaml"), "--leaderboard", str(folder / "board")]
        assert main(["study", *arguments]) == 0
        done = list(ran)
        assert main(["study", *arguments]) == 0
        assert ran == done, "nothing is run twice"
    return folder, ran


def test_the_table_is_shown_where_no_page_can_be_made(finished, tmp_path, capsys):
    """As in a clone: the queries of the trials are not stored there."""
    folder, ran = finished
    board = Path(shutil.copytree(folder / "board", tmp_path / "board"))
    sweep.show(Console(), ran[0].replace(leaderboard=str(board)))
    assert "no page" not in capsys.readouterr().err
    next((board / "results").rglob("*.queries.npz")).unlink()
    sweep.show(Console(), ran[0].replace(leaderboard=str(board)))
    told = capsys.readouterr()
    assert "MAP@R" in told.out and "no page: " in told.err and ".queries.npz is missing" in told.err


def test_a_trial_that_collapses_counts_as_tried(tmp_path, monkeypatch, capsys):
    content = write_study(tmp_path)
    file, board, ran = tmp_path / "small.yaml", tmp_path / "board", []
    trials = [{"lr": 1e9}, {"lr": 1e-3}]  # the first leaves nothing finite
    content |= {"variants": ["pa"], "trials": {"cosine": trials, "introspective": trials}, "seeds": [0]}
    content["set"]["epochs"] = 3
    file.write_text(yaml.safe_dump({k: v for k, v in content.items() if k != "scout"}))

    def in_process(next_run, jobs, logs, out):
        failed = 0
        while run := next_run():
            ran.append(run.config.optimizer.lr)
            failed += train.main(["--config", run.file, *run.words])
        return failed

    monkeypatch.setattr(study, "run_all", in_process)
    arguments = [str(file), "--leaderboard", str(board)]
    assert main(["study", *arguments]) == 1
    assert ran == [1e9, 1e-3, 1e-3], "both trials, and the one seed of the better, which is no control then"
    (failed,) = (board / "validation" / "lost").rglob("*.yaml")
    assert failed.parts[-3:] == ("mine", "pa-test_resnet-32px-lr1000000000.0-validation", "seed0.yaml")
    told = yaml.safe_load(failed.read_text())
    assert told["recipe"]["lr"] == 1e9 and told["versions"]["torch"] and told["command"]
    shown = capsys.readouterr().out
    assert "failed" in shown and f"failed: {told['reason']} (" in shown and "1 of 1 seeds measured" in shown
    assert main(["study", *arguments]) == 0 and len(ran) == 3, "nor is it tried again"
    (found,) = pages.read_sets(tmp_path, board)
    assert pages.BLOCKS["tuning"](found).count(": failed") == 1

    only = yaml.safe_load(file.read_text()) | {"trials": {"cosine": trials[:1], "introspective": trials[:1]}}
    only["controls"] = []
    file.write_text(yaml.safe_dump(only))
    assert main(["study", *arguments]) == 0 and len(ran) == 3
    assert "every trial failed: offer it others" in capsys.readouterr().out
    failed.write_text("reason: half of a fi")
    assert main(["study", *arguments]) == 1
    assert "does not describe a failed trial ('recipe'); delete it" in capsys.readouterr().err
    failed.unlink()
    assert main(["study", *arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("to do  variant=pa") == 1


def test_what_is_missing_is_told(small, capsys):
    file, _, arguments = small
    assert main(["study", str(file), "--dry-run", *arguments]) == 0
    assert capsys.readouterr().out.count("to do  variant") == 1 + 2 + 2, "trials; nothing to measure yet"


def test_a_trial_is_named_like_its_row(small, capsys):
    file, content, arguments = small
    file.write_text(yaml.safe_dump(content | {"name": "{variant}-short-tuned"}))
    assert main(["study", str(file), "--dry-run", *arguments]) == 0
    assert "name={variant}-short-lr0.002 " in capsys.readouterr().out


def test_a_study_tunes_then_measures(finished, capsys):
    folder, ran = finished
    trials = [c for c in ran if c.evaluation.evaluate_on == "validation"]
    finals = [c for c in ran if c.evaluation.evaluate_on == "test"]
    # proxy_nca's scout is one of its two trials; the scout joins plain and introspective
    names = ["pa", "idml_no_mixup", "proxy_nca", "idml_proxy_nca_no_mixup"]
    assert [c.variant for c in trials] == ["proxy_nca", *["pa"] * 2, *["idml_no_mixup"] * 2, names[2], *[names[3]] * 2]
    assert [(c.variant, c.seed) for c in finals] == [(n, s) for n in [*names, "pa"] for s in (0, 1)]
    assert [(c.optimizer.lr, c.evaluation.corruptions) for c in finals if c.name.endswith("-lr0.001-control")] == [
        (1e-3, "")
    ] * 2
    known = read_results(folder / "board" / "validation" / "results")
    assert {r.protocol.split for r in known} == {"validation"} and len(known) == 8
    for variant, key in (("pa", "lr"), ("idml_no_mixup", "tau")):  # the best by MAP@R is what was measured
        scores = {
            yaml.safe_load(r.provenance.recipe)[key]: r.metrics["map@r"] for r in known if r.model.variant == variant
        }
        tuned = [c for c in finals if c.variant == variant and c.name.endswith("-tuned")]
        assert {c.flat()[key] for c in tuned} == {max(scores, key=scores.get)}
    measured = read_results(folder / "board" / "results")
    assert {r.row for r in measured if r.model.variant == "idml_no_mixup"} == {
        "idml_no_mixup-test_resnet-32px-tuned",
        "idml_no_mixup-test_resnet-32px-tuned-introspective",
    }
    assert not [r for r in measured if r.row.startswith("pa-") and r.protocol.similarity == "introspective"]
    assert main(["study", str(folder / "small.yaml"), "--dry-run", "--leaderboard", str(folder / "board")]) == 0
    out = capsys.readouterr().out
    assert out.count("2 of 2 seeds measured") == 5 and "{'lr': 0.001}, 2 of 2 seeds measured" in out


def chosen_trial(found: pages.Set) -> str:
    """The row of the trial with the highest MAP@R, from its file's own words."""
    tau = found.lines["idml_no_mixup"].settings["tau"]
    (row,) = (t.result.row for t in found.progress.trials("idml_no_mixup") if t.settings["tau"] == tau)
    return row


def test_the_page_is_made_of_the_result_files(finished, tmp_path, capsys):
    folder, _ = finished
    page = tmp_path / "results.md"
    names = ["standing", "across", "headline", "claims", "levels", *(f"{block} mine" for block in pages.BLOCKS)]
    page.write_text("".join(f"<!-- made: {n} -->\n<!-- end -->\n" for n in names))
    of_images = {r.provenance.data_sha256: r.queries for r in read_results(folder / "board" / "results")}
    classes = {sha: {"runs": [[i, 1] for i in range(n)]} for sha, n in of_images.items()}
    (folder / "board" / "classes.json").write_text(json.dumps(classes))
    arguments = ["--page", str(page), "--studies", str(folder), "--leaderboard", str(folder / "board")]
    assert pages.main([*arguments, "--check"]) == 1
    assert pages.main(arguments) == 0
    assert pages.main([*arguments, "--check"]) == 0
    text = page.read_text()
    blocks = dict(zip(names, text.split("<!-- end -->"), strict=False))
    known = [r for r in read_results(folder / "board" / "results") if r.protocol.similarity == "cosine"]
    control = [r for r in known if r.row == "pa-test_resnet-32px-lr0.001-control"]
    tuned = [r for r in known if r not in control]
    by_variant = {v: [r for r in tuned if r.model.variant == v] for v in ("pa", "idml_no_mixup")}
    for variant, rows in by_variant.items():
        recall = [100 * r.metrics["recall@1"] for r in rows]
        (row,) = [line for line in blocks["rows mine"].splitlines() if line.startswith(f"| `{variant}` |")]
        assert f"| {np.mean(recall):.1f} ± {np.std(recall, ddof=1):.1f} |" in row
        assert f"results/{rows[1].path('')})" in row, "every number has its file"
    off = 100 * np.subtract(*(np.mean([r.metrics["recall@1"] for r in by_variant[v]]) for v in ("idml_no_mixup", "pa")))
    assert f"| `idml_no_mixup` − `pa` | {off:+.2f} [" in blocks["compare mine"].replace("**", "")
    assert "`idml_proxy_nca_no_mixup` − `proxy_nca`" in blocks["compare mine"]
    here = np.mean([r.metrics["recall@1"] for r in control])
    own, plain = (np.mean([r.metrics["recall@1"] for r in by_variant[v]]) for v in ("idml_no_mixup", "pa"))
    compared = blocks["compare mine"].replace("**", "")
    assert f"| `idml_no_mixup` − `pa` at lr 0.001 | {100 * (own - here):+.2f} [" in compared
    chosen = next(yaml.safe_load(r.provenance.recipe)["lr"] for r in by_variant["pa"])
    assert f"| `pa`: lr 0.001 − lr {chosen:g} | {100 * (here - plain):+.2f} [" in compared
    assert "| `pa`, a control | lr 0.001: not chosen |" in blocks["rows mine"]
    assert "| `idml_no_mixup` − `pa` at lr 0.001, a control |" in blocks["across"]
    assert "`idml_no_mixup` against `pa` at the same lr 0.001 (a control): " in blocks["findings mine"]
    (found,) = pages.read_sets(folder, folder / "board")
    row = found.lines["pa"].row
    apart, together = (pages.compared(found, row, row, same)["R@1"] for same in (False, True))
    assert together.low == together.high == 0 and apart.low < 0 < apart.high, "seeds differ, but not from themselves"
    line = next(line for line in blocks["headline"].splitlines() if line.startswith("| mine |"))
    assert [c.strip() for c in line.split("|")][3] in blocks["rows mine"] and "(`proxy_nca`)" in line
    assert f"`idml_no_mixup` against `pa`: {'is' if '**' in blocks['across'] else 'cannot'}" in blocks["findings mine"]
    assert " of 4 steps of severity" in blocks["findings mine"]
    assert blocks["tuning mine"].count("**") == 2 * 4 and "Scouts: `proxy_nca`" in blocks["tuning mine"]
    statements = {c[1].strip(): c for line in blocks["claims"].splitlines() if len(c := line.split("|")) > 5}
    pairs = statements["Training with the introspective metric retrieves better [R]"]
    assert sum(int(n) for n in pairs[3:6]) == 2, "idml_no_mixup and the introspective scout, each against its loss"
    levels = [
        [r.metrics["auroc_level"] for r in known if r.model.variant == v]
        for v in ("idml_no_mixup", "idml_proxy_nca_no_mixup")
    ]
    above = sum(min(v) > 0.5 for v in levels)
    assert int(statements["The level tells which images will be retrieved wrongly [R]"][3]) == above
    assert "Complete: mine." in blocks["standing"]
    part = tmp_path / "part"
    shutil.copytree(folder / "board", part)
    control[0].path(part / "results").unlink()
    (fewer,) = pages.read_sets(folder, part)
    assert not fewer.controls, "one seed has no spread"
    assert pages.ACROSS["standing"]([fewer]) == "Of mine, not measured yet: the control `pa` (lr 0.001)."
    part = replace(found, lines={n: x for n, x in found.lines.items() if n != "pa"})
    assert pages.ACROSS["standing"]([part]) == "Of mine, not measured yet: `pa`."
    (folder / "later.yaml").touch()
    assert pages.ACROSS["standing"]([found]).endswith("No row is tuned yet of `later`.")
    (folder / "later.yaml").unlink()
    best = replace(found, lines={n: x for n, x in found.lines.items() if n != "proxy_nca"})
    assert "proxy_nca" not in pages.ACROSS["headline"]([best]), "the best other loss is not measured: not the next best"
    elsewhere = replace(row.first, protocol=replace(row.first.protocol, version=1))
    with pytest.raises(ResultError, match="measured on different images or by different protocol versions"):
        pages.compared(found, row, replace(row, results=(elsewhere,)))
    (tried,) = (r for r in read_results(folder / "board" / "validation" / "results") if r.row == chosen_trial(found))
    (line,) = (line for line in blocks["tuning mine"].splitlines() if line.startswith("| `idml_no_mixup` |"))
    assert f"| {100 * tried.metrics['auroc_level']:.1f} |" in line
    assert blocks["levels"].count("| mine | `idml_") == 2 and "`pa`" not in blocks["levels"]
    assert (tmp_path / "results" / "across.png").stat().st_size > 10_000
    assert (tmp_path / "results" / "mine-risk.png").stat().st_size > 10_000
    assert (tmp_path / "results" / "mine-corruptions.png").stat().st_size > 10_000
    page.write_text(text.replace(f"{off:+.2f} [", f"{off + 1:+.2f} ["))
    assert pages.main([*arguments, "--check"]) == 1
    page.write_text("<!-- made: rows moon -->\n<!-- end -->")
    with pytest.raises(ValueError, match="no block 'rows moon'"):
        pages.main(arguments)


@pytest.mark.parametrize(
    ("mean", "low", "high", "says"),
    [
        (0.02, 0.01, 0.03, "is better in R@1 (+2.00 [+1.00, +3.00])"),
        (-0.02, -0.03, -0.01, "is worse in R@1 (-2.00 [-3.00, -1.00])"),
        (0.02, -0.01, 0.03, "cannot be told apart in R@1 (+2.00 [-1.00, +3.00])"),
    ],
)
def test_a_finding_says_what_its_interval_allows(mean, low, high, says):
    assert pages.verdict("a", "b", {"R@1": Difference(mean, low, high, 0.5)}) == f"`a` against `b`: {says}."


def test_ranks_on_validation_and_on_test():
    assert pages.ranks({"a": 0.3, "b": 0.5, "c": 0.3}) == {"a": 2, "b": 1, "c": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": {"cosine": [{"lr": 1e-3}], "introspective": [{"lr": 1e-3}, {"lr": 2e-3}]}}, "equally many trials"),
        ({"variant": ["pa"]}, "unknown key 'variant'; did you mean 'variants'?"),
        ({"variants": ["idlm"]}, "idlm"),
        ({"set": {"epohcs": 3}}, "unknown key 'epohcs'; did you mean 'epochs'?"),
        ({"recipe": "none.yaml"}, "cannot read configuration"),
        (
            {"scout": {"variants": ["pa"], "trials": [{"lr": 1e-3}]}},
            "pa cannot be a scout, for there is no idml_pa_no_mixup",
        ),
        ({"scout": {"variants": ["triplet"]}}, "scout holds variants and trials"),
        ({"seeds": []}, "name variants and seeds"),
        ({"controls": [{"variant": "pa"}]}, "a control names its variant and its settings, got {'variant': 'pa'}"),
        ({"controls": [{"variant": "paa", "lr": 1e-3}]}, "did you mean"),
    ],
)
def test_a_wrong_study_is_one_clear_error(small, capsys, change, message):
    file, content, arguments = small
    file.write_text(yaml.safe_dump(content | change))
    assert main(["study", str(file), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert main(["study", str(file.with_name("other.yaml")), *arguments]) == 1
    assert "cannot read study" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_studies_at_hand_can_be_read(path, tmp_path):
    progress = study.Progress(study.read_study(path), str(tmp_path))
    assert len(list(progress.missing())) >= 4 * len(progress.study.variants)
    assert len(progress.study.seeds) >= 3
