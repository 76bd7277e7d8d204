"""Errors of confidence and abstention."""

from __future__ import annotations


class ReliabilityError(ValueError):
    """A stored reliability that cannot be used, or data that none can be fitted to; the message says which and why."""


class RiskNotReachable(ReliabilityError):
    """No share of the queries can be answered at the risk that was asked for.

    Attributes:
        max_risk: that was asked for.
        reachable: the next higher risk, in hundredths, at which some queries can be answered; None where there is none.
        coverage: share of the queries that are answered there.
    """

    def __init__(self, message: str, max_risk: float, reachable: float | None, coverage: float) -> None:
        super().__init__(message)
        self.max_risk, self.reachable, self.coverage = max_risk, reachable, coverage
