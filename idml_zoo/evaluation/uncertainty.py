"""Does a score know when the nearest neighbour is wrong?"""

from __future__ import annotations

import numpy as np


def auroc(score: np.ndarray, wrong: np.ndarray) -> float | None:
    """Area under the ROC curve of ``score`` for ``wrong``: how often a wrong query scores higher than a right one.

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


def aurc(score: np.ndarray, wrong: np.ndarray) -> float | None:
    """Area under the risk–coverage curve (Geifman and El-Yaniv, NeurIPS 2017): the mean risk over all coverages.

    Queries are kept in ascending order of ``score``; the risk at coverage k/N is the share of wrong ones among the k
    surest. Equal scores share the risk of their group in expectation, so the order among them does not matter.

    Args:
        score: ``(N,)`` larger = less sure.
        wrong: ``(N,)`` boolean.

    Returns:
        In [0, 1], lower is better; for a useless score the share of wrong queries. None where N = 0 or the score is
        constant.
    """
    if len(score) == 0 or np.ptp(score) == 0:
        return None
    _, group, size = np.unique(score, return_inverse=True, return_counts=True)
    expected = (np.bincount(group, weights=wrong) / size)[np.sort(group)]  # what each of a group is wrong on average
    return float(np.mean(np.cumsum(expected) / np.arange(1, len(score) + 1)))


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation in [-1, 1]; None where one side is constant."""
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)
