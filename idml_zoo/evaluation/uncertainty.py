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


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation in [-1, 1]; None where one side is constant."""
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)
