"""HTML pages that stand alone: one file holds the style, the script and the pictures, and fetches nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_STYLE = """:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #57606a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #14181c; --soft: #a3acb5; } }
body { margin: 0 auto; padding: 1rem; max-width: 90rem; font: 1rem/1.45 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { overflow-wrap: anywhere; } p { max-width: 60rem; }
.row { display: flex; gap: .6rem; overflow-x: auto; padding: .4rem 0; } figure { margin: 0; flex: none; }
figure img { border: 4px solid transparent; border-radius: .2rem; } .query { margin-right: 1rem; }
.query img, .near img { border-color: #8a8f94; }
.right img { border-color: #0a7d44; } .wrong img { border: 4px dashed #c62828; }
figcaption { font-size: .78rem; color: var(--soft); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.query figcaption::first-line { color: var(--ink); }
.declined img { border-style: dotted; }
.note { border-left: 4px solid #8a8f94; padding-left: .8rem; }
.map { max-width: 100%; height: auto; background: #fff; }
@media (max-width: 40rem) { body { padding: .6rem; } h1 { font-size: 1.5rem; } }
"""


def document(title: str, style: str, body: str, script: str = "", pictures: bool = False) -> str:
    """Returns a whole page, which a browser may show but which may fetch nothing (Content-Security-Policy).

    Args:
        title: plain text.
        style: CSS, one or more whole lines.
        body: HTML; whoever makes it escapes the text in it.
        script: JavaScript, one or more whole lines; "" for a page without.
        pictures: whether the body holds pictures as ``data:`` URIs.

    Letters that are no UTF-8, as in the names of some files, appear as backslash escapes.
    """
    policy = ["default-src 'none'", "style-src 'unsafe-inline'"]
    policy += ["script-src 'unsafe-inline'"] if script else []
    policy += ["img-src data:"] if pictures else []
    code = f"<script>\n{script}</script>\n" if script else ""
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{"; ".join(policy)}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
{body}
{code}</body>
</html>
"""
    return text.encode("utf-8", "backslashreplace").decode()


def data_uri(content: bytes, media_type: str) -> str:
    """Returns a URI that holds the content itself: ``data:image/png;base64,…``."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def figure(picture: Image, kind: str, alt: str, caption: Sequence[str], hint: str) -> str:
    """Returns a framed picture with a caption, for a page with :data:`PICTURE_STYLE`.

    Args:
        picture: as large as it is shown.
        kind: the frame: "query", "near", "right" or "wrong".
        alt: plain text for readers who do not see the picture.
        caption: its lines, as plain text; what is wider than the picture is cut off.
        hint: plain text that a mouse over the picture shows.
    """
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    frame = 4  # pixels on each side
    return (
        f'<figure class="{kind}" style="width: {picture.width + 2 * frame}px" title="{escape(hint)}">'
        f'<img src="{data_uri(buffer.getvalue(), "image/jpeg")}" width="{picture.width}" height="{picture.height}" '
        f'alt="{escape(alt)}"><figcaption>{"<br>".join(map(escape, caption))}</figcaption></figure>'
    )


def query_row(figures: Sequence[str]) -> str:
    """Returns a query's row of figures, which scrolls sideways on a narrow screen, also by the keyboard."""
    return f'<div class="row" tabindex="0" role="group" aria-label="query">{"".join(figures)}</div>'
