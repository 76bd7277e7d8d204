"""The leaderboard page in a real browser: sorts, filters, opens evidence, fetches nothing."""

import re
import shutil
from html.parser import HTMLParser

import pytest
from conftest import ROOT
from support.rows import row

from idml_zoo.reports.leaderboard import build_leaderboard, render

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four measured rows, one of them hostile in its words, and two reported ones."""
    root = tmp_path_factory.mktemp("board")
    row(root / "results", "good", 0.7, cost={"gmacs": 1.5, "bytes_per_image": 512.0})
    row(root / "results", "poor", 0.4, cost={"gmacs": 0.5, "bytes_per_image": 2048.0})
    curve = {"blur": {"1": {"recall@1": 0.5, "level": 0.1}, "5": {"recall@1": 0.2, "level": 0.3}}}
    row(root / "results", "middling", 0.5, seeds=1, corruptions=curve)
    row(root / "results", "hostile", 0.1, training='<script>alert(1)</script> & "more"')
    (root / "reported.csv").write_text(
        "benchmark,method,backbone,dim,source,note,recall@1\n"
        "mine,Their <b>method</b>,ResNet-50,512,their paper,,88.8\nmine,Another,ResNet-50,64,their paper,,\n"
    )
    build_leaderboard(root)
    return root


class Checked(HTMLParser):
    """Notes what is opened and not closed, what is named twice, and every address."""

    VOID = ("meta", "wbr", "input", "path", "polyline", "br")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.wrong = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "action"):
                self.links.append(value)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.mark.parametrize("which", ["the project's own", "a hostile one"])
def test_the_page_is_whole_and_stands_alone(which, folder):
    root = ROOT / "leaderboard" if which == "the project's own" else folder
    text = render(root)["index.html"]
    page = Checked()
    page.feed(text)
    assert not page.open and not page.wrong
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (root / link).is_file(), link
    assert "http:" not in text.replace("http-equiv", "") and "https:" not in text
    assert "<script>alert" not in text and "Their <b>" not in text


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, folder):
    """The page from file://, with everything it says and asks for noted."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.noted, page.asked = [], []
    page.on("console", lambda m: page.noted.append(m.text))
    page.on("pageerror", lambda e: page.noted.append(str(e)))
    page.on("dialog", lambda d: (page.noted.append(d.message), d.dismiss()))
    page.on("request", lambda r: page.asked.append(r.url))
    page.goto((folder / "index.html").as_uri())
    yield page
    assert page.noted == []
    assert [a.partition("#")[0] for a in page.asked] == [(folder / "index.html").as_uri()] * len(page.asked)
    context.close()


def names(page, kind="measured"):
    rows = page.locator(f".{kind} tr.row:visible > th")
    return [re.sub(r"\s+reported$", "", t.strip()) for t in rows.all_inner_texts()]


def head(page, text, kind="measured"):
    return page.locator(f".{kind} thead th", has_text=text).first


def test_rows_are_sorted_by_any_column(page):
    assert names(page) == ["good", "middling", "poor", "hostile"]
    head(page, "R@1").locator("button").click()
    assert names(page) == ["good", "middling", "poor", "hostile"]
    assert head(page, "R@1").get_attribute("aria-sort") == "descending"
    head(page, "R@1").locator("button").press("Enter")
    assert names(page) == ["hostile", "poor", "middling", "good"]
    head(page, "GMACs").locator("button").click()  # fewer first; the missing ones last, either way
    assert names(page)[:2] == ["poor", "good"] and head(page, "R@1").get_attribute("aria-sort") == "none"
    head(page, "GMACs").locator("button").click()
    assert names(page)[:2] == ["good", "poor"]
    head(page, "row").locator("button").click()
    assert names(page) == sorted(["good", "middling", "poor", "hostile"])
    head(page, "R@1", "reported").locator("button").click()
    head(page, "R@1", "reported").locator("button").click()
    assert names(page, "reported") == ["Their <b>method</b>", "Another"], "a missing value stays last"


def test_rows_are_filtered_and_the_address_remembers_it(page, folder):
    output = page.locator("output")
    assert output.inner_text() == "6 of 6 rows"
    page.select_option("select[name=kind]", "measured")
    assert output.inner_text() == "4 of 6 rows" and not page.locator(".reported").is_visible()
    page.fill("input[name=text]", "HOST")
    assert names(page) == ["hostile"] and output.inner_text() == "1 of 6 rows"
    assert page.evaluate("location.hash") == "#kind=measured&text=HOST"
    page.reload()
    assert names(page) == ["hostile"]
    page.click("button[type=reset]")
    output.filter(has_text="6 of 6 rows").wait_for()
    page.select_option("select[name=benchmark]", "mine")
    page.select_option("select[name=backbone]", "ResNet-50")
    assert names(page) == [] and len(names(page, "reported")) == 2


def test_the_contents_lead_to_a_benchmark_and_such_an_address_stays(browser):
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.goto((ROOT / "leaderboard" / "index.html").as_uri())
    sections = page.locator("main > section")
    links = page.locator("nav a")
    assert links.count() == sections.count() > 4
    links.filter(has_text="Omniglot").click()
    assert page.evaluate("location.hash") == "#omniglot"
    page.reload()
    assert page.evaluate("location.hash") == "#omniglot"
    assert abs(page.locator("#omniglot").bounding_box()["y"]) < 50
    context.close()


def test_a_row_opens_its_evidence(page, folder):
    button = page.locator("tr.row", has_text="good").locator("th button")
    evidence = page.locator("#" + button.get_attribute("aria-controls"))
    assert not evidence.is_visible() and button.get_attribute("aria-expanded") == "false"
    button.focus()
    page.keyboard.press("Enter")
    assert evidence.is_visible() and button.get_attribute("aria-expanded") == "true"
    assert "commit abc" in evidence.inner_text() and "cmd" in evidence.inner_text()
    link = evidence.locator("a").first.get_attribute("href")
    assert (folder / link).is_file()
    page.keyboard.press("Enter")
    assert not evidence.is_visible()
    page.locator("tr.row", has_text="hostile").locator("td").nth(1).click()  # any cell opens it
    assert "<script>alert(1)</script>" in page.locator("tr.evidence:visible").inner_text()


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_a_phone_and_in_the_dark(browser, folder, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto((folder / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "only the tables scroll sideways"
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{p}") for p in ("color", "backgroundColor"))
    light, dark = (sum(map(int, re.findall(r"\d+", c)[:3])) / 3 for c in (ink, paper))
    assert abs(light - dark) > 150 and (light > dark) == (scheme == "dark")
    context.close()


def test_without_a_script_everything_is_open(browser, folder):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "index.html").as_uri())
    assert page.locator("tr.evidence").first.is_visible() and not page.locator("form").is_visible()
    context.close()
