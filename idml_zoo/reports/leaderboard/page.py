"""The leaderboard as one HTML page, which needs no server and loads no script, font or picture.

Everything is in the markup. The script only sorts, filters and folds it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

from idml_zoo.reports.bootstrap import load_queries
from idml_zoo.reports.html import document
from idml_zoo.reports.leaderboard.pictures import corruption_picture, risk_picture
from idml_zoo.reports.leaderboard.rows import Row, Section, in_order, percent, pretraining, reported_metrics, title
from idml_zoo.reports.leaderboard.tables import columns
from idml_zoo.results import PROTOCOL, Result

_LOW_IS_GOOD = ("aurc", "eaurc", "ece")
_ABOUT = """<p><b>Measured</b> rows come from result files of this project's own evaluation: open a row to see its
evidence. Values are percentages, mean ± sample standard deviation over seeds; one seed has no ±.
<b>Reported</b> rows (in italics, apart) are what others printed, with their source. The two are never averaged, and a
missing value stays missing (–).</p>
<p>R@K, RP and MAP@R: every test image queries all the others. NMI: k-means with as many clusters as test classes.
AUROC: how well a score tells that the nearest neighbour is wrong (50 is chance); AURC: the mean share of wrong ones
when the surest queries are answered first (lower is better): by the uncertainty level ‖u‖; by free scores (−sim: minus
the similarity of that neighbour; −posterior: minus the share of its class among the neighbours); and by the confidence,
with the gallery's labels and without, by coefficients that were fitted on training classes. Answered at 10 % risk: the
largest share of queries of which at most a tenth is wrong. Risk–coverage plots: {key}.</p>
<p>Rank: 1 + the number of rows with a distinguishably higher R@1; rows that cannot be told apart share one
(95 % intervals from a paired bootstrap over queries and the spread of each row's seeds by Welch's t).</p>"""


_KEY = """wrong nearest neighbours among the surest queries, <span class="key-level">by ‖u‖ (solid)</span>,
<span class="key-free">by similarity (dotted)</span> and, in rows of protocol 4,
<span class="key-confidence">by confidence with labels (dashed)</span>"""


@dataclass(frozen=True)
class _Column:
    """A column of a table.

    Attributes:
        head: its heading, plain text.
        number: whether it holds numbers.
        low: whether lower ones are better.
    """

    head: str
    number: bool = True
    low: bool = False


def html_page(parts: Sequence[Section], root: Path) -> str:
    """Returns the page.

    Args:
        parts: from :func:`~idml_zoo.reports.leaderboard.rows.sections`.
        root: the leaderboard folder, for the values of every query.

    Raises:
        ResultError: the values of a row's queries are missing or were changed.
    """
    here = resources.files("idml_zoo.reports.leaderboard")
    style, script = (here.joinpath(n).read_text(encoding="utf-8") for n in ("page.css", "page.js"))
    body = "\n".join(_section(s, root / "results") for s in parts) or "<p>No results yet.</p>"
    content = f"""<a class="skip" href="#tables">Skip to the tables</a>
<header>
<h1>Leaderboard of introspective deep metric learning</h1>
{_ABOUT.format(key=_KEY)}
{_contents(parts)}
</header>
{_form(parts)}
<main id="tables">
{body}
</main>"""
    return document("idml_zoo leaderboard", style, content, script)


def _contents(parts: Sequence[Section]) -> str:
    """Returns links to the benchmarks, where there are several."""
    links = (f'<li><a href="#{escape(s.benchmark)}">{escape(s.title)}</a></li>' for s in parts)
    return f'<nav aria-label="Benchmarks"><ul>{"".join(links)}</ul></nav>' if len(parts) > 1 else ""


def _form(parts: Sequence[Section]) -> str:
    """Returns the filter, which stays hidden without the script."""
    rows = [row.first for s in parts for part in s.measured.values() for row in part]
    reported = [r for s in parts for r in s.reported]
    choices = {
        "benchmark": ("Benchmark", {s.benchmark for s in parts}),
        "kind": ("Kind", {"measured"} | ({"reported"} if reported else set())),
        "backbone": ("Backbone", {r.model.backbone for r in rows} | {r["backbone"] for r in reported}),
        "head": ("Head", {r.model.head for r in rows}),
        "loss": ("Loss (variant)", {r.model.variant for r in rows}),
        "protocol": ("Protocol", {_protocol(r) for r in rows}),
    }
    fields = []
    for name, (label, values) in choices.items():
        options = "".join(f"<option>{escape(v)}</option>" for v in sorted(values) if v)
        fields.append(f'<label>{label}<select name="{name}"><option value="">all</option>{options}</select></label>')
    return f"""<form hidden aria-label="Filter the rows">
{"".join(fields)}
<label>Text<input type="search" name="text" placeholder="in any cell"></label>
<button type="reset">Show all</button>
<output aria-live="polite"></output>
</form>"""


def _protocol(r: Result) -> str:
    """Returns what a reader may filter by: version, search, and the split where it is not the test classes."""
    split = "" if r.protocol.split == "test" else f", {r.protocol.split} classes"
    return f"v{r.protocol.version}, {r.protocol.similarity} search{split}"


def _section(section: Section, results: Path) -> str:
    name = escape(section.benchmark)
    note = f"<p>{_inline(section.note)}.</p>" if section.note else ""
    parts = [f'<section id="{name}"><h2>{escape(section.title)} (<code>{name}</code>)</h2>{note}']
    for (split, version), rows in section.measured.items():
        heading = "Measured" if split == "test" else "Measured on held-out training classes (development)"
        heading += "" if version == PROTOCOL else f", under protocol {version}"
        parts.append(f'<div class="part"><h3>{heading}</h3>{_measured(section, rows, results, heading)}</div>')
    if section.reported:
        parts.append(f'<div class="part"><h3>Reported by others</h3>{_reported(section)}</div>')
    return "\n".join([*parts, "</section>"])


def _inline(text: str) -> str:
    """Returns escaped text, with Markdown's bold as HTML, which notes use."""
    pieces = escape(text).split("**")
    return "".join(f"<b>{p}</b>" if i % 2 else p for i, p in enumerate(pieces))


def _table(label: str, heads: Sequence[_Column], body: Iterable[str], kind: str) -> str:
    """Returns a sortable table that scrolls sideways; ``kind`` is its CSS class."""
    cells = []
    for i, head in enumerate(heads):
        first = "ascending" if head.low or not head.number else "descending"
        sorted_now = "ascending" if i == 0 and head.head == "rank" else "none"
        cells.append(
            f'<th scope="col" aria-sort="{sorted_now}" data-first="{first}"{" class=number" if head.number else ""}>'
            f"<button>{escape(head.head)}</button></th>"
        )
    return (
        f'<div class="scroll {kind}" role="region" tabindex="0" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{''.join(cells)}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _number(value: float | None, text: str, hint: str = "") -> str:
    """Returns a cell that sorts by ``value`` and shows ``text``, with ``hint`` under the mouse."""
    data = "" if value is None else f"{value:.6g}"
    hover = f' title="{escape(hint)}"' if hint else ""
    return f'<td class="number" data-value="{data}"{hover}>{text}</td>'


def _words(text: str) -> str:
    return f'<td class="words">{escape(text)}</td>'


def _measured(section: Section, rows: Sequence[Row], results: Path, heading: str) -> str:
    """Returns the table of the rows of one split and protocol version."""
    metrics = columns(rows)
    heads = [_Column("rank", low=True), _Column("row", number=False)]
    heads += [_Column(title(m), low=m.split("_")[0] in _LOW_IS_GOOD) for m in metrics]
    heads += [_Column("risk–coverage", number=False), _Column("network", number=False), _Column("loss", number=False)]
    heads += [_Column(h, low=True) for h in ("parameters, M", "GMACs")] + [_Column("images/s")]
    heads += [_Column("index, B/image", low=True), _Column("seeds")]
    protocol = rows[0].first.protocol
    key = f"evidence-{section.benchmark}-{protocol.split}-{protocol.version}"
    body = [_row(f"{key}-{i}", row, metrics, results) for i, row in enumerate(rows)]
    return _table(f"{section.title}: {heading}", heads, body, "measured")


def _row(key: str, row: Row, metrics: Sequence[str], results: Path) -> str:
    """Returns a row of the table, and below it the row with its evidence, whose id is ``key``."""
    r = row.first
    loaded = [load_queries(results, s) for s in row.results]
    curves = [v for v in loaded if v is not None]
    cells = [_number(row.rank, "–" if row.rank is None else str(row.rank))]
    flags = [("checkpoint chosen on the test set", r.protocol.checkpoint == "test")]
    flags.append(("uncommitted code", any(s.provenance.dirty for s in row.results)))
    marks = "".join(f' <span class="badge warn">{text}</span>' for text, shown in flags if shown)
    name = escape(r.row).replace("_", "_<wbr>")  # where a long name may break
    cells.append(f'<th scope="row"><button aria-expanded="true" aria-controls="{key}">{name}</button>{marks}</th>')
    for metric in metrics:
        values = row.values(metric)
        hint = ", ".join(
            f"seed {s.seed}: {percent(None if (v := s.metrics.get(metric)) is None else [v])}" for s in row.results
        )
        cells.append(_number(statistics.fmean(values) if values else None, percent(values), hint))
    cells.append(f"<td>{risk_picture(curves, small=True) if curves else '–'}</td>")
    cells.append(_words(f"{r.model.backbone}, {r.protocol.image_size} px, {r.model.head}, {r.model.embedding_dim}-d"))
    cells.append(_words(r.model.variant))
    cells.append(_number(r.model.parameters / 1e6, f"{r.model.parameters / 1e6:.3g}"))
    for name in ("gmacs", "images_per_second", "bytes_per_image"):
        cost = [s.cost[name] for s in row.results if name in s.cost]
        value = statistics.fmean(cost) if len(cost) == len(row.results) else None
        cells.append(_number(value, "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"))
    cells.append(_number(len(row.results), str(len(row.results))))
    facts = {"benchmark": r.benchmark, "kind": "measured", "backbone": r.model.backbone, "head": r.model.head}
    facts |= {"loss": r.model.variant, "protocol": _protocol(r)}
    data = "".join(f' data-{k}="{escape(v)}"' for k, v in facts.items())
    evidence = _evidence(row, curves)
    return (
        f'<tr class="row"{data}>{"".join(cells)}</tr>'
        f'<tr class="evidence" id="{key}"><td colspan="{len(cells)}"><div class="inside">{evidence}</div></td></tr>'
    )


def _list(facts: Iterable[tuple[str, str]]) -> str:
    """Returns a list of names and values, without the empty ones."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts if v) + "</dl>"


def _evidence(row: Row, curves: Sequence[dict]) -> str:
    """Returns how a row was measured: protocol, plots, every metric of every seed, and the files."""
    r = row.first
    p = r.protocol
    facts = [
        ("training", r.training or "none"),
        ("backbone pretrained on", pretraining(r.model.pretrained)),
        ("pooling", r.model.pooling),
        ("test images", f"{r.queries:,} queries, {r.queries_without_positive:,} of them alone in their class"),
        ("preprocessing", f"{p.image_size} px, crop {p.crop_fraction:g}, {p.interpolation}"),
        ("search", f"{p.similarity}, self removed {p.self_removal}, ties {p.ties}"),
        ("k-means", ", ".join(f"{k} {v}" for k, v in p.kmeans.items())),
        ("checkpoint", p.checkpoint),
    ]
    heads = "".join(f'<th scope="col" class="number">seed {s.seed}</th>' for s in row.results)
    lines = []
    for metric in in_order({m for s in row.results for m in s.metrics}):
        values = [percent(None if (v := s.metrics.get(metric)) is None else [v]) for s in row.results]
        cells = "".join(f'<td class="number">{v}</td>' for v in values)
        lines.append(f'<tr><th scope="row">{escape(title(metric))}</th>{cells}</tr>')
    metrics = (
        f'<table><thead><tr><th scope="col">percent</th>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )
    pictures = []
    if curves:
        key = f"<figcaption>{_KEY}</figcaption>"
        pictures.append(f"<figure>{risk_picture(curves)}{key}</figure>")
    if r.corruptions:
        caption = "<figcaption>R@1 against severity of corruption</figcaption>"
        pictures.append(f"<figure>{corruption_picture([s.corruptions for s in row.results])}{caption}</figure>")
    return (
        f"{_list(facts)}<div class=pictures>{''.join(pictures)}</div>"
        f"<details><summary>every metric of every seed</summary>{metrics}</details>{''.join(map(_seed, row.results))}"
    )


def _seed(r: Result) -> str:
    """Returns the provenance of one seed, with a link to its file."""
    p = r.provenance
    dirty = " with uncommitted changes" if p.dirty else ""
    facts = [
        ("command", p.command),
        ("upgraded", ", ".join(f"{k} {v}" for k, v in p.upgraded.items())),
        ("trained by", "; ".join(p.trained[k] for k in ("command", "commit", "created") if k in p.trained)),
        ("code", f"commit {p.commit or 'unknown'}{dirty}; " + ", ".join(f"{k} {v}" for k, v in p.versions.items())),
        ("computed", f"{p.created} on {p.device}, {p.threads} threads, {p.dtype}"),
        ("took", ", ".join(f"{k} {v:,.0f} s" for k, v in p.seconds.items())),
        ("data", f"sha256 {p.data_sha256}"),
        ("weights", f"sha256 {p.weights_sha256}" if p.weights_sha256 else ""),
    ]
    recipe = f"<details><summary>recipe</summary><pre>{escape(p.recipe)}</pre></details>" if p.recipe else ""
    path = escape(r.path("results").as_posix())
    return f'<h4>Seed {r.seed}: <a href="{path}">{path}</a></h4>{_list(facts)}{recipe}'


def _reported(section: Section) -> str:
    """Returns the table of what others reported, and its notes."""
    metrics = reported_metrics(section.reported)
    heads = [_Column("method", number=False), *(_Column(title(m)) for m in metrics)]
    heads += [_Column("backbone", number=False), _Column("dim"), _Column("source", number=False)]
    body = []
    for r in section.reported:
        cells = [f'<th scope="row">{escape(r["method"])} <span class="badge">reported</span></th>']
        cells += [_number(float(r[m]) if r[m] else None, r[m] or "–") for m in metrics]
        width = float(r["dim"]) if r["dim"].isdigit() else None
        cells += [_words(r["backbone"]), _number(width, escape(r["dim"])), _words(r["source"])]
        facts = {"benchmark": section.benchmark, "kind": "reported", "backbone": r["backbone"]}
        data = "".join(f' data-{k}="{escape(v)}"' for k, v in facts.items())
        body.append(f'<tr class="row"{data}>{"".join(cells)}</tr>')
    notes = "".join(f"<p>{_inline(n)}</p>" for n in sorted({r["note"] for r in section.reported if r["note"]}))
    return _table(f"{section.title}: reported by others", heads, body, "reported") + notes
