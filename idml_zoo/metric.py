"""How two embeddings are compared, as one value: it travels whole from a model's files to every search. No torch."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

from idml_zoo.registry import unknown_name

SIMILARITIES = ("cosine", "introspective")
TAU = 5.0  # the constant 5 of the released code acts as the temperature τ of the metric [C]

P = ParamSpec("P")
R = TypeVar("R")


def check_tau(tau: float) -> None:
    """Raises ValueError where a temperature is not positive and finite."""
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, got {tau}")


@dataclass(frozen=True)
class Metric:
    """How two embeddings are compared.

    Attributes:
        similarity: "cosine" of the semantic embeddings, or "introspective": minus the introspective distance
            D = α·exp(−β/(τα)) [R], which uncertainty weighs.
        tau: temperature τ > 0 of the introspective distance; the cosine does not depend on it.

    Raises:
        UnknownNameError: an unknown similarity.
        ValueError: a temperature that is not positive and finite.
    """

    similarity: str = "cosine"
    tau: float = TAU

    def __post_init__(self) -> None:
        if self.similarity not in SIMILARITIES:
            raise unknown_name("search similarity", self.similarity, SIMILARITIES)
        check_tau(self.tau)

    @property
    def introspective(self) -> bool:
        """Whether uncertainty counts."""
        return self.similarity == "introspective"

    def by(self, similarity: str) -> Metric:
        """Returns the metric with another similarity and the same temperature."""
        return replace(self, similarity=similarity)


def as_metric(metric: Metric | str) -> Metric:
    """Returns a metric as it is, and the metric of a similarity's name with τ = 5."""
    return metric if isinstance(metric, Metric) else Metric(metric)


def accepts_similarity_and_tau(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a function with a ``metric`` take the keywords ``similarity`` and ``tau`` of version 0.1, deprecated."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        old: dict[str, Any] = {k: kwargs.pop(k) for k in ("similarity", "tau") if k in kwargs}
        if old:
            warnings.warn(
                f"{function.__name__}: give metric=idml_zoo.Metric(similarity, tau) instead of {' and '.join(old)}; "
                "the old keywords go in version 0.4",
                DeprecationWarning,
                stacklevel=2,
            )
            kwargs["metric"] = Metric(**{k: v for k, v in old.items() if v is not None})
        return function(*args, **kwargs)

    return wrapped
