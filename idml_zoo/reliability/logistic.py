"""A logistic estimator as plain numbers: what a JSON file holds, and numpy computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from idml_zoo.reliability.errors import ReliabilityError

_LARGEST = 1e6  # a coefficient beyond this was not fitted to standardised features
_LEAST_SCALE = 1e-6  # a feature that varies less is constant
_MOST, _LONGEST = 64, 40  # features, and characters of a name, in a file


def is_number(value: Any, largest: float) -> bool:
    """Whether a value of a file is a finite number within ±``largest``; an integer may have any number of digits."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -largest <= value <= largest


@dataclass(frozen=True)
class Logistic:
    """P(y) = 1 / (1 + exp(−(intercept + Σ weight·(x − mean)/scale))).

    Attributes:
        features: names of the F features, in the order of the numbers.
        mean, scale: F numbers each that standardise them; scales at least 1e-6.
        weights: F coefficients of the standardised features.
        intercept: log odds where every feature is at its mean.

    Raises:
        ReliabilityError: counts that differ, or a number that is not finite or out of range.
    """

    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float

    def __post_init__(self) -> None:
        counts = {len(self.features), len(self.mean), len(self.scale), len(self.weights)}
        if len(counts) != 1 or counts == {0}:
            raise ReliabilityError(f"an estimator needs one mean, scale and weight per feature, got {sorted(counts)}")
        if not all(is_number(v, _LARGEST) for v in (*self.mean, *self.scale, *self.weights, self.intercept)):
            raise ReliabilityError(f"an estimator holds a value that is no finite number within ±{_LARGEST:g}")
        if min(self.scale) < _LEAST_SCALE:
            raise ReliabilityError(f"an estimator's scales must be at least {_LEAST_SCALE:g}, got {min(self.scale):g}")

    def probability(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns ``(N,)`` float64 probabilities.

        Args:
            columns: the features by name, ``(N,)`` each; more than are needed do no harm.

        Raises:
            ReliabilityError: a feature is missing.
        """
        if missing := [n for n in self.features if n not in columns]:
            raise ReliabilityError(f"the estimator needs the feature {missing[0]!r}, which was not computed")
        logit = np.full(len(columns[self.features[0]]), float(self.intercept))
        for name, mean, scale, weight in zip(self.features, self.mean, self.scale, self.weights, strict=True):
            logit += (columns[name].astype(np.float64) - mean) * (weight / scale)
        return 1 / (1 + np.exp(-np.clip(logit, -50, 50)))

    @classmethod
    def fit(
        cls,
        columns: Mapping[str, np.ndarray],
        features: Sequence[str],
        target: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> Logistic:
        """Fits the maximum-likelihood estimator with an L2 penalty of strength 1, by scikit-learn.

        Args:
            columns: features by name, ``(N,)`` each.
            features: those to be used.
            target: ``(N,)`` bool.
            weight: ``(N,)`` of each query; None: all 1.

        Raises:
            ReliabilityError: the target is constant, or a feature is not finite.
        """
        from sklearn.linear_model import LogisticRegression

        if target.all() or not target.any():
            raise ReliabilityError(
                f"all {len(target)} queries have the same outcome ({'right' if target.all() else 'wrong'}): nothing "
                "tells them apart; give harder or more images, or use the default estimator"
            )
        values = np.stack([columns[n].astype(np.float64) for n in features], 1)
        if not np.isfinite(values).all():
            raise ReliabilityError("a feature of the neighbourhood is not finite; look for NaN in the embeddings")
        mean = np.average(values, axis=0, weights=weight)
        scale = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight))
        scale[scale < _LEAST_SCALE] = 1.0  # a constant feature gets no weight
        model = LogisticRegression(max_iter=5000).fit((values - mean) / scale, target, sample_weight=weight)
        means, scales, weights = (tuple(float(f"{v:.6g}") for v in x) for x in (mean, scale, model.coef_[0]))
        return cls(tuple(features), means, scales, weights, float(f"{model.intercept_[0]:.6g}"))

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Any) -> Logistic:
        """Reads what :meth:`to_dict` returned.

        Raises:
            ReliabilityError: other keys, or values of another kind.
        """
        lists = ("features", "mean", "scale", "weights")
        if not isinstance(data, dict) or set(data) != {*lists, "intercept"}:
            raise ReliabilityError(f"an estimator must be an object with {', '.join(lists)} and intercept")
        if not all(isinstance(data[n], list) and len(data[n]) <= _MOST for n in lists):
            raise ReliabilityError(f"an estimator's {', '.join(lists)} must be lists of at most {_MOST} values")
        names = data["features"]
        if not all(isinstance(n, str) and len(n) <= _LONGEST for n in names) or len(set(names)) != len(names):
            raise ReliabilityError(
                f"an estimator's features must be different names of at most {_LONGEST} characters each"
            )
        mean, scale, weights = (tuple(data[n]) for n in lists[1:])
        return cls(tuple(names), mean, scale, weights, data["intercept"])
