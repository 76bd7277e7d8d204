"""The shell of the HTML pages: nothing escapes from it, and nothing is fetched by it."""

import re
import shutil

import pytest
from PIL import Image

from idml_zoo.reports.html import PICTURE_STYLE, data_uri, document, figure, query_row

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = '"><script>alert(1)</script>'


def test_text_is_escaped_and_a_page_may_fetch_nothing():
    frame = figure(Image.new("RGB", (20, 10)), "near", HOSTILE, [HOSTILE, "second"], HOSTILE)
    page = document(HOSTILE, PICTURE_STYLE, query_row([frame]), pictures=True)
    assert "<script" not in page and page.count("&lt;script&gt;") == 4
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "script-src 'unsafe-inline'" in document("A page", "", "", "let a = 1;\n")


def test_letters_that_are_no_utf8_are_shown_escaped():
    page = document("caf\udce9", "", "<p>na\udcefve</p>")
    assert page.encode() and "caf\\udce9" in page and "na\\udcefve" in page


def test_a_data_uri_holds_the_content():
    assert data_uri(b"\x00\xff", "image/png") == "data:image/png;base64,AP8="


@pytest.mark.parametrize("width", [1280, 390])
def test_pictures_are_shown_and_a_long_title_fits_the_screen(tmp_path, width):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    frames = [figure(Image.new("RGB", (160, 160), "red"), "near", "red", ["caption"], "hint")] * 12
    title = "photographs_" * 12
    file = tmp_path / "page.html"
    file.write_text(document(title, PICTURE_STYLE, f"<h1>{title}</h1>{query_row(frames)}", pictures=True))
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 844})
        messages = []
        page.on("console", lambda m: messages.append(m.text))
        page.goto(file.as_uri())
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth === 160)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "rows scroll, the page does not"
        assert messages == []
        browser.close()
