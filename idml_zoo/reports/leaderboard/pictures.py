"""Small plots as SVG in the colours of the page. Needs numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

_POINTS = 60


def _risk(values: dict[str, np.ndarray], score: str) -> np.ndarray:
    """Returns the risk at ``_POINTS`` coverages up to 1, of queries with a positive; equal scores keep their order."""
    counted = ~np.isnan(values["map@r"])
    wrong = ~values["top1"][counted][np.argsort(values[score][counted], kind="stable")].astype(bool)
    count = np.arange(1, len(wrong) + 1)
    at = np.unique(np.ceil(np.linspace(1 / _POINTS, 1, _POINTS) * len(wrong)).astype(int)) - 1
    risk = np.cumsum(wrong) / count
    return np.interp(np.linspace(1 / _POINTS, 1, _POINTS), count[at] / len(wrong), risk[at])


def _line(x: np.ndarray, y: np.ndarray, kind: str) -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'


def risk_picture(seeds: Sequence[dict[str, Any]], small: bool = False) -> str:
    """Returns a plot of risk against coverage, mean over seeds; "–" where no score varies.

    The lines sort the queries by the uncertainty level, where there is one; by the similarity baseline; and by the
    confidence with labels, where it was measured.

    Args:
        seeds: the values of every query, for each seed.
        small: without text, for a cell of a table.
    """
    curves = {}
    for kind, score in (("level", "level"), ("free", "top1_similarity"), ("confidence", "confidence")):
        if all(score in v and np.ptp(v[score]) > 0 and not np.isnan(v["map@r"]).all() for v in seeds):
            curves[kind] = np.mean([_risk(v, score) for v in seeds], axis=0)
    if not curves:
        return "–"
    top = max(0.01, max(float(c.max()) for c in curves.values())) * 1.05
    frame = _Frame(110, 34, left=1, below=1, above=2) if small else _Frame(320, 210, right=4)
    x = np.linspace(1 / _POINTS, 1, _POINTS)
    words = {"level": "by uncertainty level", "free": "by similarity", "confidence": "by confidence"}
    half = ", ".join(f"{words[k]} {100 * c[_POINTS // 2 - 1]:.0f} %" for k, c in curves.items())
    full = 100 * next(iter(curves.values()))[-1]
    label = f"Risk–coverage: {full:.0f} % wrong when all queries are answered; the surest half: {half}"
    parts = [frame.axes(), *(_line(frame.x(x), frame.y(risk / top), kind) for kind, risk in curves.items())]
    if not small:
        parts += [frame.below_axis(share, f"{100 * share:.0f} %") for share in (0.25, 0.5, 0.75, 1.0)]
        step = next(s for s in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if top / s <= 5 or s == 0.2)
        parts += [frame.beside_axis(t / top, f"{100 * t:g} %") for t in np.arange(0, top, step).round(3)]
        parts.append(frame.caption("queries answered, surest first"))
    return _svg(frame.width, frame.height, label, parts)


@dataclass(frozen=True)
class _Frame:
    """The size of a plot and its margins, in pixels. Its methods map the unit square to the picture."""

    width: int
    height: int
    left: int = 36
    below: int = 34
    above: int = 8
    right: int = 2

    def x(self, share: Any) -> Any:
        return self.left + share * (self.width - self.left - self.right)

    def y(self, share: Any) -> Any:
        return self.above + (1 - share) * (self.height - self.below - self.above)

    def axes(self) -> str:
        return f'<path class="axis" d="M{self.left} {self.above}V{self.y(0):g}H{self.width - self.right}"/>'

    def below_axis(self, share: float, text: str) -> str:
        anchor = "end" if share == 1 and self.right < 20 else "middle"
        return f'<text x="{self.x(share):.0f}" y="{self.y(0) + 14:.0f}" text-anchor="{anchor}">{text}</text>'

    def beside_axis(self, share: float, text: str) -> str:
        return f'<text x="{self.left - 4}" y="{self.y(share) + 4:.0f}" text-anchor="end">{text}</text>'

    def caption(self, text: str) -> str:
        return f'<text x="{self.x(0.5):.0f}" y="{self.height - 4}" text-anchor="middle">{text}</text>'


def corruption_picture(seeds: Sequence[dict[str, dict[str, dict[str, float]]]]) -> str:
    """Returns a plot of Recall@1 against severity, a line for each corruption, mean over seeds.

    Args:
        seeds: for each seed: by corruption, then severity "1" to "5": ``recall@1``. A severity that a seed lacks is
            left out.
    """
    frame = _Frame(360, 210, right=80)
    parts, summaries, ends = [frame.axes()], [], []
    for kind in seeds[0]:
        severities = sorted(int(s) for s in seeds[0][kind] if all(s in seed.get(kind, {}) for seed in seeds))
        if not severities:  # a mean over some of the seeds would mislead
            continue
        recall = [float(np.mean([s[kind][str(k)]["recall@1"] for s in seeds])) for k in severities]
        x, y = frame.x((np.array(severities) - 1) / 4), frame.y(np.array(recall))
        parts.append(_line(x, y, "level"))
        ends.append((float(y[-1]), float(x[-1]), kind))
        summaries.append(f"{kind} {100 * recall[0]:.0f} to {100 * recall[-1]:.0f} %")
    lowest = -np.inf
    for y_end, x_end, kind in sorted(ends):  # names that would cover each other move down
        lowest = max(y_end, lowest + 11)
        parts.append(f'<text x="{x_end + 4:.0f}" y="{lowest + 4:.0f}">{escape(kind)}</text>')
    parts += [frame.below_axis((severity - 1) / 4, str(severity)) for severity in range(1, 6)]
    parts += [frame.beside_axis(share, f"{100 * share:.0f} %") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    parts.append(frame.caption("severity of the corruption"))
    label = "Recall@1 from the weakest to the strongest corruption: " + ", ".join(summaries)
    return _svg(frame.width, frame.height, label, parts)


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    box = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg {box} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
