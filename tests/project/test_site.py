"""The documentation site: it builds without a warning, every page is found, every public name and every link too."""

import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path, PurePosixPath

import pytest
import yaml
from conftest import ROOT

import idml_zoo

DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PAGES = sorted(DOCS.rglob("*.md"))


def in_nav(entry) -> list[str]:
    """The files of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    return [file for part in (entry.values() if isinstance(entry, dict) else entry) for file in in_nav(part)]


def left_out(page: Path) -> bool:
    """Whether mkdocs is told that a page is no page, or stands outside of the navigation."""
    name = PurePosixPath(page.relative_to(DOCS).as_posix())
    for pattern in (SITE["exclude_docs"] + SITE.get("not_in_nav", "")).split():
        if pattern.endswith("/"):
            found = pattern.rstrip("/") in name.parts[:-1]
        else:  # from the root, or at any depth
            found = str(name) == pattern[1:] if pattern.startswith("/") else name.match(pattern)
        if found:
            return True
    return False


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a link into a page may point to: the headings as mkdocs names them, and ids that are given."""
    found = set(re.findall(r"(?:\{ *#|<a id=\")([\w.-]+)", page.read_text()))
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def test_every_page_is_in_the_navigation_once():
    listed = in_nav(SITE["nav"])
    pages = [p.relative_to(DOCS).as_posix() for p in PAGES if not left_out(p)]
    assert sorted(listed) == pages
    assert {"results.md", "large-galleries.md", "faq.md"} <= set(listed)


def test_every_public_name_is_on_an_api_page():
    pages = "\n".join(p.read_text() for p in (DOCS / "api").glob("*.md"))
    shown = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert [n for n in idml_zoo.__all__ if f"idml_zoo.{n}" not in shown] == []
    assert len(shown) == len(set(shown))
    modules = ("losses", "losses.bridge", "types", "models.heads", "models.hub", "models.files")
    modules += ("reports.card", "reports.bootstrap")
    assert {f"idml_zoo.{m}" for m in modules} <= set(shown)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(<?([^)\s>]+)>?(?: [^)]*)?\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert file.is_relative_to(ROOT), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_links_and_headings_are_read_as_mkdocs_does(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("# Does it, *really*: 5,864 / 5,924?\n\n## R { #C }\n\n```text\n# none [no](no.md)\n```\n")
    assert {"does-it-really-5864-5924", "C"} <= anchors(page)
    assert "no.md" not in prose(page)
    assert left_out(DOCS / "gradients" / "trials" / "a.md")
    assert not left_out(DOCS / "api" / "models.md")


def test_blocks_that_register_names_run_in_a_process_of_their_own(tmp_path):
    """They are fenced as `py`: run here, those names would be in the registries of all later tests."""
    blocks = [b for p in PAGES for b in re.findall(r"^```py\n(.*?)^```", p.read_text(), re.DOTALL | re.MULTILINE)]
    assert len(blocks) >= 5
    for i, block in enumerate(blocks):
        (tmp_path / f"block{i}.py").write_text(block)
    (tmp_path / "all.py").write_text("import runpy, sys\nfor name in sys.argv[1:]:\n    runpy.run_path(name)\n")
    names = [f"block{i}.py" for i in range(len(blocks))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "all.py", *names], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_the_site_builds_strictly_and_asks_no_other_server(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    done = subprocess.run(
        [*command, "--site-dir", str(tmp_path / "site")],
        cwd=tmp_path,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    made = {p.relative_to(tmp_path / "site").as_posix(): p.read_text() for p in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "quickstart/index.html", "api/models/index.html"} <= made.keys()
    assert not any(name.startswith("validation") for name in made)
    for name, text in made.items():
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", text):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), f"{name}: {tag}"
    evidence = re.findall(r'href="\.\./(leaderboard/[^"]+)"', made["results-glyphs/index.html"])
    assert len(evidence) > 20 and all((tmp_path / "site" / link).is_file() for link in evidence)
    api = "\n".join(text for name, text in made.items() if name.startswith("api/"))
    assert [n for n in idml_zoo.__all__ if f'id="idml_zoo.{n}"' not in api] == []
