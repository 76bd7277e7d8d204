"""The logistic estimator: its formula, its fit against scipy's minimiser, and what it refuses."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from idml_zoo.reliability.errors import ReliabilityError
from idml_zoo.reliability.logistic import Logistic

SIMPLE = Logistic(("a", "b"), (1.0, -2.0), (0.5, 4.0), (0.3, -0.7), 0.2)


def drawn(seed=0, count=400):
    rng = np.random.default_rng(seed)
    columns = {"a": rng.normal(3, 2, count), "b": rng.normal(-1, 0.1, count), "c": np.full(count, 7.0)}
    logit = 0.8 * (columns["a"] - 3) - 6 * (columns["b"] + 1) + 0.4
    return {n: v.astype(np.float32) for n, v in columns.items()}, rng.random(count) < 1 / (1 + np.exp(-logit))


def test_probability_is_the_formula():
    columns = {"a": np.array([1.0, 2.0, -5.0]), "b": np.array([-2.0, 10.0, 0.5]), "more": np.zeros(3)}
    expected = [
        1 / (1 + math.exp(-(0.2 + 0.3 * (a - 1) / 0.5 - 0.7 * (b + 2) / 4)))
        for a, b in zip(columns["a"], columns["b"], strict=True)
    ]
    np.testing.assert_allclose(SIMPLE.probability(columns), expected, rtol=1e-12)


def test_extreme_features_stay_probabilities():
    columns = {"a": np.array([1e30, -1e30, 0.0], dtype=np.float32), "b": np.array([0.0, 0.0, 1e30], dtype=np.float32)}
    probability = SIMPLE.probability(columns)
    assert np.isfinite(probability).all() and probability.min() >= 0 and probability.max() <= 1
    assert SIMPLE.probability({"a": np.empty(0), "b": np.empty(0)}).shape == (0,)
    largest = Logistic(("a",), (1e6,), (1e-6,), (1e6,), -1e6)
    assert np.isfinite(largest.probability({"a": np.array([1e6, -1e38, 1e38], dtype=np.float32)})).all()


def test_a_missing_feature_is_named():
    with pytest.raises(ReliabilityError, match="needs the feature 'b'"):
        SIMPLE.probability({"a": np.zeros(3)})


@pytest.mark.parametrize("weighted", [False, True])
def test_fit_minimises_the_penalised_likelihood(weighted):
    columns, target = drawn()
    weight = np.random.default_rng(1).random(len(target)) + 0.1 if weighted else None
    fitted = Logistic.fit(columns, ("b", "a"), target, weight)
    x = np.stack([columns["b"], columns["a"]], 1).astype(float)
    w = np.ones(len(target)) if weight is None else weight
    mean = (w[:, None] * x).sum(0) / w.sum()
    scale = np.sqrt((w[:, None] * (x - mean) ** 2).sum(0) / w.sum())
    z, sign = (x - mean) / scale, np.where(target, 1, -1)

    def loss(p):
        return (w * np.logaddexp(0, -sign * (z @ p[:2] + p[2]))).sum() + (p[:2] ** 2).sum() / 2

    best = minimize(loss, np.zeros(3), tol=1e-10).x
    np.testing.assert_allclose(fitted.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(fitted.scale, scale, rtol=1e-5)
    np.testing.assert_allclose((*fitted.weights, fitted.intercept), best, atol=1e-3)
    assert fitted.features == ("b", "a")


def test_a_constant_feature_gets_no_weight_and_no_division_by_nothing():
    columns, target = drawn()
    fitted = Logistic.fit(columns, ("a", "c"), target)
    assert fitted.scale[1] == 1 and fitted.weights[1] == 0
    assert np.isfinite(fitted.probability(columns)).all()


def test_a_weight_of_two_is_a_query_twice():
    columns, target = drawn(count=100)
    twice = np.arange(100) < 30
    doubled = {n: np.concatenate([v, v[twice]]) for n, v in columns.items()}
    one = Logistic.fit(columns, ("a", "b"), target, np.where(twice, 2.0, 1.0))
    other = Logistic.fit(doubled, ("a", "b"), np.concatenate([target, target[twice]]))
    np.testing.assert_allclose(one.probability(columns), other.probability(columns), atol=1e-4)


def test_data_that_cannot_be_fitted():
    columns, target = drawn()
    for outcome, word in ((np.ones_like(target), "right"), (np.zeros_like(target), "wrong")):
        with pytest.raises(ReliabilityError, match=rf"all 400 queries have the same outcome \({word}\)"):
            Logistic.fit(columns, ("a",), outcome)
    columns["a"][7] = np.nan
    with pytest.raises(ReliabilityError, match="not finite"):
        Logistic.fit(columns, ("a",), target)


def test_the_numbers_come_back():
    columns, target = drawn()
    fitted = Logistic.fit(columns, ("a", "b"), target)
    assert Logistic.from_dict(fitted.to_dict()) == fitted


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mean", [1.0], "one mean, scale and weight per feature"),
        ("mean", [1.0, math.nan], "no finite number"),
        ("mean", [1.0, math.inf], "no finite number"),
        ("mean", [1.0, 10**400], "no finite number"),
        ("mean", [1.0, 1e7], "no finite number"),
        ("mean", [1.0, True], "no finite number"),
        ("mean", [1.0, None], "no finite number"),
        ("mean", [1.0, "1"], "no finite number"),
        ("mean", "12", "must be lists"),
        ("mean", [0.0] * 65, "must be lists of at most 64"),
        ("intercept", None, "no finite number"),
        ("intercept", [0.0], "no finite number"),
        ("scale", [1.0, 0.0], "scales must be at least"),
        ("scale", [1.0, -1.0], "scales must be at least"),
        ("scale", [1.0, 1e-320], "scales must be at least"),
        ("features", ["a", 3], "different names"),
        ("features", ["a", "a"], "different names"),
        ("features", ["a", "b" * 50], "different names"),
        ("features", {"a": 1, "b": 2}, "must be lists"),
        ("more", 1, "an object with features"),
    ],
)
def test_stored_numbers_that_cannot_be(key, value, message):
    with pytest.raises(ReliabilityError, match=message):
        Logistic.from_dict(SIMPLE.to_dict() | {key: value})


@pytest.mark.parametrize("data", [None, [], "x", 3, {}, {"features": []}])
def test_what_is_no_estimator(data):
    with pytest.raises(ReliabilityError, match="an object with features"):
        Logistic.from_dict(data)


def test_an_estimator_of_nothing():
    with pytest.raises(ReliabilityError, match="per feature"):
        Logistic((), (), (), (), 0.0)
