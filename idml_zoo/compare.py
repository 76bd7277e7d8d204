"""Are two rows different? Paired bootstrap over queries and seeds, and ranks that respect it. numpy only.

Queries are resampled once for all rows, so that their differences are paired; the seeds of each row are resampled on
their own. (Efron and Tibshirani, 1993; for retrieval, Smucker, Allan and Carterette, CIKM 2007.) A row of one seed says
nothing of the spread between seeds, and with few seeds the spread is understated: the doubt is at least the interval.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from idml_zoo.results import Result, ResultError

DRAWS = 2000
LEVEL = 0.95
_AT_ONCE = 1 << 24  # counts held at once


@dataclass(frozen=True)
class Difference:
    """How much higher the first row's mean is than the second's.

    Attributes:
        mean: in the unit of the values.
        low, high: ends of the interval that holds the given share of the bootstrap's draws.
        wins: share of the draws in which the first is higher (a draw counts half).
    """

    mean: float
    low: float
    high: float
    wins: float

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def bootstrap_means(rows: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """``(draws, R)`` means of R rows under resampled queries and seeds.

    Args:
        rows: R arrays ``(S_r, N)``: the value of each query for each seed of a row; all over the same N queries.
        draws: how many.
        seed: of the draws; the same numbers everywhere.

    Raises:
        ValueError: rows of different queries, no queries, or NaN.
    """
    if draws < 1:
        raise ValueError(f"draws must be 1 or more, got {draws}")
    rows = [np.atleast_2d(np.asarray(r, dtype=np.float64)) for r in rows]
    counts = {r.shape[1] for r in rows}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"rows must be over the same queries, got {sorted(counts)} of them")
    if any(np.isnan(r).any() for r in rows):
        raise ValueError("a value is NaN; leave out the queries without positive in all rows")
    (n,) = counts
    random = np.random.RandomState(seed)  # its streams are frozen, unlike the newer generators'
    values = np.concatenate(rows).T  # (N, all seeds)
    found = np.empty((draws, values.shape[1]))
    step = max(1, _AT_ONCE // n)
    for start in range(0, draws, step):
        part = min(step, draws - start)
        drawn = random.randint(0, n, (part, n)) + np.arange(part)[:, None] * n
        weight = np.bincount(drawn.ravel(), minlength=part * n).reshape(part, n)
        found[start : start + part] = weight @ values / n
    out, first = np.empty((draws, len(rows))), 0
    for i, r in enumerate(rows):
        share = random.multinomial(len(r), np.full(len(r), 1 / len(r)), size=draws) / len(r)
        out[:, i] = (found[:, first : first + len(r)] * share).sum(1)
        first += len(r)
    return out


def load_queries(root: str | Path, result: Result) -> dict[str, np.ndarray] | None:
    """The values of every query that lie beside a result file, or None where it says that there are none.

    Raises:
        ResultError: missing, changed since they were written, or of another number of queries; it names the file.
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
    """Paired bootstrap of the difference of two rows' means; arguments as those of :func:`bootstrap_means`."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    means = bootstrap_means([first, second], draws, seed)
    off = means[:, 0] - means[:, 1]
    low, high = np.quantile(off, [(1 - level) / 2, (1 + level) / 2])
    wins = float((off > 0).mean() + (off == 0).mean() / 2)
    return Difference(float(np.mean(first) - np.mean(second)), float(low), float(high), wins)


def ranks(means: np.ndarray, level: float = LEVEL) -> list[int]:
    """Each row's rank: 1 + how many rows are distinguishably better; rows that cannot be told apart share one.

    Args:
        means: ``(draws, R)`` of :func:`bootstrap_means`.
        level: of the interval of each difference.
    """
    better = []
    for i in range(means.shape[1]):
        low = np.quantile(means - means[:, [i]], (1 - level) / 2, axis=0)
        low[i] = 0
        better.append(int((low > 1e-12).sum()))  # sums in another order differ by less
    return [1 + b for b in better]
