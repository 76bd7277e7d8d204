"""What is measured of confidence: AUROC under resampled classes, calibration, and how often a promise is broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from idml_zoo.evaluation.uncertainty import coverage_at, probability_error
from idml_zoo.reliability.errors import RiskNotReachable
from idml_zoo.reliability.logistic import Logistic
from idml_zoo.reliability.names import UNCERTAINTY
from idml_zoo.reliability.risk import RiskTable
from idml_zoo.retrieval.fit import Outcomes, half_of

DRAWS, SPLITS = 500, 500
RISKS = (0.05, 0.10, 0.20)
CONFIDENCE = 0.9


def weighted_auroc(score: np.ndarray, wrong: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns ``(B,)`` AUROC of a score for each of B weightings of the N queries; NaN where one outcome is missing.

    Args:
        score: ``(N,)`` larger = less sure; ties count half.
        wrong: ``(N,)`` bool.
        weights: ``(B, N)`` ≥ 0, such as how often each query was drawn.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)  # of each group of ties
    w = weights[:, order].astype(np.float64)
    on_wrong = np.add.reduceat(w * wrong[order], starts, axis=1)
    on_right = np.add.reduceat(w * ~wrong[order], starts, axis=1)
    below = np.cumsum(on_right, axis=1) - on_right / 2
    with np.errstate(invalid="ignore"):
        return (on_wrong * below).sum(1) / (on_wrong.sum(1) * on_right.sum(1))


def class_weights(classes: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Returns ``(draws, N)`` uint8: how often each query is drawn when classes are, with all their queries."""
    labels, member = np.unique(classes, return_inverse=True)
    random = np.random.RandomState(seed)
    counts = np.stack(
        [np.bincount(random.randint(0, len(labels), len(labels)), minlength=len(labels)) for _ in range(draws)]
    )
    return counts.astype(np.uint8)[:, member]


def interval(values: np.ndarray) -> list[float]:
    """Returns the ends of the 95 % interval of drawn values."""
    return [round(float(v), 5) for v in np.nanquantile(values, (0.025, 0.975))]


def compare_scores(scores: Mapping[str, np.ndarray], answers: Outcomes) -> dict[str, Any]:
    """Returns the AUROC of each score for a wrong answer, with its interval over resampled classes.

    Args:
        scores: ``(N,)`` each, larger = less sure.
        answers: N of them.

    Returns:
        By score ``auroc``, ``auroc_interval``, ``answered_5``, ``answered_10`` (coverage at that risk, of these very
        queries). The draws are the same for all scores; they come back as ``_draws`` for differences.
    """
    wrong, weights = ~answers.right, class_weights(answers.classes)
    every = np.ones((1, len(wrong)), dtype=np.uint8)
    figures: dict[str, Any] = {}
    for name, score in scores.items():
        draws = weighted_auroc(score, wrong, weights)
        figures[name] = {
            "auroc": round(float(weighted_auroc(score, wrong, every)[0]), 5),
            "auroc_interval": interval(draws),
            "answered_5": coverage_at(score, wrong, 0.05),
            "answered_10": coverage_at(score, wrong, 0.10),
            "_draws": draws,
        }
    return figures


def difference(figures: Mapping[str, Any], first: str, second: str) -> dict[str, Any]:
    """Returns by how much the first score's AUROC exceeds the second's, with its interval over resampled classes."""
    drawn = figures[first]["_draws"] - figures[second]["_draws"]
    return {
        "first": first,
        "second": second,
        "mean": round(figures[first]["auroc"] - figures[second]["auroc"], 5),
        "interval": interval(drawn),
    }


def strongest(figures: Mapping[str, Any], names: Sequence[str]) -> str:
    """Returns the score of these with the highest AUROC on these very queries: the hardest to beat."""
    return max((n for n in names if n in figures), key=lambda n: figures[n]["auroc"])


def fitted_elsewhere(answers: Outcomes, features: Sequence[str]) -> np.ndarray:
    """Returns ``(N,)`` confidence by estimators fitted on the other half of the classes, both ways."""
    half = np.isin(answers.classes, half_of(answers.classes))
    confidence = np.empty(len(answers))
    for part in (half, ~half):
        fit = Logistic.fit(answers[part].features, features, answers.right[part])
        confidence[~part] = fit.probability(answers[~part].features)
    return confidence


def what_level_adds(answers: Outcomes, features: Sequence[str]) -> dict[str, Any]:
    """Returns what ‖u‖ adds to the AUROC of an estimator that was fitted on the other half of the classes."""
    plain = [n for n in features if n not in UNCERTAINTY]
    scores = {
        "with": -fitted_elsewhere(answers, [*plain, *UNCERTAINTY]),
        "without": -fitted_elsewhere(answers, plain),
    }
    return difference(compare_scores(scores, answers), "with", "without")


def calibration(confidence: np.ndarray, answers: Outcomes) -> dict[str, float]:
    """Returns the expected calibration error of a confidence as it is, and its mean minus the share that is right."""
    error = probability_error(confidence.astype(np.float64), answers.right)
    return {"ece": round(error, 5), "bias": round(float(confidence.mean() - answers.right.mean()), 5)}


def promises(
    confidence: np.ndarray,
    answers: Outcomes,
    unit: str,
    halves: str,
    later: tuple[np.ndarray, np.ndarray] | None = None,
    splits: int = SPLITS,
) -> dict[str, dict[str, float]]:
    """Returns how often limits break their promise when half of the queries calibrate them and the rest are answered.

    Args:
        confidence: ``(N,)`` of the answers.
        answers: N of them.
        unit: of the limits, "classes" or "queries".
        halves: what is halved at random: "queries" (the two halves are exchangeable) or "classes" (later queries are of
            other classes).
        later: confidence and right ``(N,)`` of the same queries made worse, which are answered in place of them.
        splits: number of halves, drawn with numpy's frozen ``RandomState(0)``.

    Returns:
        By risk: ``answered``: mean share of the other half that is answered; ``broken``: share of the splits in
        which more of these were wrong than promised; ``reached``: share of the splits with a limit at all.
    """
    random, classes = np.random.RandomState(0), np.unique(answers.classes)
    then, right = later or (confidence, answers.right)
    counted: dict[float, list[tuple[float, bool, bool, bool]]] = {risk: [] for risk in RISKS}
    for _ in range(splits):
        if halves == "classes":
            calibrates = np.isin(answers.classes, random.permutation(classes)[: len(classes) // 2])
        else:
            calibrates = np.zeros(len(answers), dtype=bool)
            calibrates[random.permutation(len(answers))[: len(answers) // 2]] = True
        table = RiskTable.of(confidence[calibrates], ~answers.right[calibrates], answers.classes[calibrates], unit)
        for risk, outcomes in counted.items():
            try:
                threshold = table.limit(risk, CONFIDENCE).threshold
            except RiskNotReachable:
                outcomes.append((0.0, False, False, False))
                continue
            sure = then >= threshold
            answered = ~calibrates & sure
            broken, whole = (bool(a.any()) and float((~right[a]).mean()) > risk for a in (answered, sure))
            outcomes.append((float(answered.sum() / (~calibrates).sum()), broken, whole, True))
    means = {risk: np.mean(outcomes, axis=0) for risk, outcomes in counted.items()}
    return {
        f"{risk:.2f}": dict(
            zip(("answered", "broken", "broken_whole", "reached"), (round(float(v), 4) for v in mean), strict=True)
        )
        for risk, mean in means.items()
    }
