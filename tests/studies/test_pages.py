"""The pages under docs/ are what the result files say."""

import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from conftest import ROOT

from idml_zoo.studies import gradients_page


@pytest.mark.parametrize("script", ["gradients_page", "pages"])
def test_the_page_agrees_with_the_result_files(script):
    done = subprocess.run(
        [sys.executable, "-m", f"idml_zoo.studies.{script}", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_table_of_every_set_is_on_one_page():
    from idml_zoo.studies import pages

    text = "\n".join(page.read_text() for page in pages.PAGES)
    names = re.findall(r"^<!-- made: ([\w ]+) -->$", text, re.MULTILINE)
    assert len(names) == len(set(names))
    everywhere = {f"{kind} {path.stem}" for kind in pages.BLOCKS for path in pages.STUDIES.glob("*.yaml")}
    elsewhere = {name for name in everywhere if name.startswith("twins ") and name != "twins glyphs"}
    assert {*pages.ACROSS, *everywhere} - set(names) == elsewhere | {"corrupted glyphs"}


def test_a_changed_number_is_seen():
    from idml_zoo.reports import blocks

    text = gradients_page.PAGE.read_text()
    make = partial(gradients_page.block, results=ROOT / "leaderboard" / "results")
    assert blocks.fill(text, make) == text
    row = next(line for line in text.splitlines() if line.startswith("| `idml` |"))
    assert blocks.fill(text.replace(row, row.replace("±", "+")), make) == text


def test_how_well_the_level_tells_twins():
    """The block of twins, by scikit-learn."""
    from sklearn.metrics import roc_auc_score

    from idml_zoo.registry import benchmarks
    from idml_zoo.studies import pages

    (measured,) = (f for f in pages.read_sets() if f.benchmark == "glyphs")
    lines = [line for line in pages.twins_table(measured).splitlines() if line.startswith("| `idml` |")]
    twins = benchmarks["glyphs"].splits().test.extras["twin_group"] >= 0
    row = measured.lines["idml"].row
    aurocs = [100 * roc_auc_score(twins, level) for level in pages.queries(measured, row, "level")]
    assert lines == [f"| `idml` | {np.mean(aurocs):.1f} ± {np.std(aurocs, ddof=1):.1f} |"]


def test_the_table_of_corrupted_queries_is_of_the_files_numbers():
    import json

    from idml_zoo.studies import pages

    (measured,) = (f for f in pages.read_sets() if f.benchmark == "cub2010")
    (line,) = (t for t in pages.corrupted_table(measured).splitlines() if t.startswith("| `idml` |"))
    folder = ROOT / "leaderboard" / "results" / "cub2010" / "idml-tf_efficientnet_lite0-96px-tuned"
    noise = [json.loads(f.read_text())["corruptions"]["noise"] for f in folder.glob("seed*.json")]
    recall = [100 * np.mean([at["recall@1"] for at in curve.values()]) for curve in noise]
    rise = [curve["5"]["level"] / curve["1"]["level"] for curve in noise]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3] == f"{np.mean(recall):.1f} ± {np.std(recall, ddof=1):.1f}"
    assert cells[6] == f"{np.mean(rise):.2f} ± {np.std(rise, ddof=1):.2f}"


def test_severity_is_drawn_where_it_is_known(tmp_path):
    from idml_zoo.studies import pages

    for measured in pages.read_sets():
        path = tmp_path / f"{measured.benchmark}.png"
        assert pages.draw_severity(measured, path) == measured.benchmark.startswith("glyphs") == path.exists()


def test_what_the_published_model_makes_of_glyphs_is_drawn(tmp_path):
    from idml_zoo.studies import pages

    pages.draw_published(pages.HEADLINE, tmp_path, "glyphs_subset")
    assert {p.name for p in tmp_path.iterdir()} == {"headline.png", "glyphs-mistakes.png", "glyphs-uncertain.png"}
    assert all(p.stat().st_size > 10_000 for p in tmp_path.iterdir())


def test_what_the_picture_says_is_what_the_queries_say():
    """By sorting each query's (level, wrong) pair in plain Python."""
    import json

    from idml_zoo.studies import across, sets

    (file,) = (across.EMBEDDED / across.HEADLINE / "results").rglob("*.json")
    row = ROOT / "leaderboard" / "results" / file.relative_to(across.EMBEDDED / across.HEADLINE / "results").parent
    worst = []
    for path in sorted(row.glob("seed*.npz")):
        values = np.load(path)
        ordered = sorted(zip(values["level"].tolist(), ~values["top1"], strict=True), key=lambda pair: pair[0])
        tenth = ordered[-(len(ordered) // 10) :]
        worst.append(100 * sum(bool(w) for _, w in tenth) / len(tenth))
    assert len(worst) == len(list(row.glob("seed*.json"))) >= 3
    variant = json.loads(file.read_text())["model"]["variant"]
    text = across.published(sets.read_sets())
    assert f"variant `{variant}`" in text
    assert f"for {np.mean(worst):.1f} ± {np.std(worst, ddof=1):.1f} % of the most uncertain tenth" in text
