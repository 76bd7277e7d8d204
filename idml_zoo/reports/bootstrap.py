"""Tells whether two rows differ: intervals that hold queries and seeds, and ranks that respect them.

Queries enter by a paired bootstrap, with the same draws for all rows (Efron and Tibshirani, 1993; for retrieval:
Smucker, Allan and Carterette, CIKM 2007).

Seeds enter by the t distribution, with Welch's degrees of freedom. Three or five seeds are too few to resample: where
only seeds differ, such an interval excludes 0 in a fifth of the cases. The spread of seeds already holds a part of the
spread of queries, so that an interval is rather too wide. A row of one seed shows no spread between seeds: its true
interval is at least as wide as the one given.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from idml_zoo.results import Result, ResultError

DRAWS = 2000
LEVEL = 0.95
_AT_ONCE = 1 << 24  # counts held in memory together


@dataclass(frozen=True)
class Difference:
    """By how much the first row's mean exceeds the second's.

    Attributes:
        mean: in the unit of the values.
        low, high: ends of the interval.
        wins: share of the draws in which the first row is higher, in [0, 1]; a tie counts half.
    """

    mean: float
    low: float
    high: float
    wins: float

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def bootstrap_means(rows: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Returns ``(draws, R)`` means of R rows, over their seeds, under resampled queries.

    Args:
        rows: R arrays ``(S_r, N)``: the value of each query for each seed of a row; all over the same N queries.
        draws: how many.
        seed: of the draws, which are the same on every machine.

    Raises:
        ValueError: rows of different queries, no queries, or NaN.
    """
    if draws < 1:
        raise ValueError(f"draws must be 1 or more, got {draws}")
    rows = _checked(rows)
    values = np.stack([r.mean(0) for r in rows], axis=1)  # (N, R)
    n = len(values)
    counts = _counts(n, draws, seed)
    means = np.empty((draws, len(rows)))
    step = max(1, _AT_ONCE // n)
    for start in range(0, draws, step):
        means[start : start + step] = counts[start : start + step] @ values / n
    return means


@functools.lru_cache(maxsize=4)  # a page compares many rows of few sets
def _counts(n: int, draws: int, seed: int) -> np.ndarray:
    """Returns ``(draws, n)`` counts: how often each query is drawn. Bytes hold them, as their mean is 1."""
    random = np.random.RandomState(seed)  # its streams are frozen, unlike the newer generators'
    counts = np.empty((draws, n), dtype=np.uint8)
    step = max(1, _AT_ONCE // n)
    for start in range(0, draws, step):
        part = min(step, draws - start)
        drawn = random.randint(0, n, (part, n)) + np.arange(part)[:, None] * n
        counts[start : start + part] = np.bincount(drawn.ravel(), minlength=part * n).reshape(part, n)
    return counts


def _checked(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the rows as ``(S, N)`` float64; raises ValueError where they are not over the same queries, or NaN."""
    rows = [np.atleast_2d(np.asarray(r, dtype=np.float64)) for r in rows]
    counts = {r.shape[1] for r in rows}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"rows must be over the same queries, got {sorted(counts)} of them")
    if any(np.isnan(r).any() for r in rows):
        raise ValueError("a value is NaN; leave out the queries without positive in all rows")
    return rows


def _seed_noise(first: np.ndarray, second: np.ndarray, draws: int, seed: int) -> np.ndarray | float:
    """Returns what the choice of seeds adds to each draw of a difference: t by Welch (1947), 0 without a spread.

    It is the quantiles of t in random order. Random draws of so heavy a tail would leave the interval's ends to chance.
    """
    from scipy.special import stdtrit

    parts = [(r.mean(1).var(ddof=1) / len(r), len(r) - 1) for r in (first, second) if len(r) > 1]
    total = sum(v for v, _ in parts)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(v**2 / df for v, df in parts)
    quantiles = stdtrit(freedom, (np.arange(draws) + 0.5) / draws)
    return total**0.5 * np.random.RandomState(seed).permutation(quantiles)


def load_queries(root: str | Path, result: Result) -> dict[str, np.ndarray] | None:
    """Returns the values of every query, from the file beside a result file; None where the result has none.

    Args:
        root: the results folder.
        result: read from it.

    Raises:
        ResultError: the file is missing, was changed, or holds another number of queries; the message names it.
    """
    if result.queries_sha256 is None:
        return None
    path = result.path(root).with_suffix(".queries.npz")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultError(f"{path} is missing ({error.strerror}); get it back or evaluate again") from error
    if hashlib.sha256(content).hexdigest() != result.queries_sha256:
        raise ResultError(f"{path} is not the file that {result.path(root).name} was written with; evaluate again")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        values = dict(file)
    if any(v.shape != (result.queries,) for v in values.values()):
        raise ResultError(f"{path} must hold {result.queries} values of each kind; evaluate again")
    return values


def difference(
    first: np.ndarray, second: np.ndarray, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> Difference:
    """Returns the difference of two rows' means with its interval.

    Rows whose seeds belong together, such as two searches of the same weights, are compared as ``difference(first -
    second, zeros)``.

    Args:
        first, second, draws, seed: as those of :func:`bootstrap_means`.
        level: share of the draws that the interval holds, between 0 and 1.

    Raises:
        ValueError: as :func:`bootstrap_means`; or a level that is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    first, second = _checked([first, second])
    means = bootstrap_means([first, second], draws, seed)
    drawn = means[:, 0] - means[:, 1] + _seed_noise(first, second, draws, seed + 1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    wins = float((drawn > 0).mean() + (drawn == 0).mean() / 2)
    return Difference(float(np.mean(first) - np.mean(second)), float(low), float(high), wins)


def ranks(rows: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0, level: float = LEVEL) -> list[int]:
    """Returns each row's rank: 1 + the number of distinguishably better rows. Rows that do not differ share a rank.

    Args:
        rows, draws, seed: as those of :func:`bootstrap_means`.
        level: of the interval of each :func:`difference`.
    """
    rows = _checked(rows) if rows else []
    means = bootstrap_means(rows, draws, seed) if rows else np.empty((draws, 0))
    better = [0] * len(rows)
    for i, row in enumerate(rows):
        for j, other in enumerate(rows):
            if other.mean() > row.mean():
                drawn = means[:, j] - means[:, i] + _seed_noise(other, row, draws, seed + 1)
                better[i] += bool(np.quantile(drawn, (1 - level) / 2) > 1e-12)  # sums in another order differ by less
    return [1 + b for b in better]
