"""The scripts of .ci: what they read out of README.md and pyproject.toml."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

COMMAND = "pip install -e '.[test]' && pytest -n auto"
BLOCK = f"<!-- tests -->\n```bash\n{COMMAND}\n```\n"


def read(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    script = ROOT / ".ci" / "readme_command.py"
    return subprocess.run([sys.executable, script, readme], capture_output=True, text=True, timeout=60)


def test_the_marked_command_is_read(tmp_path):
    done = read(tmp_path, f"# Title\n\n```bash\npip install -e .\n```\n\n{BLOCK}\nMore.\n\n```bash\nls\n```\n")
    assert (done.returncode, done.stdout) == (0, COMMAND + "\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BLOCK.replace("<!-- tests -->\n", ""), "expected one line <!-- tests -->, found 0"),
        (BLOCK + BLOCK, "found 2"),
        (BLOCK.replace("-->\n", "-->\n\n"), "must be ```bash, found ''"),
        (BLOCK.replace("bash", "text"), "must be ```bash, found '```text'"),
        ("<!-- tests -->", "found 'the end'"),
        (BLOCK.replace("\n```\n", "\n"), "has no end"),
        (BLOCK.replace(COMMAND, f"{COMMAND}\nrm -r build"), "found 2 lines"),
        (BLOCK.replace(COMMAND, "pytest \\"), "one command on one line"),
        (BLOCK.replace(COMMAND, ""), "found 0 lines"),
    ],
)
def test_anything_but_one_command_in_one_marked_block_is_refused(tmp_path, text, reason):
    done = read(tmp_path, text)
    assert done.returncode == 1 and not done.stdout
    assert reason in done.stderr and "Traceback" not in done.stderr


def test_the_lowest_versions_are_the_bounds_of_pyproject():
    done = subprocess.run([sys.executable, ROOT / ".ci" / "lowest.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(re.match(r"[\w-]+==[\d.]+(\.\*)?(;|$)", line) for line in lines)
    text = (ROOT / "pyproject.toml").read_text()
    for package in ("torch", "timm", "numpy"):
        bound = re.search(rf'"{package}>=([\d.]+)"', text)[1]
        (line,) = [line for line in lines if line.startswith(f"{package}==")]
        assert line.removeprefix(f"{package}==").removesuffix(".*") == bound
