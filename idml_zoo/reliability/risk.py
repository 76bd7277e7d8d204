"""Abstention with a guarantee: which queries may be answered so that at most a chosen share of the answers is wrong.

Learn-then-test (Angelopoulos, Bates, Candès, Jordan and Lei, 2021): the queries of a calibration set are sorted by
their confidence, and 20 fixed shares of them are tested in turn, the surest first: is "``max_risk`` or more of the
answers are wrong" refuted? The first share where it is not ends the chain, and the one before it is answered. As the
order of the tests is fixed, the chance that the chosen limit breaks its promise is at most 1 − confidence, with no
correction for their number. That the shares are quantiles of the same queries costs nothing where less sure answers are
not wrong less often: the first share whose risk is too high then has as many wrong answers as the binomial says, or
more.

The chain begins with the first share that is large enough to pass with a few wrong answers, and that size grows as
``max_risk`` falls. So a lower risk may skip a small share where chance put a few wrong answers, and now and then answer
more than a higher risk does. Each holds by itself; do not choose the better of several on the same calibration.

Two p-values, by what counts as one draw:

- *queries*: the exact binomial tail. It holds where later queries are drawn as the calibration queries were.
- *classes*: queries of one class go wrong together, so that new classes break a promise made by the binomial. Then
  classes count as the draws: the larger of the binomial p-value and that of a one-sided t test of the mean over classes
  of (wrong − max_risk·answered), 0 for a class without answers. One value is added: that of the class with most wrong
  answers once more, as the next class may be no better, or 0 where that is larger. The t test is approximate, unlike
  the binomial, and foresees no kind of class that the calibration has none of. So the p-value is at least
  (1 − max_risk)^C, the chance that C classes miss a kind that makes up ``max_risk`` of them and is always wrong: 5 %
  needs 45 classes, 10 % 22.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from idml_zoo.reliability.errors import ReliabilityError, RiskNotReachable
from idml_zoo.reliability.logistic import is_number

COVERAGES = tuple(i / 20 for i in range(1, 21))
UNITS = ("classes", "queries")
_MOST = 1 << 40  # queries of a table in a file
_TOLERATED = 2  # wrong answers that the first share must be able to bear, or one mislabelled image would end the chain


@dataclass(frozen=True)
class Share:
    """The surest part of the calibration queries.

    Attributes:
        threshold: lowest confidence among them.
        answered, wrong: their number, and how many of them were answered wrongly.
        wrong_squared, wrong_answered, answered_squared: sums over classes of w², w·a and a², where w of a class's a
            queries were answered wrongly.
        worst_wrong, worst_answered: w and a of the class with most wrong answers; of several, that with fewest answers.
    """

    threshold: float
    answered: int
    wrong: int
    wrong_squared: float
    wrong_answered: float
    answered_squared: float
    worst_wrong: int
    worst_answered: int

    def p_value(self, max_risk: float, unit: str, classes: int) -> float:
        """Returns the p-value of "the risk is at least ``max_risk``" in [0, 1]; small: it is below.

        Args:
            max_risk: in (0, 1).
            unit: what counts as one draw, see the module.
            classes: of the calibration set, answered or not.
        """
        from scipy.special import bdtr, stdtr

        p = float(bdtr(self.wrong, self.answered, max_risk))
        if unit == "queries":
            return p
        if classes < 2:
            return 1.0
        count, added = classes + 1, max(self.worst_wrong - max_risk * self.worst_answered, 0.0)
        total = self.wrong - max_risk * self.answered + added
        squares = self.wrong_squared - 2 * max_risk * self.wrong_answered + max_risk**2 * self.answered_squared
        variance = (squares + added**2 - total**2 / count) / (count - 1)
        if variance <= 0:  # all values alike, so that none is below the one that was added
            return 1.0
        unseen = (1 - max_risk) ** classes
        return max(p, unseen, float(stdtr(count - 1, total / math.sqrt(variance * count))))


@dataclass(frozen=True)
class Limit:
    """From which confidence on a query is answered.

    Attributes:
        threshold: least confidence of an answer; those below are declined.
        max_risk: share of the answers that may be wrong.
        confidence: probability, over the draw of the calibration set, that the promise holds.
        coverage: share of the calibration queries that were answered; later ones will differ by chance.
        risk: share of those that were wrong.
        unit: what the calibration set was taken to be a draw of, "classes" or "queries".
        size: number of those.
    """

    threshold: float
    max_risk: float
    confidence: float
    coverage: float
    risk: float
    unit: str
    size: int

    @property
    def assumption(self) -> str:
        """What the promise rests on; to be shown wherever the number is."""
        drawn = "classes" if self.unit == "classes" else "queries"
        return (
            f"At most {100 * self.max_risk:g} % of the answers are wrong, with {100 * self.confidence:g} % confidence, "
            f"if later {drawn} are drawn as the {self.size:,} {drawn} of the calibration were, and searched by the "
            "same model in a gallery of the same kind and size. Other images, classes or corruption void this."
        )


@dataclass(frozen=True)
class RiskTable:
    """What a calibration set says of the risk at 20 coverages: enough for every limit, and no value of any query.

    Attributes:
        queries, classes: of the calibration set.
        unit: what counts as one draw of it, "classes" or "queries".
        shares: the surest 5, 10, … 100 % of its queries.
    """

    queries: int
    classes: int
    unit: str
    shares: tuple[Share, ...]

    @classmethod
    def of(cls, score: np.ndarray, wrong: np.ndarray, classes: np.ndarray, unit: str = "classes") -> RiskTable:
        """Counts a calibration set.

        Args:
            score: ``(N,)`` larger = surer; in [0, 1] where the table is to be stored.
            wrong: ``(N,)`` bool, whether the answer is wrong.
            classes: ``(N,)`` class of each query.
            unit: see the class.

        Raises:
            ReliabilityError: no queries, lengths that differ, NaN, or another unit.
        """
        if unit not in UNITS:
            raise ReliabilityError(f"unit must be {' or '.join(UNITS)}, got {unit!r}")
        if not len(score) == len(wrong) == len(classes) or len(score) == 0 or np.isnan(score).any():
            raise ReliabilityError(
                f"needs as many scores as outcomes and classes, at least one and no NaN; got {len(score)}, "
                f"{len(wrong)} and {len(classes)}"
            )
        descending = np.sort(score)[::-1]
        labels, member = np.unique(classes, return_inverse=True)
        shares = []
        for coverage in COVERAGES:
            threshold = descending[max(1, round(coverage * len(score))) - 1]
            kept = score >= threshold  # with all that tie
            a = np.bincount(member[kept], minlength=len(labels)).astype(float)
            w = np.bincount(member[kept], weights=wrong[kept], minlength=len(labels))
            worst = int(np.lexsort((a, -w))[0])
            sums = (float((w * w).sum()), float((w * a).sum()), float((a * a).sum()))
            shares.append(Share(float(threshold), int(a.sum()), int(w.sum()), *sums, int(w[worst]), int(a[worst])))
        return cls(len(score), len(labels), unit, tuple(shares))

    def limit(self, max_risk: float, confidence: float = 0.9) -> Limit:
        """Returns the limit that answers most queries.

        Args:
            max_risk: share of the answers that may be wrong, in (0, 1).
            confidence: that the promise holds, in (0, 1).

        Raises:
            ReliabilityError: a number out of its range.
            RiskNotReachable: no share of the queries passes; the message says which higher risk is reachable.
        """
        for name, value in (("max_risk", max_risk), ("confidence", confidence)):
            if not 0 < value < 1:
                raise ReliabilityError(f"{name} must lie between 0 and 1, got {value}")
        share = self._largest(max_risk, confidence)
        if share is None:
            raise self._not_reachable(max_risk, confidence)
        coverage, risk = share.answered / self.queries, share.wrong / share.answered
        size = self.classes if self.unit == "classes" else self.queries
        return Limit(share.threshold, max_risk, confidence, coverage, risk, self.unit, size)

    def _largest(self, max_risk: float, confidence: float) -> Share | None:
        """Returns the last share of the chain of tests; None where the first does not pass."""
        largest = None
        for share in self._tested(max_risk, confidence):
            if share.p_value(max_risk, self.unit, self.classes) > 1 - confidence:
                break
            largest = share
        return largest

    def _tested(self, max_risk: float, confidence: float) -> Iterator[Share]:
        """Yields the shares from the first that could pass with a few wrong answers: sizes decide, no outcome does."""
        from scipy.special import bdtr

        for tolerated in range(_TOLERATED, -1, -1):
            large = [s for s in self.shares if bdtr(tolerated, s.answered, max_risk) <= 1 - confidence]
            if large:
                yield from large
                return

    def _not_reachable(self, max_risk: float, confidence: float) -> RiskNotReachable:
        for hundredths in range(math.floor(100 * max_risk) + 1, 100):
            share = self._largest(hundredths / 100, confidence)
            if share is not None:
                coverage = share.answered / self.queries
                message = (
                    f"a risk of {100 * max_risk:g} % is not reachable with {100 * confidence:g} % confidence; the next "
                    f"that is: {hundredths} %, answering {100 * coverage:.0f} % of the queries. More images of more "
                    "classes for the calibration, or a better model, allow less"
                )
                return RiskNotReachable(message, max_risk, hundredths / 100, coverage)
        message = (
            f"a risk of {100 * max_risk:g} % is not reachable with {100 * confidence:g} % confidence, nor any higher "
            f"one, from {self.queries} queries of {self.classes} classes; calibrate on more images of more classes"
        )
        return RiskNotReachable(message, max_risk, None, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON values: a list of numbers for each share."""
        shares = [list(asdict(s).values()) for s in self.shares]
        return {"queries": self.queries, "classes": self.classes, "unit": self.unit, "shares": shares}

    @classmethod
    def from_dict(cls, data: Any) -> RiskTable:
        """Reads what :meth:`to_dict` returned.

        Raises:
            ReliabilityError: anything else, or numbers that contradict each other.
        """
        if not isinstance(data, dict) or set(data) != {"queries", "classes", "unit", "shares"}:
            raise ReliabilityError("a risk table must be an object with queries, classes, unit and shares")
        rows, counts = data["shares"], (data["queries"], data["classes"])
        if not all(type(n) is int and 0 < n < _MOST for n in counts) or data["unit"] not in UNITS:
            raise ReliabilityError("a risk table must count its queries and classes, of the unit classes or queries")
        if not isinstance(rows, list) or len(rows) != len(COVERAGES) or not all(map(_is_share, rows)):
            raise ReliabilityError(f"a risk table must have {len(COVERAGES)} shares of 8 numbers that agree")
        if max(row[1] for row in rows) > data["queries"] or data["classes"] > data["queries"]:
            raise ReliabilityError("a risk table must not answer more queries than it has, nor have more classes")
        if any(a[0] < b[0] or a[1] > b[1] or a[2] > b[2] for a, b in pairwise(rows)):
            raise ReliabilityError("each share of a risk table must hold the one before it, from the surest on")
        return cls(*counts, data["unit"], tuple(Share(*row) for row in rows))


def _is_share(row: Any) -> bool:
    """Whether these are the numbers of a :class:`Share`."""
    if not isinstance(row, list) or len(row) != 8 or not all(is_number(v, float(_MOST) ** 2) for v in row):
        return False
    if not all(type(row[i]) is int for i in (1, 2, 6, 7)):
        return False
    threshold, answered, wrong, wrong_squared, wrong_answered, answered_squared, worst_wrong, worst_answered = row
    return (
        0 <= threshold <= 1
        and 0 < answered < _MOST
        and 0 <= worst_wrong <= wrong <= answered
        and worst_wrong <= worst_answered <= answered
        and max(wrong, worst_wrong**2) <= wrong_squared <= wrong_answered <= answered_squared <= answered**2
        and max(answered, worst_answered**2) <= answered_squared
    )
