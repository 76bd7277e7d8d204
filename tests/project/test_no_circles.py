"""No two files import each other, not even through others, inside a function or for types only."""

import ast
from pathlib import Path

from conftest import ROOT

PACKAGE = "idml_zoo"


def modules(root: Path) -> dict[str, Path]:
    """Returns each module's file by its dotted name; a package stands for its ``__init__.py``."""
    names = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path, names: dict[str, Path]) -> set[str]:
    """Returns the modules among ``names`` that a file imports, anywhere in it, TYPE_CHECKING included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; write the whole name"
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in names else str(node.module) for full in inner.values()}
    return found & names.keys()


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Returns the groups of modules that reach each other, each sorted (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in order:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], order[target])
        if lowest[module] == order[module]:
            start = stack.index(module)
            group = sorted(stack[start:])
            del stack[start:]
            if len(group) > 1 or module in graph[module]:
                groups.append(group)

    for module in graph:
        if module not in order:
            visit(module)
    return groups


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"a"}}) == [["a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_in_functions_and_for_types_are_seen(tmp_path):
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "first.py").write_text("def late():\n    from idml_zoo import second\n")
    (folder / "second.py").write_text("if TYPE_CHECKING:\n    from idml_zoo.first import late\n")
    names = modules(tmp_path)
    assert circles({n: imports(p, names) for n, p in names.items()}) == [["idml_zoo.first", "idml_zoo.second"]]


def test_no_file_imports_itself_through_others():
    names = modules(ROOT)
    graph = {name: imports(path, names) for name, path in names.items()}
    assert sum(map(len, graph.values())) > 200, "the test sees the imports"
    assert circles(graph) == []
