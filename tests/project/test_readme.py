"""Every code block of the README and of docs/ is run, or is marked with the reason why it cannot be."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_folder

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"(?:<!-- not run: ([^>]+) -->\n)?```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = {f"README-{i}": body for i, body in enumerate(body for _, kind, body in BLOCKS if kind == "python")}
for page in sorted((ROOT / "docs").rglob("*.md")):
    for i, body in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)):
        PYTHON[f"{page.stem}-{i}"] = body
SHELL = [line for reason, kind, body in BLOCKS if kind == "bash" and not reason for line in body.strip().splitlines()]
INSTALLING = [line for line in SHELL if line.startswith("pip install")]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 180


def test_there_are_blocks_of_each_kind():
    assert len(PYTHON) >= 3
    assert len(SHELL) >= 6
    assert {kind for _, kind, _ in BLOCKS} == {"python", "bash", "text"}


def bring_photos(folder: Path) -> None:
    """What a reader has: photographs in class folders, and one to ask with."""
    make_folder(folder / "photos")
    shutil.copy(folder / "photos" / "class_0" / "0.png", folder / "photo.jpg")


@pytest.mark.parametrize("body", PYTHON.values(), ids=list(PYTHON))
def test_python_blocks_run(body, tmp_path, monkeypatch):
    bring_photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(compile(body, "README.md", "exec"), {})


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has, without its virtual environment, so that commands leave nothing behind here."""
    place = tmp_path_factory.mktemp("clone")
    for name in ("idml_zoo", "recipes", "leaderboard"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    bring_photos(place)
    return place


@pytest.mark.parametrize("line", [line for line in SHELL if line not in INSTALLING])
def test_commands_run(line, workplace):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(line, shell=True, cwd=workplace, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_two_set_up_commands(workplace):
    """Installing is left out (it was done to get this far); the quickstart's own command is run, cut to one epoch."""
    main, tests = INSTALLING
    assert tests == "pip install -e '.[test]' && pytest -n auto"
    install, _, quickstart = main.partition(" && ")
    assert install == "pip install -e ."
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run(
        quickstart + " epochs=1",
        shell=True,
        cwd=workplace,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for place in ("model", "log", "result", "table"):
        assert re.search(rf"^{place} +runs/", done.stdout, re.MULTILINE), "prints where to look next"
    page = (workplace / "runs" / "leaderboard" / "README.md").read_text()
    assert "**idml-test_resnet-quickstart**" in page
    assert "**untrained-idml-test_resnet-64px**" in page


def test_measured_numbers_are_those_of_the_result_files():
    """Tables whose first column is `benchmark/row`: every cell is what the leaderboard says."""
    from idml_zoo.reports.leaderboard import group, percent, title
    from idml_zoo.results import METRICS, read_results

    rows = {f"{r.first.benchmark}/{r.first.row}": r for r in group(read_results(ROOT / "leaderboard" / "results"))}
    metrics = {title(m): m for m in (*METRICS, "recall@1", "recall@2", "recall@4", "recall@8")}
    header, checked = [], 0
    pages = README + (ROOT / "docs" / "quickstart.md").read_text()
    for line in pages.splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        if cells[0] == "row":
            header = cells
        elif header and cells[0].strip("`") in rows:
            row = rows[cells[0].strip("`")]
            for heading, cell in zip(header[1:], cells[1:], strict=True):
                if heading in metrics:
                    assert cell == percent(row.values(metrics[heading])), f"{cells[0]}, {heading}"
                    checked += 1
        elif not line.startswith("|"):
            header = []
    assert checked >= 15
