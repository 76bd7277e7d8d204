"""How sure an answer is, in words: the same in the terminal, on pages and under pictures."""

from __future__ import annotations

from idml_zoo.reliability.risk import Limit


def percent(confidence: float) -> str:
    """Returns a probability in [0, 1] as "92 %"; what is nearly certain is not rounded to certainty."""
    if confidence < 0.005:
        return "<1 %"
    return ">99 %" if confidence >= 0.995 else f"{100 * confidence:.0f} %"


def sureness(confidence: float, unsure: bool = False) -> str:
    """Returns "92 % sure", or "not sure (31 %)" for an answer that a limit on the risk declines."""
    return f"not sure ({percent(confidence)})" if unsure else f"{percent(confidence)} sure"


def promise(limit: Limit, declined: int, total: int) -> str:
    """Returns how many of ``total`` queries were declined, what the limit promises of the others, and on which
    assumption. To be shown once wherever a limit was used."""
    return f"Declined as not sure: {declined:,} of {total:,}. {limit.assumption}"
