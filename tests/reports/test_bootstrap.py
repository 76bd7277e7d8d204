"""Intervals against slow resampling and against known distributions."""

import numpy as np
import pytest
from scipy import stats

from idml_zoo.reports import bootstrap
from idml_zoo.reports.bootstrap import bootstrap_means, difference, ranks


def hits(rng, share, seeds=1, n=2000):
    return (rng.random((seeds, n)) < share).astype(float)


def test_means_equal_a_slow_resampling(monkeypatch):
    rng = np.random.default_rng(0)
    rows = [hits(rng, 0.5, 3, 40), hits(rng, 0.6, 1, 40)]
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 100)  # two draws at a time
    found = bootstrap_means(rows, draws=10, seed=4)
    random = np.random.RandomState(4)
    queries = np.concatenate([random.randint(0, 40, (2, 40)) for _ in range(5)])
    for d in range(10):
        for r, row in enumerate(rows):
            assert found[d, r] == pytest.approx(row[:, queries[d]].mean())


def test_the_interval_is_that_of_paired_differences():
    """For one seed each, the normal approximation of a mean of paired differences."""
    rng = np.random.default_rng(0)
    common = rng.random(3000)
    a, b = (common < 0.62).astype(float), (common + 0.05 * rng.normal(size=3000) < 0.58).astype(float)
    found = difference(a, b)
    off = a - b
    assert found.mean == pytest.approx(off.mean())
    width = 1.96 * off.std() / 3000**0.5
    assert (found.low, found.high) == pytest.approx((off.mean() - width, off.mean() + width), abs=0.15 * width)
    assert found.distinguishable and found.wins > 0.999
    alone = 1.96 * (a.var() + b.var()) ** 0.5 / 3000**0.5
    assert width < 0.7 * alone, "the pairing is what makes it narrow"


def test_the_interval_covers_as_often_as_it_says():
    rng, inside = np.random.default_rng(1), 0
    for i in range(200):
        found = difference(hits(rng, 0.5, n=300), hits(rng, 0.45, n=300), draws=400, seed=i)
        inside += found.low <= 0.05 <= found.high
    assert 0.9 <= inside / 200 <= 0.99


def test_seeds_widen_the_interval():
    rng = np.random.default_rng(0)
    same = np.repeat(hits(rng, 0.5), 3, axis=0)
    spread = np.concatenate([hits(rng, s) for s in (0.4, 0.5, 0.6)])
    other = hits(rng, 0.5)
    narrow, wide = difference(same, other), difference(spread, other)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


@pytest.mark.parametrize("seeds", [(3, 3), (3, 1), (5, 3)])
def test_seeds_alone_rarely_look_like_a_difference(seeds):
    """No true difference, and queries without noise: intervals that leave 0 out must be few. (A row of one seed here is
    one that has no spread.)"""
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(400):
        rows = [np.full((s, 50), 0.5) + (0.02 * rng.normal(size=(s, 1)) if s > 1 else 0) for s in seeds]
        wrong += difference(*rows, draws=400).distinguishable
    assert 0.01 < wrong / 400 < 0.08


def test_the_interval_of_seeds_is_that_of_welch():
    first, second = np.array([0.51, 0.53, 0.58]), np.array([0.50, 0.495, 0.505, 0.51])
    found = difference(np.tile(first[:, None], 9), np.tile(second[:, None], 9))
    low, high = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.03)
    paired = difference(np.tile((first - second[:3])[:, None], 9), np.zeros((3, 9)))
    low, high = stats.ttest_rel(first, second[:3]).confidence_interval()
    assert (paired.low, paired.high) == pytest.approx((low, high), rel=0.03)


def test_rows_that_cannot_be_told_apart_share_a_rank():
    rng = np.random.default_rng(0)
    common = rng.random(4000)
    rows = [(common < s).astype(float)[None] for s in (0.5, 0.7, 0.7, 0.3)]
    for value in (0, 1):  # as many hits as before, elsewhere
        rows[2][0, rng.choice(np.flatnonzero(rows[1][0] == value), 60, replace=False)] = 1 - value
    assert ranks(rows) == [3, 1, 1, 4]
    assert ranks([rows[0]]) == [1] and ranks([]) == []
    seeds = [row + np.array([[-0.2], [0.0], [0.2]]) for row in rows]
    assert ranks(seeds) == [1, 1, 1, 1], "seeds that differ by more than the rows do"


def test_the_draws_are_the_same_everywhere():
    """So that a table rebuilt on another machine has the same ranks."""
    rows = [np.arange(6.0)[None] % 2, np.arange(6.0)[None] % 3 / 2]
    sixths = [[4, 1.5], [3, 3], [2, 2.5], [4, 3.5]]
    assert np.allclose(bootstrap_means(rows, draws=4), np.array(sixths) / 6)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"same queries, got \[3, 4\]"):
        difference(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="NaN"):
        difference(np.array([1.0, np.nan]), np.ones(2))
    with pytest.raises(ValueError, match="level must lie"):
        difference(np.ones(3), np.ones(3), level=95)
