"""How well a score predicts that the nearest neighbour is wrong."""

from __future__ import annotations

import numpy as np


def auroc(score: np.ndarray, wrong: np.ndarray) -> float | None:
    """Area under the ROC curve of ``score`` for ``wrong``: how often a wrong query scores higher than a correct one.

    Args:
        score: ``(N,)`` larger = less sure.
        wrong: ``(N,)`` boolean.

    Returns:
        In [0, 1]; 0.5 is chance. None where it is not defined: all queries right, all wrong, or a constant score.
    """
    from sklearn.metrics import roc_auc_score

    if wrong.all() or not wrong.any() or np.ptp(score) == 0:
        return None
    return float(roc_auc_score(wrong, score))


def risk_coverage(score: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The risk–coverage curve (Geifman and El-Yaniv, NeurIPS 2017): ``(N,)`` coverage k/N and risk, the share of wrong
    ones among the k surest queries.

    Queries are kept in ascending order of ``score``. Equal scores share the risk of their group in expectation, so the
    order among them does not matter.

    Args:
        score: ``(N,)`` larger = less sure.
        wrong: ``(N,)`` boolean.
    """
    _, group, size = np.unique(score, return_inverse=True, return_counts=True)
    expected = (np.bincount(group, weights=wrong) / size)[np.sort(group)]  # what each of a group is wrong on average
    count = np.arange(1, len(score) + 1)
    return count / len(score), np.cumsum(expected) / count


def aurc(score: np.ndarray, wrong: np.ndarray) -> float | None:
    """Area under :func:`risk_coverage`: the mean risk over all coverages.

    Returns:
        In [0, 1], lower is better; for a useless score the share of wrong queries. None where N = 0 or the score is
        constant.
    """
    if len(score) == 0 or np.ptp(score) == 0:
        return None
    return float(np.mean(risk_coverage(score, wrong)[1]))


def excess_aurc(score: np.ndarray, wrong: np.ndarray) -> float | None:
    """AURC above that of a perfect score: 0 for a score that puts all right queries before all wrong ones.

    (Geifman, Uziel and El-Yaniv, ICLR 2019.) In [0, 1]; None as for :func:`aurc`.
    """
    area = aurc(score, wrong)
    return None if area is None else area - float(np.mean(risk_coverage(wrong.astype(float), wrong)[1]))


def coverage_at(score: np.ndarray, wrong: np.ndarray, risk: float) -> float | None:
    """Largest share of the queries, surest first, of which at most ``risk`` are answered wrongly.

    It is read from :func:`risk_coverage` of these very queries, so that it promises nothing of others; for a promise
    see :meth:`idml_zoo.Reliability.limit`.

    Returns:
        In [0, 1]; None where N = 0 or the score is constant.
    """
    if len(score) == 0 or np.ptp(score) == 0:
        return None
    coverage, risks = risk_coverage(score, wrong)
    return float(coverage[risks <= risk].max(initial=0.0))


def probability_error(probability: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of a probability as it is, learned on nothing of these queries.

    The mean over ``bins`` bins of equally many queries of |share of right ones − mean probability|; queries of one
    probability count as right in expectation (Guo et al., ICML 2017, with equal masses).

    Args:
        probability: ``(N,)`` in [0, 1], N ≥ 1.
        right: ``(N,)`` boolean.
        bins: at most N.
    """
    _, group, size = np.unique(probability, return_inverse=True, return_counts=True)
    expected = (np.bincount(group, weights=right) / size)[group]
    groups = np.array_split(np.argsort(probability, kind="stable"), min(bins, len(probability)))
    return float(sum(abs(expected[g].sum() - probability[g].sum()) for g in groups) / len(probability))


def calibration_error(score: np.ndarray, wrong: np.ndarray, labels: np.ndarray, bins: int = 15) -> float | None:
    """Expected calibration error of a score as a probability of being right, learned on other classes.

    A score has no unit, so it is first made a probability by isotonic regression. The classes are halved (every other
    one, in the order of their labels); each half's queries get the probability learned on the other half's, so that
    nothing is judged on a class that it was fitted to. Then the mean over ``bins`` bins of equally many queries of
    |share of right ones − mean probability|, weighed by their number (Guo et al., ICML 2017, with equal masses). Where
    many queries have one probability, each counts as right in expectation, so that their order does not matter.

    Args:
        score: ``(N,)`` larger = less sure.
        wrong: ``(N,)`` boolean.
        labels: ``(N,)`` classes.
        bins: number of bins, at most N.

    Returns:
        In [0, 1], lower is better; None where the score is constant or a half has no query.
    """
    from sklearn.isotonic import IsotonicRegression

    if len(score) == 0 or np.ptp(score) == 0:
        return None
    half = np.unique(labels, return_inverse=True)[1] % 2 == 0
    if half.all() or not half.any():
        return None
    probability = np.empty(len(score))
    for part in (half, ~half):
        fit = IsotonicRegression(y_min=0, y_max=1, increasing=False, out_of_bounds="clip")
        probability[part] = fit.fit(score[~part], ~wrong[~part]).predict(score[part])
    return probability_error(probability, ~wrong, bins)


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation in [-1, 1]; None where one side is constant."""
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)
