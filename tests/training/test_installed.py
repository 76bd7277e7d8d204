"""Training from a wheel: the recipes are in it, and the commands work in any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import pytest
from conftest import ROOT
from support.tiny_runs import tiny

from idml_zoo.results import read_results

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

needs_hatchling = pytest.mark.skipif(find_spec("hatchling") is None, reason="needs pip install hatchling")


def build(kind, source, into):
    """Builds a wheel or an sdist offline, and returns its path."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(into)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (path,) = into.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The folder of an unpacked wheel; without hatchling a copy of what pyproject.toml puts into it."""
    folder = tmp_path_factory.mktemp("wheel")
    if find_spec("hatchling"):
        with zipfile.ZipFile(build("wheel", ROOT, folder / "built")) as wheel:
            wheel.extractall(folder)
        return folder
    if tomllib is None:
        pytest.skip("needs pip install hatchling, or Python 3.11 to read pyproject.toml")
    target = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    places = {name: name for name in target["packages"]} | target["force-include"]
    for source, place in places.items():
        shutil.copytree(ROOT / source, folder / place, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(unpacked, cwd, *words):
    """Runs `idml-zoo` of the wheel in another folder."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "idml_zoo", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@needs_hatchling
def test_a_wheel_carries_the_recipes_and_so_does_the_wheel_of_an_sdist(unpacked, tmp_path):
    stored = {p.relative_to(ROOT).as_posix() for p in (ROOT / "recipes").rglob("*") if p.suffix in (".py", ".yaml")}
    assert len(stored) > 15 and "recipes/train.py" in stored and "recipes/studies/glyphs.yaml" in stored
    assert stored <= {p.relative_to(unpacked / "idml_zoo").as_posix() for p in (unpacked / "idml_zoo").rglob("*")}
    shutil.unpack_archive(build("sdist", ROOT, tmp_path / "sdist"), tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    with zipfile.ZipFile(build("wheel", source, tmp_path / "wheel")) as wheel:
        again = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert again == {n for n in again if (unpacked / n).is_file()} and len(again) > 100
    assert {f"idml_zoo/{name}" for name in stored} <= again


def test_help_and_list_import_no_torch(unpacked, tmp_path):
    code = "import sys\nfrom idml_zoo.cli.main import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
    code += "    print('torch' in sys.modules, 'accelerate' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    for words in (["train", "--list"], ["train", "--help"], ["sweep", "--help"], ["study", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "False False"
        assert "idml-zoo " + words[0] in done.stdout


def test_the_loop_and_its_subprocesses_run_in_any_folder(unpacked, tmp_path):
    _, _, *words = tiny(tmp_path, "threads=1", "variant=pa", "max_steps=1")
    done = run(unpacked, tmp_path, "sweep", "--config", "cub_resnet50", *words, "seed=1")
    assert done.returncode == 0, done.stderr + "".join(p.read_text() for p in tmp_path.rglob("*.log"))
    results = read_results(tmp_path / "board" / "results")
    assert [(r.row, r.seed) for r in results] == [("pa-test_resnet-32px", 1)]
    assert {r.provenance.commit for r in results} == {None}, "of the wheel, not of this clone"
    done = run(unpacked, tmp_path, "study", "glyphs", "--dry-run", "--leaderboard", str(tmp_path / "board"))
    assert done.returncode == 0 and "to do  variant=" in done.stdout, done.stderr
