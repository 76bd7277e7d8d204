"""Fits the default coefficients: on held-out classes of several sets, each set with the same weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from idml_zoo.reliability.logistic import Logistic
from idml_zoo.reliability.names import DEFAULT_LABEL_FREE, DEFAULT_LABELLED, DEFAULT_UNKNOWN
from idml_zoo.reliability.reliability import Reliability
from idml_zoo.retrieval.fit import Outcomes, fit_forms

QUERIES = 3000  # of each source at most, drawn
TOTAL = 40_000.0  # that the weights of all queries add up to, against the penalty's strength of 1


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """Returns the answers of several sources as one."""
    features = {n: np.concatenate([p.features[n] for p in parts]) for n in parts[0].features}
    right, known, classes = (np.concatenate([getattr(p, n) for p in parts]) for n in ("right", "known", "classes"))
    return Outcomes(features, right, known, classes)


def drawn(answers: Outcomes, count: int = QUERIES) -> Outcomes:
    """Returns ``count`` answers at most, drawn with numpy's frozen ``RandomState(0)``."""
    return answers[np.random.RandomState(0).permutation(len(answers))[:count]]


def fit_within(closed: Outcomes, weight: np.ndarray, source: np.ndarray) -> Logistic:
    """Fits the label-free confidence by what tells right answers *within* a source: each has an intercept of its own.

    The share of right answers differs between sources, and nothing without labels can tell it; pooled, the coefficients
    would learn to tell the sources apart. The intercept that is kept gives the mean share over all of them.

    Args:
        closed: answers of several sources.
        weight, source: ``(N,)`` of each answer.
    """
    marks = {f"source {i}": (source == i).astype(np.float32) for i in np.unique(source)[1:]}
    names = (*DEFAULT_LABEL_FREE, *marks)
    fitted = Logistic.fit({**closed.features, **marks}, names, closed.right, weight)
    kept = len(DEFAULT_LABEL_FREE)
    plain = Logistic(fitted.features[:kept], fitted.mean[:kept], fitted.scale[:kept], fitted.weights[:kept], 0.0)
    share, low, high = np.average(closed.right, weights=weight), -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = np.average(replace(plain, intercept=middle).probability(closed.features), weights=weight)
        low, high = (middle, high) if mean < share else (low, middle)
    return replace(plain, intercept=float(f"{middle:.6g}"))


def fit_default(answers: Mapping[str, tuple[Outcomes, Outcomes]], note: str, without: str = "") -> Reliability:
    """Returns the coefficients that fit several sources, each benchmark and each source in it with the same weight.

    Args:
        answers: of each source, by its key: in a gallery with every class, and in one without half of them.
        note: on what they were fitted, in words.
        without: a benchmark that is left out.
    """
    kept = {k: pair for k, pair in answers.items() if k.split(".")[0] != without}
    benchmarks = [k.split(".")[0] for k in kept]
    sets = len(set(benchmarks))
    parts: tuple[list[Outcomes], list[Outcomes]] = ([], [])
    weights: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    sources: list[np.ndarray] = []
    for number, (benchmark, pair) in enumerate(zip(benchmarks, kept.values(), strict=True)):
        sources.append(np.full(min(len(pair[0]), QUERIES), number))
        for i, whole in enumerate(pair):
            part = drawn(whole)
            share = TOTAL / sets / benchmarks.count(benchmark) / len(part)
            parts[i].append(part)
            weights[i].append(np.full(len(part), share))
    closed, opened = map(joined, parts)
    drawn_weights = np.concatenate(weights[0]), np.concatenate(weights[1])
    fitted = fit_forms(closed, opened, drawn_weights, (DEFAULT_LABELLED, DEFAULT_LABEL_FREE), DEFAULT_UNKNOWN)
    within = fit_within(closed, drawn_weights[0], np.concatenate(sources))
    label_free = replace(fitted.label_free, confidence=within)
    return replace(fitted, label_free=label_free, fitted_on=note)
