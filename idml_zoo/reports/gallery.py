"""Pictures of what a model retrieves: confident mistakes, uncertain images, a sample; and a map of the embedding.

One self-contained HTML page, and the same as PNG files.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from idml_zoo.data.split import Split
from idml_zoo.evaluation.retrieval_metrics import positives
from idml_zoo.files import write_file
from idml_zoo.metric import Metric, accepts_similarity_and_tau, as_metric
from idml_zoo.reliability.reliability import Reliability
from idml_zoo.reliability.risk import Limit
from idml_zoo.reports.confidence import percent, promise, sureness
from idml_zoo.reports.embedding_map import draw_map, project
from idml_zoo.reports.html import PICTURE_STYLE, data_uri, document, figure, query_row
from idml_zoo.retrieval.knn import search
from idml_zoo.types import Embedding, Neighbours, RetrievalTask

if TYPE_CHECKING:
    from PIL.Image import Image

_GREEN, _RED, _GREY = "#0a7d44", "#c62828", "#8a8f94"
_SIDE, _GAP, _TEXT = 96, 6, 42  # pixels of a sheet's tile


@dataclass(frozen=True)
class Retrieval:
    """One query and its nearest neighbours.

    Attributes:
        query: its row in the split; ``neighbours``: theirs, nearest first.
        scores: of the neighbours: the cosine, or minus the introspective distance.
        hit: whether each is of the query's class.
        level: uncertainty ‖u‖ of the query; ``levels``: of the neighbours.
        confidence: probability in [0, 1] that the nearest neighbour is of the query's class.
        declined: whether that is below the limit on the risk.
    """

    query: int
    neighbours: tuple[int, ...]
    scores: tuple[float, ...]
    hit: tuple[bool, ...]
    level: float
    levels: tuple[float, ...]
    confidence: float
    declined: bool = False


@dataclass(frozen=True)
class Gallery:
    """What there is to show.

    Attributes:
        sections: queries by heading, in the order in which they are looked at.
        wrong: ``(Q,)`` whether each query's nearest neighbour is wrong, of the ``rows`` ``(Q,)`` that have another
            image of their class to be found.
        declined: ``(Q,)`` whether each of these is declined.
        limit: on the risk, which declines them; None without.
    """

    sections: dict[str, list[Retrieval]]
    wrong: np.ndarray
    rows: np.ndarray
    declined: np.ndarray
    limit: Limit | None = None


def choose(
    embedding: Embedding,
    split: Split,
    k: int = 8,
    count: int = 12,
    metric: Metric | str = "cosine",
    seed: int = 0,
    reliability: Reliability | None = None,
    max_risk: float | None = None,
) -> Gallery:
    """Chooses the queries worth looking at.

    Args:
        embedding: of the split's N images.
        split: with labels, and with its queries where it has some; else every image is a query.
        k: neighbours of each.
        count: queries of each section.
        metric: of the search.
        seed: of the random section.
        reliability: of the confidence, which takes the gallery's labels as known; None for the default.
        max_risk: share of the answers that may be wrong, in (0, 1): the least sure queries are marked as declined.

    Returns:
        Sections "Most confident mistakes" (wrong nearest neighbour, highest confidence first), "Most uncertain images"
        (highest level first, where the model has one) and "A random sample". Queries alone in their class are left out.

    Raises:
        ValueError: k or count below 1, counts that disagree, or a gallery of one class.
        ReliabilityError: ``max_risk`` out of range, without a calibration, or not reachable.
    """
    if min(k, count) < 1:
        raise ValueError(f"k and count must be at least 1, got {k} and {count}")
    if len(embedding) != len(split):
        raise ValueError(f"{len(embedding)} embeddings but {len(split)} images")
    task = split.task(embedding)
    how: dict[str, Any] = {"gallery_labels": task.gallery_labels, "reliability": reliability, "max_risk": max_risk}
    most = min(k, len(task.gallery) - task.same_images)
    neighbours = search(task.queries, task.gallery, most, metric, exclude_self=task.same_images, **how)
    assert neighbours.confidence is not None  # asked for, by the labels
    hit = task.gallery_labels[neighbours.indices] == task.query_labels[:, None]
    counted = (positives(task.query_labels, task.gallery_labels, task.same_images) > 0).numpy()
    wrong = ~hit[:, 0].numpy()
    surest = np.argsort(-neighbours.confidence.numpy(), kind="stable")
    sections = {"Most confident mistakes": [i for i in surest if wrong[i] and counted[i]][:count]}
    if float(embedding.level.max() - embedding.level.min()) > 0:
        uncertain = np.argsort(-task.queries.level.float().numpy(), kind="stable")
        sections["Most uncertain images"] = [i for i in uncertain if counted[i]][:count]
    drawn = np.random.RandomState(seed).permutation(np.flatnonzero(counted))[:count]
    sections["A random sample"] = sorted(drawn.tolist())
    retrievals = _Retrievals(task, neighbours, hit, split)
    return Gallery(
        {heading: [retrievals.of(int(i)) for i in queries] for heading, queries in sections.items()},
        wrong[counted],
        retrievals.query_rows.numpy()[counted],
        retrievals.declined.numpy()[counted],
        neighbours.limit,
    )


class _Retrievals:
    """Each query's answer, in rows of the split."""

    def __init__(self, task: RetrievalTask, neighbours: Neighbours, hit: Tensor, split: Split) -> None:
        self.task, self.neighbours, self.hit = task, neighbours, hit
        is_query = np.ones(len(split), dtype=bool) if split.queries is None else split.queries
        in_gallery = is_query if split.queries is None else ~is_query
        self.query_rows = torch.from_numpy(np.flatnonzero(is_query))
        self.gallery_rows = torch.from_numpy(np.flatnonzero(in_gallery))
        self.query_level, self.gallery_level = task.queries.level.float(), task.gallery.level.float()
        assert neighbours.confidence is not None
        self.confidence = neighbours.confidence
        nothing = torch.zeros(len(neighbours), dtype=torch.bool)
        self.declined = nothing if neighbours.declined is None else neighbours.declined

    def of(self, query: int) -> Retrieval:
        """Returns the answer of a query, by its number among the queries."""
        nearest = self.neighbours.indices[query]
        return Retrieval(
            int(self.query_rows[query]),
            tuple(self.gallery_rows[nearest].tolist()),
            tuple(self.neighbours.scores[query].tolist()),
            tuple(self.hit[query].tolist()),
            float(self.query_level[query]),
            tuple(self.gallery_level[nearest].tolist()),
            float(self.confidence[query]),
            bool(self.declined[query]),
        )


def _tile(split: Split, row: int, side: int) -> Image:
    from PIL import ImageOps

    return ImageOps.pad(split.images[row], (side, side), color="#dddddd")


def sheet(split: Split, retrievals: Sequence[Retrieval], side: int = _SIDE) -> Image:
    """A picture: one row for each query, the query on the left; neighbours framed, right ones solid green with a tick,
    wrong ones red with a cross; below each its score, below the query how sure its answer is, and its level."""
    from PIL import Image, ImageDraw, ImageFont

    step, height = side + _GAP, side + _TEXT
    columns = 1 + max((len(r.neighbours) for r in retrievals), default=0)
    out = Image.new("RGB", (_GAP + columns * step + _GAP, _GAP + max(1, len(retrievals)) * height), "white")
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(11)
    for i, r in enumerate(retrievals):
        top = _GAP + i * height
        texts = [(sureness(r.confidence, r.declined), f"level {r.level:.2g}"), *((f"{s:.3f}",) for s in r.scores)]
        for j, (row, lines) in enumerate(zip((r.query, *r.neighbours), texts, strict=True)):
            left = _GAP + j * step + (_GAP if j else 0)
            out.paste(_tile(split, row, side), (left, top))
            colour = _GREY if j == 0 else _GREEN if r.hit[j - 1] else _RED
            draw.rectangle((left, top, left + side - 1, top + side - 1), outline=colour, width=1 if j == 0 else 4)
            if j:
                _mark(draw, left + side - 16, top + 4, r.hit[j - 1], colour)
            for line, text in enumerate(lines):
                draw.text((left, top + side + 2 + 12 * line), text, fill="black", font=font)
            name = split.class_names[int(split.labels[row])]
            draw.text((left, top + side + 2 + 12 * len(lines)), name[: side // 6], fill="#555555", font=font)
    return out


def _mark(draw: Any, x: int, y: int, hit: bool, colour: str) -> None:
    """A tick or a cross on white, so that colour is not all that tells."""
    draw.rectangle((x, y, x + 12, y + 12), fill="white")
    if hit:
        draw.line([(x + 2, y + 6), (x + 5, y + 10), (x + 10, y + 2)], fill=colour, width=2)
    else:
        draw.line([(x + 2, y + 2), (x + 10, y + 10)], fill=colour, width=2)
        draw.line([(x + 10, y + 2), (x + 2, y + 10)], fill=colour, width=2)


def html_page(title: str, split: Split, gallery: Gallery, similarity: str, picture: Path | None) -> str:
    """Returns the page: one file, pictures included.

    Args:
        title: plain text.
        split: of the images.
        gallery: from :func:`choose`.
        similarity: of the search, "cosine" or "introspective".
        picture: a PNG file of the map, or None for a page without.
    """

    def image(row: int, kind: str, hint: str, *text: str) -> str:
        name = split.class_names[int(split.labels[row])]
        return figure(_tile(split, row, _SIDE), kind, f"{kind}: {name}, image {row}", (*text, name), hint)

    parts = []
    for heading, retrievals in gallery.sections.items():
        rows = []
        for r in retrievals:
            kind, sure = "query declined" if r.declined else "query", sureness(r.confidence, r.declined)
            figures = [image(r.query, kind, f"query, image {r.query}", sure, f"level {r.level:.3g}")]
            for row, score, correct, level in zip(r.neighbours, r.scores, r.hit, r.levels, strict=True):
                kind, mark = ("right", "✓") if correct else ("wrong", "✗")
                figures.append(image(row, kind, f"image {row}, level {level:.3g}", f"{mark} {score:.3f}"))
            rows.append(query_row(figures))
        parts.append(f"<h2>{escape(heading)}</h2>" + ("".join(rows) or "<p>None.</p>"))
    if picture is not None:
        alt, uri = "Map of the embedding, coloured by uncertainty level", data_uri(picture.read_bytes(), "image/png")
        parts.append(f'<h2>Map</h2><img class="map" alt="{alt}" src="{uri}">')
    measure = "cosine" if similarity == "cosine" else "minus the introspective distance"
    share = 100 * float(gallery.wrong.mean())
    body = f"""<h1>{escape(title)}</h1>
<p>Each row shows a query, then its nearest neighbours. “92 % sure” is the probability that the nearest is of the
query's class; the level is the uncertainty ‖u‖ of the query alone. A green frame (✓) marks the query's class, a dashed
red one (✗) another class. The number below a neighbour is the {measure}. The nearest neighbour is wrong for
{share:.1f} % of {len(gallery.wrong):,} queries.</p>
{_promised(gallery)}{"".join(parts)}"""
    return document(title, PICTURE_STYLE, body, pictures=True)


def _promised(gallery: Gallery) -> str:
    """Returns a paragraph of what the limit declined, promises, and did here; "" without a limit."""
    if gallery.limit is None:
        return ""
    answered = gallery.wrong[~gallery.declined]
    here = (
        f" Here {percent(float(answered.mean()))} of the {len(answered):,} answers are wrong." if len(answered) else ""
    )
    text = promise(gallery.limit, int(gallery.declined.sum()), len(gallery.wrong)) + here
    return f'<p class="note">{escape(text)}</p>\n'


@accepts_similarity_and_tau
def build_gallery(
    embedding: Embedding,
    split: Split,
    folder: str | Path,
    *,
    title: str = "Gallery",
    k: int = 8,
    count: int = 12,
    metric: Metric | str = "cosine",
    projection: str = "pca",
    seed: int = 0,
    reliability: Reliability | None = None,
    max_risk: float | None = None,
) -> list[Path]:
    """Writes ``index.html``, one PNG for each section and ``map.png`` into a folder; returns their paths.

    Args:
        embedding, split, k, count, metric, seed, reliability, max_risk: see :func:`choose`.
        folder: made where it is missing.
        title: of the page.
        projection: of the map, see :func:`project`.

    Raises:
        ValueError, ImportError: see there.
        FileError: the folder cannot be written to.
    """
    folder = Path(folder)
    metric = as_metric(metric)
    gallery = choose(embedding, split, k, count, metric, seed, reliability, max_risk)
    places = project(embedding, projection, seed)
    written = []
    for heading, retrievals in gallery.sections.items():
        buffer = io.BytesIO()
        sheet(split, retrievals).save(buffer, "PNG")
        written.append(folder / (heading.lower().replace(" ", "_") + ".png"))
        write_file(written[-1], buffer.getvalue())
    level = embedding.level.float().numpy()
    written.append(draw_map(folder / "map.png", places, level, gallery.wrong, gallery.rows, projection))
    page = folder / "index.html"
    write_file(page, html_page(title, split, gallery, metric.similarity, written[-1]))
    return [page, *written]
