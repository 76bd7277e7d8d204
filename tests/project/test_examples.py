"""The scripts of docs/examples run as their docstrings say, on a small folder of pictures."""

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_folder

import idml_zoo

EXAMPLES = ROOT / "docs" / "examples"
MODEL = ["--model", "idml_test_resnet_glyphs"]


@pytest.fixture
def photos(tmp_path):
    return make_folder(tmp_path / "photos", classes=4, images=4)


def start(script, *arguments, folder, before=()):
    """The finished process. It starts outside the clone, as a reader's does."""
    paths = [*map(str, before), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, EXAMPLES / script, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def printed(script, *arguments, folder):
    """What the script prints; run in this process, which has imported torch already."""
    out = io.StringIO()
    with chdir(folder), contextlib.redirect_stdout(out):
        before, sys.argv = sys.argv, [script, *map(str, arguments)]
        try:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        except SystemExit as stopped:
            if stopped.code:
                raise
        finally:
            sys.argv = before
    return out.getvalue().splitlines()


@contextlib.contextmanager
def chdir(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def test_every_script_is_tested_and_says_how_to_run_it():
    scripts = {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}
    assert set(scripts) == {"train_on_a_folder.py", "search_in_a_folder.py", "another_loss.py"}
    for name, text in scripts.items():
        assert f"python docs/examples/{name} photos" in text
        assert "on one CPU core" in text, "how long it takes"


def test_training_prints_a_falling_loss_and_saves_the_model(photos, tmp_path):
    lines = printed("train_on_a_folder.py", photos, "--epochs", "3", folder=tmp_path)
    assert lines[0] == "8 images of 2 classes train, 8 test"
    assert lines[1].startswith("before training: Recall@1 ") and lines[-2].startswith("after training: Recall@1 ")
    losses = [float(re.fullmatch(r"epoch \d: loss (\d+\.\d+)", line)[1]) for line in lines[2:-2]]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert lines[-1] == "saved: my_model"
    model = idml_zoo.create_model(f"local-dir:{tmp_path / 'my_model'}", pretrained=True)
    assert model.transform.image_size == 64


def test_search_prints_neighbours_and_declines_the_most_uncertain(photos, tmp_path):
    files = sorted(photos.rglob("*.png"))
    head, *lines = printed("search_in_a_folder.py", photos, *files, *MODEL, "--k", "3", folder=tmp_path)
    limit = float(re.fullmatch(r"16 images; queries with a level above (\S+) are declined", head)[1])
    starts = [i for i, line in enumerate(lines) if not line.startswith(" ")]
    answers = [lines[i:j] for i, j in zip(starts, [*starts[1:], None], strict=True)]
    declined = [answer for answer in answers if answer[1:] == ["  declined: too uncertain to be answered"]]
    levels = [float(query.rpartition(" level ")[2]) for query, *_ in answers]
    assert len(answers) == 16 and len(declined) == 1, "above the 95 % quantile of 16 levels lies the highest"
    assert float(declined[0][0].rpartition(" level ")[2]) == max(levels) >= limit
    for file, (query, *near) in zip(files, answers, strict=True):
        assert query.startswith(f"{file}: level ")
        if [query, *near] not in declined:
            scores = [float(line.split()[0]) for line in near]
            assert len(near) == 3 and scores == sorted(scores, reverse=True)
            assert scores[0] == 1, "the query itself is in the folder"


def test_search_declines_above_the_limit_that_is_given(photos, tmp_path):
    query = photos / "class_1" / "2.png"
    lines = printed("search_in_a_folder.py", photos, query, *MODEL, "--max-uncertainty", "0", folder=tmp_path)
    assert lines[0] == "16 images; queries with a level above 0 are declined"
    assert lines[1].startswith(f"{query}: level ") and lines[2:] == ["  declined: too uncertain to be answered"]


def test_a_loss_of_pytorch_metric_learning_trains_plain_and_introspective(photos, tmp_path):
    pytest.importorskip("pytorch_metric_learning", reason="pytorch-metric-learning is not installed")
    lines = printed("another_loss.py", photos, "--epochs", "2", folder=tmp_path)
    assert [re.sub(r"\d+\.\d+", "N", line) for line in lines[:-1]] == [
        f"{kind}, epoch {epoch}: loss N" for kind in ("plain", "introspective") for epoch in (1, 2)
    ]
    assert all(float(line.split()[-1]) > 0 for line in lines[:-1])
    assert re.fullmatch(r"Recall@1 of seed 0: plain \d+\.\d%, introspective \d+\.\d%", lines[-1])


def test_without_pytorch_metric_learning_it_says_what_to_install(photos, tmp_path):
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'pytorch_metric_learning' else find(name, *rest)\n"
    )
    done = start("another_loss.py", photos, folder=tmp_path, before=[hide])
    assert done.returncode == 2
    assert done.stderr == "pytorch-metric-learning is not installed: pip install pytorch-metric-learning\n"
