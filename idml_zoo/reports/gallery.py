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
from idml_zoo.registry import unknown_name
from idml_zoo.reports.html import PICTURE_STYLE, data_uri, document, figure, query_row
from idml_zoo.retrieval.knn import search
from idml_zoo.types import Embedding, Neighbours, RetrievalTask

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECTIONS = ("pca", "umap")
_GREEN, _RED, _GREY = "#0a7d44", "#c62828", "#8a8f94"
_SIDE, _GAP, _TEXT = 96, 6, 30  # pixels of a sheet's tile


@dataclass(frozen=True)
class Retrieval:
    """One query and its nearest neighbours.

    Attributes:
        query: its row in the split; ``neighbours``: theirs, nearest first.
        scores: of the neighbours: the cosine, or minus the introspective distance.
        hit: whether each is of the query's class.
        level: uncertainty ‖u‖ of the query; ``levels``: of the neighbours.
    """

    query: int
    neighbours: tuple[int, ...]
    scores: tuple[float, ...]
    hit: tuple[bool, ...]
    level: float
    levels: tuple[float, ...]


@dataclass(frozen=True)
class Gallery:
    """What there is to show.

    Attributes:
        sections: queries by heading, in the order in which they are looked at.
        wrong: ``(Q,)`` whether each query's nearest neighbour is wrong, of the ``rows`` ``(Q,)`` that have another
            image of their class to be found.
    """

    sections: dict[str, list[Retrieval]]
    wrong: np.ndarray
    rows: np.ndarray


def choose(
    embedding: Embedding, split: Split, k: int = 8, count: int = 12, metric: Metric | str = "cosine", seed: int = 0
) -> Gallery:
    """Chooses the queries worth looking at.

    Args:
        embedding: of the split's N images.
        split: with labels, and with its queries where it has some; else every image is a query.
        k: neighbours of each.
        count: queries of each section.
        metric: of the search.
        seed: of the random section.

    Returns:
        Sections "Most confident mistakes" (wrong nearest neighbour, lowest level first; by similarity where the model
        has no uncertainty), "Most uncertain images" (where it has) and "A random sample". Queries alone in their class
        are left out.

    Raises:
        ValueError: k or count below 1, or counts that disagree.
    """
    if min(k, count) < 1:
        raise ValueError(f"k and count must be at least 1, got {k} and {count}")
    if len(embedding) != len(split):
        raise ValueError(f"{len(embedding)} embeddings but {len(split)} images")
    task = split.task(embedding)
    neighbours = search(
        task.queries,
        task.gallery,
        min(k, len(task.gallery) - task.same_images),
        metric,
        exclude_self=task.same_images,
    )
    hit = task.gallery_labels[neighbours.indices] == task.query_labels[:, None]
    counted = (positives(task.query_labels, task.gallery_labels, task.same_images) > 0).numpy()
    wrong = ~hit[:, 0].numpy()
    level = embedding.level.float()
    has_level = float(level.max() - level.min()) > 0
    uncertainty = task.queries.level.float().numpy() if has_level else -neighbours.scores[:, 0].numpy()
    surest = np.argsort(uncertainty, kind="stable")
    sections = {"Most confident mistakes": [i for i in surest if wrong[i] and counted[i]][:count]}
    if has_level:
        sections["Most uncertain images"] = [i for i in surest[::-1] if counted[i]][:count]
    drawn = np.random.RandomState(seed).permutation(np.flatnonzero(counted))[:count]
    sections["A random sample"] = sorted(drawn.tolist())
    retrievals = _Retrievals(task, neighbours, hit, split)
    return Gallery(
        {heading: [retrievals.of(int(i)) for i in queries] for heading, queries in sections.items()},
        wrong[counted],
        retrievals.query_rows.numpy()[counted],
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
        )


def _tile(split: Split, row: int, side: int) -> Image:
    from PIL import ImageOps

    return ImageOps.pad(split.images[row], (side, side), color="#dddddd")


def sheet(split: Split, retrievals: Sequence[Retrieval], side: int = _SIDE) -> Image:
    """A picture: one row for each query, the query on the left; neighbours framed, right ones solid green with a tick,
    wrong ones red with a cross; below each its score, below the query its level."""
    from PIL import Image, ImageDraw, ImageFont

    step, height = side + _GAP, side + _TEXT
    columns = 1 + max((len(r.neighbours) for r in retrievals), default=0)
    out = Image.new("RGB", (_GAP + columns * step + _GAP, _GAP + max(1, len(retrievals)) * height), "white")
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(11)
    for i, r in enumerate(retrievals):
        top = _GAP + i * height
        texts = [f"level {r.level:.2g}", *(f"{s:.3f}" for s in r.scores)]
        for j, (row, text) in enumerate(zip((r.query, *r.neighbours), texts, strict=True)):
            left = _GAP + j * step + (_GAP if j else 0)
            out.paste(_tile(split, row, side), (left, top))
            colour = _GREY if j == 0 else _GREEN if r.hit[j - 1] else _RED
            draw.rectangle((left, top, left + side - 1, top + side - 1), outline=colour, width=1 if j == 0 else 4)
            if j:
                _mark(draw, left + side - 16, top + 4, r.hit[j - 1], colour)
            draw.text((left, top + side + 2), text, fill="black", font=font)
            name = split.class_names[int(split.labels[row])]
            draw.text((left, top + side + 14), name[: side // 6], fill="#555555", font=font)
    return out


def _mark(draw: Any, x: int, y: int, hit: bool, colour: str) -> None:
    """A tick or a cross on white, so that colour is not all that tells."""
    draw.rectangle((x, y, x + 12, y + 12), fill="white")
    if hit:
        draw.line([(x + 2, y + 6), (x + 5, y + 10), (x + 10, y + 2)], fill=colour, width=2)
    else:
        draw.line([(x + 2, y + 2), (x + 10, y + 10)], fill=colour, width=2)
        draw.line([(x + 10, y + 2), (x + 2, y + 10)], fill=colour, width=2)


def project(embedding: Embedding, how: str = "pca", seed: int = 0) -> np.ndarray:
    """``(N, 2)`` places of the semantic embeddings: their two principal components, or UMAP's.

    Raises:
        UnknownNameError: another projection.
        ImportError: UMAP without the package ``umap-learn``.
    """
    if how not in PROJECTIONS:
        raise unknown_name("projection", how, PROJECTIONS)
    vectors = embedding.semantic.double()
    if how == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise ImportError("a UMAP map needs the package umap-learn: pip install umap-learn") from error
        return np.asarray(UMAP(metric="cosine", random_state=seed).fit_transform(vectors.numpy()))
    centred = vectors - vectors.mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes[:, -2:].flip(1)
    axes = axes * torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True)))  # eigenvectors have no sign
    return (centred @ axes).numpy()


def draw_map(path: Path, places: np.ndarray, level: np.ndarray, wrong: np.ndarray, rows: np.ndarray, how: str) -> Path:
    """Every image at its place, coloured by its level; a cross where its nearest neighbour is wrong."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axis = figure.add_subplot()
    missed = np.zeros(len(places), dtype=bool)
    missed[rows[wrong]] = True
    size = float(np.clip(20_000 / len(places), 4, 40))
    limits = (float(level.min()), max(float(np.quantile(level, 0.99)), float(level.min()) + 1e-9))
    for part, marker, label in ((~missed, "o", "nearest neighbour right"), (missed, "x", "wrong")):
        shown = axis.scatter(
            places[part, 0],
            places[part, 1], c=level[part], s=size, marker=marker, cmap="viridis", vmin=limits[0], vmax=limits[1],
            linewidths=0.8 if marker == "x" else 0, label=f"{label} ({int(part.sum()):,})",
        )  # fmt: skip
    figure.colorbar(shown, ax=axis, label="uncertainty level ‖u‖")
    axis.set_xlabel(f"{how.upper()} 1")
    axis.set_ylabel(f"{how.upper()} 2")
    axis.legend(loc="best", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    return path


def html_page(title: str, split: Split, gallery: Gallery, similarity: str, picture: Path | None) -> str:
    """Returns the page: one file, pictures included.

    Args:
        title: plain text.
        split: of the images.
        gallery: from :func:`choose`.
        similarity: of the search, "cosine" or "introspective".
        picture: a PNG file of the map, or None for a page without.
    """

    def image(row: int, kind: str, text: str, hint: str) -> str:
        name = split.class_names[int(split.labels[row])]
        return figure(_tile(split, row, _SIDE), kind, f"{kind}: {name}, image {row}", (text, name), hint)

    parts = []
    for heading, retrievals in gallery.sections.items():
        rows = []
        for r in retrievals:
            figures = [image(r.query, "query", f"level {r.level:.3g}", f"query, image {r.query}")]
            for row, score, correct, level in zip(r.neighbours, r.scores, r.hit, r.levels, strict=True):
                kind, mark = ("right", "✓") if correct else ("wrong", "✗")
                figures.append(image(row, kind, f"{mark} {score:.3f}", f"image {row}, level {level:.3g}"))
            rows.append(query_row(figures))
        parts.append(f"<h2>{escape(heading)}</h2>" + ("".join(rows) or "<p>None.</p>"))
    if picture is not None:
        alt, uri = "Map of the embedding, coloured by uncertainty level", data_uri(picture.read_bytes(), "image/png")
        parts.append(f'<h2>Map</h2><img class="map" alt="{alt}" src="{uri}">')
    measure = "cosine" if similarity == "cosine" else "minus the introspective distance"
    share = 100 * float(gallery.wrong.mean())
    body = f"""<h1>{escape(title)}</h1>
<p>Each row shows a query with its uncertainty level ‖u‖, then its nearest neighbours. A green frame (✓) marks the
query's class, a dashed red one (✗) another class. The number below a neighbour is the {measure}. The nearest neighbour
is wrong for {share:.1f} % of {len(gallery.wrong):,} queries.</p>
{"".join(parts)}"""
    return document(title, PICTURE_STYLE, body, pictures=True)


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
) -> list[Path]:
    """Writes ``index.html``, one PNG for each section and ``map.png`` into a folder; returns their paths.

    Args:
        embedding, split, k, count, metric, seed: see :func:`choose`.
        folder: made where it is missing.
        title: of the page.
        projection: of the map, see :func:`project`.

    Raises:
        ValueError, ImportError: see there.
        FileError: the folder cannot be written to.
    """
    folder = Path(folder)
    metric = as_metric(metric)
    gallery = choose(embedding, split, k, count, metric, seed)
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
