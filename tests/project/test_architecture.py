"""Imports point down the layers, and importing is cheap."""

import ast
import importlib.util
import re
import subprocess
import sys

from conftest import ROOT

from idml_zoo._moved import MOVED

# The layer of each module; a package's own entry holds for the modules it does not list.
LAYERS = {
    "version": 0,
    "_moved": 0,
    "registry": 0,
    "files": 0,
    "metric": 1,
    "reliability": 1,
    "types": 0,
    "results": 0,
    "metric_names": 0,
    "variants": 0,
    "similarity": 2,
    "distributed": 1,
    "data": 2,
    "models": 3,
    "losses": 3,
    "retrieval": 4,
    "evaluation": 5,
    "reports": 6,
    "training": 7,
    "studies": 8,
    "cli": 9,
    "__main__": 9,
    "__init__": 9,
}


def layer(module: str) -> int:
    return LAYERS[module] if module in LAYERS else LAYERS[module.split(".")[0]]


def module_name(path) -> str:
    parts = path.relative_to(ROOT / "idml_zoo").with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imported(path) -> list[str]:
    """Modules of this package that a file imports, anywhere in it but under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "idml_zoo":
            base = (node.module or "").partition(".")[2]
            found += [base] if base else [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            found += [a.name.partition(".")[2] for a in node.names if a.name.startswith("idml_zoo.")]
    return found


def test_imports_point_down():
    files = sorted((ROOT / "idml_zoo").rglob("*.py"))
    assert len(files) > 25
    seen, upward = 0, []
    for path in files:
        name = module_name(path)
        for target in imported(path):
            seen += 1
            if layer(target) > layer(name):
                upward.append(f"{name} (L{layer(name)}) imports {target} (L{layer(target)})")
    assert seen > 60, "the test sees the imports"
    assert upward == []


def test_every_module_has_a_layer_and_no_layer_is_stale():
    names = {module_name(p) for p in (ROOT / "idml_zoo").rglob("*.py")}
    assert {n for n in names if n not in LAYERS and n.split(".")[0] not in LAYERS} == set()
    assert {n for n in LAYERS if n not in names} == set()


def test_importing_the_package_brings_nothing_heavy():
    code = (
        "import sys, idml_zoo; print([m for m in ('torch', 'timm', 'numpy', 'rich', 'datasets') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "[]"


def test_files_stay_small():
    long = {str(p): n for p in (ROOT / "idml_zoo").rglob("*.py") if (n := len(p.read_text().splitlines())) > 350}
    assert long == {}


def test_the_page_and_the_picture_name_every_folder_on_its_floor():
    page = (ROOT / "docs" / "architecture.md").read_text().partition("## Values that travel")[0]
    picture = (ROOT / "docs" / "architecture.svg").read_text()
    floors = {}
    for line in page.splitlines():
        if match := re.match(r"\| (\d+) \| (.+?) \|", line):
            for name in re.findall(r"`(\w+)/?`", match[2]):
                floors[name] = int(match[1])
    hidden = {"__main__", "__init__", "_moved"}
    assert {n: f for n, f in LAYERS.items() if n not in hidden} == {n: f for n, f in floors.items() if n != "recipes"}
    assert all(name in picture for name in LAYERS if name not in hidden | {"version"})


def functions():
    """(lines with the docstring, parameters without self, file, name) of every function outside the tests."""
    for path in [*(ROOT / "idml_zoo").rglob("*.py"), *(ROOT / "recipes").glob("*.py"), *(ROOT / "docs").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls")]
                count = len(names) + bool(a.vararg) + bool(a.kwarg)
                yield node.end_lineno - node.lineno + 1, count, str(path.relative_to(ROOT)), node.name


def test_functions_stay_short_and_take_few_parameters():
    every = list(functions())
    assert len(every) > 800
    assert [f for f in every if f[0] > 60] == []
    assert [f for f in every if f[1] > 12] == []


def test_the_loop_is_read_in_one_sitting():
    text = (ROOT / "recipes" / "train.py").read_text()
    assert len(text.splitlines()) < 200
    assert {"train", "step", "main"} <= {n.name for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)}


def test_importing_takes_no_time():
    """0.1 s at most, of processor time, against a bare interpreter."""
    code = "import time; t = time.process_time(); import idml_zoo; print(time.process_time() - t)"
    best = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout)
        for _ in range(3)
    )
    assert best < 0.1


def test_old_import_paths_still_work():
    code = f"""
import importlib, warnings
for old, new in {MOVED!r}.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = importlib.import_module(f"idml_zoo.{{old}}")
    assert module is importlib.import_module(f"idml_zoo.{{new}}"), (old, module)
    assert any(f"idml_zoo.{{new}}" in str(w.message) for w in caught if w.category is DeprecationWarning), (old, caught)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(MOVED) > 30


def test_benchmarks_import_what_is_there():
    """They are run by hand, so nobody else would see a stale import."""
    missing = []
    for path in (ROOT / "tests" / "benchmarks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "idml_zoo":
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    if not hasattr(module, alias.name) and importlib.util.find_spec(name) is None:
                        missing.append(f"{path.name}: {name}")
    assert missing == []
