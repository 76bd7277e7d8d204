"""Search in one's own photographs: no benchmark, a folder as it is, labels only where its folders give them.

An index is the embedding of every photograph under a folder, see :mod:`idml_zoo.reports.photo_index`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from idml_zoo.data.errors import DataError
from idml_zoo.data.images import decode
from idml_zoo.metric import Metric
from idml_zoo.reliability.reliability import Reliability
from idml_zoo.reports.confidence import sureness
from idml_zoo.reports.html import PICTURE_STYLE, document, figure, query_row
from idml_zoo.reports.photo_index import PhotoIndex, embed_photos, find_photos, identity, index_photos
from idml_zoo.retrieval.knn import search
from idml_zoo.types import Embedding, Neighbours

__all__ = [
    "FEW",
    "NOT_SURE",
    "PERHAPS_UNKNOWN",
    "Answer",
    "PhotoIndex",
    "ask",
    "embed_photos",
    "few",
    "find_photos",
    "folder_labels",
    "identity",
    "in_words",
    "index_photos",
    "photo_page",
    "sections",
]

PERHAPS_UNKNOWN = 0.5  # from this score on, more likely nothing of its kind is there, if both were as likely before
FEW = 50  # photographs; the confidence looks at so many neighbours, and among fewer is often far too high
_SIDE = 160  # pixels of a picture on the page
NOT_SURE, _TOO_UNCERTAIN = "not sure", "too uncertain"  # why an answer is declined
_STYLE = """.query figcaption { white-space: normal; overflow-wrap: anywhere; }
.query figcaption::first-line { font-weight: 600; }
.unanswered { color: var(--soft); margin: 4.5rem 0 0; }
"""


@dataclass(frozen=True)
class Answer:
    """The nearest photographs of a query.

    Attributes:
        name: of the query; ``level``: its uncertainty ‖u‖.
        declined: whether it is more uncertain than was allowed, or less sure than the limit on the risk asks for.
        neighbours: the nearest photographs, nearest first: name, score (the cosine, or minus the introspective
            distance) and level.
        confidence: probability in [0, 1] that the nearest is of the query's kind, if any is.
        unknown: score in [0, 1] that nothing of the query's kind is there.
        reason: why it was declined: "not sure" or "too uncertain"; "" where it was not.
        hint: what ``unknown`` means, from :data:`PERHAPS_UNKNOWN` on (of a photograph of the folder itself, where the
            confidence is low too); "" otherwise.
    """

    name: str
    level: float
    declined: bool
    neighbours: tuple[tuple[str, float, float], ...]
    confidence: float
    unknown: float
    reason: str = ""
    hint: str = ""


def folder_labels(files: Sequence[Path]) -> Tensor:
    """Returns ``(N,)`` int64 classes of N photographs: the names of the folders that they lie in directly.

    Raises:
        DataError: all in folders of one name, so that there is nothing to tell apart.
    """
    names = [path.absolute().parent.name for path in files]
    number = {name: i for i, name in enumerate(sorted(set(names)))}
    if len(number) < 2:
        raise DataError(
            f"all {len(names)} photographs lie in a folder named {names[0]!r}, which tells no classes apart; sort them "
            "into one folder for each class, or leave out the labels"
        )
    return torch.tensor([number[name] for name in names])


def ask(
    index: PhotoIndex,
    names: Sequence[str],
    queries: Embedding | None,
    k: int = 5,
    metric: Metric | str = "cosine",
    max_uncertainty: float | None = None,
    labels: Tensor | None = None,
    reliability: Reliability | None = None,
    max_risk: float | None = None,
) -> list[Answer]:
    """The photographs nearest to each query, and how sure each answer is.

    Args:
        index: what is searched.
        names: of the queries.
        queries: their embedding by the same model; None: every photograph of the index asks for its nearest others.
        k: photographs for each, fewer where there are fewer.
        metric: of the search.
        max_uncertainty: queries with a higher level are declined.
        labels: ``(N,)`` classes of the photographs, as of :func:`folder_labels`; None: the confidence without labels.
        reliability: of the confidence; None for the default.
        max_risk: share of the answers that may be wrong, in (0, 1): the least sure are declined. Needs a reliability
            that was calibrated.

    Raises:
        ValueError: k below 1, or one photograph alone that asks for others.
        ReliabilityError: ``max_risk`` out of range, without a calibration, or not reachable.
    """
    single_set = queries is None
    if k < 1 or (single_set and len(index) < 2):
        raise ValueError(
            f"k must be at least 1, and there must be something to find: k = {k}, {len(index)} photographs"
        )
    queries = index.embedding if queries is None else queries
    near = search(
        queries,
        index.embedding,
        min(k, len(index) - single_set),
        metric,
        exclude_self=single_set,
        max_uncertainty=max_uncertainty,
        confidence=True,
        gallery_labels=labels,
        reliability=reliability,
        max_risk=max_risk,
    )
    return _answers(index, names, queries.level.tolist(), near)


def _answers(index: PhotoIndex, names: Sequence[str], query_levels: Sequence[float], near: Neighbours) -> list[Answer]:
    """Returns the neighbours and their confidence in names and words."""
    assert near.confidence is not None and near.unknown is not None  # asked for
    nothing = torch.zeros(len(near), dtype=torch.bool)
    declined = nothing if near.declined is None else near.declined
    unsure = nothing if near.limit is None else near.confidence < near.limit.threshold
    # Among themselves most photographs have company, so that both numbers must speak against it.
    absent = near.unknown >= PERHAPS_UNKNOWN
    words = "perhaps not in this folder"
    if near.excludes_self:
        absent, words = absent & (near.confidence < 0.5), "perhaps the only one of its kind"
    levels = index.embedding.level.tolist()
    answers = []
    for i, name in enumerate(names):
        pairs = zip(near.indices[i].tolist(), near.scores[i].tolist(), strict=True)
        neighbours = tuple((index.names[j], score, levels[j]) for j, score in pairs)
        confidence, unknown = float(near.confidence[i]), float(near.unknown[i])
        reason = "" if not declined[i] else NOT_SURE if unsure[i] else _TOO_UNCERTAIN
        hint = words if absent[i] else ""
        answers.append(Answer(name, query_levels[i], bool(reason), neighbours, confidence, unknown, reason, hint))
    return answers


def in_words(answer: Answer) -> list[str]:
    """Returns what is said of a query: how sure its answer is, the hint where there is one, and the level."""
    unsure = answer.reason == NOT_SURE
    words = [sureness(answer.confidence, unsure), f"level {answer.level:.3g}"]
    if answer.hint:
        words.insert(1, f"{'but ' if answer.confidence >= 0.5 and not unsure else ''}{answer.hint}")
    return words


def few(index: PhotoIndex) -> str:
    """Returns what must be said of the confidence in a folder of fewer than :data:`FEW` photographs; else ""."""
    if len(index) >= FEW:
        return ""
    return f"With {len(index)} photographs, fewer than {FEW}, the confidence means less, and is often far too high."


def sections(answers: Sequence[Answer], count: int) -> dict[str, list[Answer]]:
    """Returns what is worth looking at in a folder that asks itself.

    Args:
        answers: of every photograph.
        count: of each section.

    Returns:
        "Most alike": pairs, each once. "Least sure": photographs whose nearest other is perhaps of another kind, among
        them those that are alone. "Most uncertain": those with the highest level, where the model has one.
    """
    alike: list[Answer] = []
    seen: set[frozenset[str]] = set()
    for answer in sorted((a for a in answers if not a.declined), key=lambda a: -a.neighbours[0][1]):
        pair = frozenset((answer.name, answer.neighbours[0][0]))
        if pair not in seen:
            seen.add(pair)
            alike.append(answer)
    parts = {"Most alike": alike[:count], "Least sure": sorted(answers, key=lambda a: a.confidence)[:count]}
    if max(a.level for a in answers) > 0:
        parts["Most uncertain"] = sorted(answers, key=lambda a: -a.level)[:count]
    return parts


def photo_page(
    title: str,
    parts: dict[str, list[Answer]],
    folder: Path,
    query_folder: Path,
    similarity: str,
    notes: Sequence[str] = (),
) -> str:
    """Returns a page, pictures included: each row a query and how sure its answer is, then its nearest photographs.

    Args:
        title: plain text.
        parts: answers by heading.
        folder: of the photographs.
        query_folder: of the queries.
        similarity: of the search, "cosine" or "introspective".
        notes: what must be said of all answers, in plain text: of :func:`few`, and where a limit on the risk was used
            of :func:`~idml_zoo.reports.confidence.promise`.

    Raises:
        BrokenImageError: a photograph that cannot be read.
    """
    from PIL import ImageOps

    def image(path: Path, name: str, kind: str, *text: str) -> str:
        picture = ImageOps.pad(decode(path, str(path)), (_SIDE, _SIDE), color="#dddddd")
        return figure(picture, kind, f"{kind}: {name}", (*text, "/".join(Path(name).parts[-2:])), name)

    body = []
    for heading, answers in parts.items():
        body.append(f"<h2>{escape(heading)}</h2>" + ("" if answers else "<p>None.</p>"))
        for a in answers:
            figures = [image(query_folder / a.name, a.name, "query declined" if a.declined else "query", *in_words(a))]
            for name, score, near_level in () if a.declined else a.neighbours:
                figures.append(image(folder / name, name, "near", f"{score:.3f}, level {near_level:.2g}"))
            if a.declined:
                figures.append(f'<p class="unanswered">Not answered: {a.reason}.</p>')
            body.append(query_row(figures))
    measure = "cosine" if similarity == "cosine" else "minus the introspective distance"
    intro = f"""<h1>{escape(title)}</h1>
<p>Each row shows a photograph, then the photographs nearest to it. “92 % sure” is the probability that the nearest
shows the same kind of thing, if any does. The level is the uncertainty ‖u‖ of one photograph. The first number below a
neighbour is the {measure}.</p>
"""
    intro += "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)
    return document(title, PICTURE_STYLE + _STYLE, intro + "".join(body), pictures=True)
