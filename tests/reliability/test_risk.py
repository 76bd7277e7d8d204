"""Limits on the risk: against a slow twin, against MAPIE, and as a promise that is kept on fresh draws."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from mapie.risk_control import BinaryClassificationController, BinaryRisk, control_fwer, precision
from scipy.stats import binom, ttest_1samp

from idml_zoo.reliability.errors import ReliabilityError, RiskNotReachable
from idml_zoo.reliability.risk import COVERAGES, Limit, RiskTable

DELTA = 0.1


def calibration(seed, classes=None, per_class=None, effect=0.7, ties=False):
    """Scores, wrong answers and classes of a calibration set; the score knows of the errors, and classes differ."""
    rng = np.random.default_rng(seed)
    classes = classes or int(rng.integers(2, 60))
    member = np.repeat(np.arange(classes), per_class or int(rng.integers(3, 30)))
    z = rng.normal(1.2, 1.5, len(member)) + rng.normal(0, effect, classes)[member]
    wrong = rng.random(len(member)) > 1 / (1 + np.exp(-z))
    score = 1 / (1 + np.exp(-(z + rng.normal(0, 0.7, len(member)))))
    score = np.round(score, 1) if ties else score
    shuffled = rng.permutation(len(member))
    return score.astype(np.float32)[shuffled], wrong[shuffled], member[shuffled]


def p_value_twin(kept, wrong, classes, max_risk, unit):
    """The p-value from its description: the binomial tail, and a t test of one value for each class and one more."""
    p = binom.cdf(int(wrong[kept].sum()), int(kept.sum()), max_risk)
    if unit == "queries":
        return p
    answered, failed = dict.fromkeys(classes.tolist(), 0), dict.fromkeys(classes.tolist(), 0)
    if len(answered) < 2:
        return 1.0
    for label, is_kept, is_wrong in zip(classes.tolist(), kept.tolist(), wrong.tolist(), strict=True):
        answered[label] += is_kept
        failed[label] += is_kept and is_wrong
    worst = max(answered, key=lambda label: (failed[label], -answered[label]))
    values = [failed[label] - max_risk * answered[label] for label in answered]
    values.append(max(failed[worst] - max_risk * answered[worst], 0.0))
    if np.ptp(values) < 1e-12:
        return 1.0
    unseen = (1 - max_risk) ** len(answered)  # that none of so many classes is one of those that are all wrong
    return max(p, unseen, ttest_1samp(values, 0, alternative="less").pvalue)


def limit_twin(score, wrong, classes, max_risk, unit, delta=DELTA):
    """Returns threshold, answered and wrong of the share that learn-then-test answers; None where there is none."""
    ordered = sorted(score.tolist(), reverse=True)
    shares = []
    for i in range(1, 21):
        threshold = ordered[max(1, round(i / 20 * len(score))) - 1]
        shares.append((threshold, np.array([value >= threshold for value in score.tolist()])))
    start = None
    for tolerated in (2, 1, 0):
        start = next((i for i, s in enumerate(shares) if binom.cdf(tolerated, s[1].sum(), max_risk) <= delta), None)
        if start is not None:
            break
    last = None
    for threshold, kept in [] if start is None else shares[start:]:
        if p_value_twin(kept, wrong, classes, max_risk, unit) > delta:
            break
        last = (threshold, int(kept.sum()), int(wrong[kept].sum()))
    return last


def answered_by(table, max_risk):
    """Returns the limit's threshold, answered and wrong; None where the risk is not reachable."""
    try:
        limit = table.limit(max_risk)
    except RiskNotReachable:
        return None
    return limit.threshold, round(limit.coverage * table.queries), round(limit.risk * limit.coverage * table.queries)


@pytest.mark.parametrize("unit", ["queries", "classes"])
@pytest.mark.parametrize("seed", range(9))
def test_limit_equals_the_slow_twin(seed, unit):
    score, wrong, classes = calibration(seed, ties=seed % 3 == 0)
    table = RiskTable.of(score, wrong, classes, unit)
    assert (table.queries, table.classes) == (len(score), len(set(classes.tolist())))
    for max_risk in (0.03, 0.1, 0.2, 0.45):
        assert answered_by(table, max_risk) == limit_twin(score, wrong, classes, max_risk, unit)


@pytest.mark.parametrize("unit", ["queries", "classes"])
def test_p_values_equal_those_of_scipy(unit):
    for seed in range(8):
        score, wrong, classes = calibration(seed, ties=seed % 2 == 0)
        table = RiskTable.of(score, wrong, classes, unit)
        for share in table.shares[::3]:
            for max_risk in (0.02, 0.1, 0.3, 0.8):
                expected = p_value_twin(score >= share.threshold, wrong, classes, max_risk, unit)
                assert share.p_value(max_risk, unit, table.classes) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_units_of_queries_agree_with_mapie(seed):
    """MAPIE's p-value is the smaller of Hoeffding's and, of binary losses, the binomial tail: always the latter.

    What coincides: the p-value of every share, and the fixed sequence of tests from a given start. MAPIE takes the
    number of wrong answers as ⌈n·(w/n)⌉, which rounding makes w + 1 for some: there it is compared with that. The start
    of the sequence and the classes as a unit are ours alone.
    """
    score, wrong, classes = calibration(seed, classes=25, per_class=20)
    table, max_risk = RiskTable.of(score, wrong, classes, "queries"), (0.08, 0.15, 0.3)[seed % 3]
    tested = list(table._tested(max_risk, 1 - DELTA))
    controller = BinaryClassificationController(
        predict_function=lambda x: np.stack([1 - x, x], 1),
        risk=BinaryRisk(lambda y, p: y.ravel() == 0, lambda y, p: p.ravel() == 1, higher_is_better=False),
        target_level=max_risk,
        confidence_level=1 - DELTA,
        best_predict_param_choice=precision,
        list_predict_params=np.array([share.threshold for share in tested], dtype=np.float32),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # where nothing passes its own correction
        controller.calibrate(score, (~wrong).astype(int))
    theirs = np.asarray(controller.p_values).ravel()
    exact = np.array([math.ceil(s.answered * (s.wrong / s.answered)) == s.wrong for s in tested])
    assert exact.mean() > 0.6
    for share, p_value in zip(tested, theirs, strict=True):
        counted = replace(share, wrong=math.ceil(share.answered * (share.wrong / share.answered)))
        assert p_value == pytest.approx(counted.p_value(max_risk, "queries", table.classes), rel=1e-9)
    ours = np.array([s.p_value(max_risk, "queries", table.classes) for s in tested])
    assert (theirs >= ours * (1 - 1e-9)).all()
    passed = control_fwer(np.where(exact, theirs, ours), DELTA, "fixed_sequence")
    expected = None if not len(passed) else tested[passed[-1]].threshold
    answered = answered_by(table, max_risk)
    assert expected == (None if answered is None else answered[0])


def broken_promises(unit, max_risk, draws, bad, classes=60, per_class=20, seed=0):
    """Returns the shares of fresh calibrations that answer with a risk above the promised one, and that answer at all.

    A query of confidence s fails with probability 0.4·(1 − s), in one of the ``bad`` classes with 0.8; so the risk at a
    threshold t is bad·0.8 + (1 − bad)·0.2·(1 − t), with no need of a test set.
    """
    rng = np.random.default_rng(seed)
    member = np.repeat(np.arange(classes), per_class)
    broken = answered = 0
    for _ in range(draws):
        score = rng.random((classes, per_class)).astype(np.float32)
        fails = np.where(rng.random((classes, 1)) < bad, 0.8, 0.4 * (1 - score))
        wrong = rng.random((classes, per_class)) < fails
        share = RiskTable.of(score.ravel(), wrong.ravel(), member, unit)._largest(max_risk, 1 - DELTA)
        if share is not None:
            answered += 1
            broken += bad * 0.8 + (1 - bad) * 0.2 * (1 - share.threshold) > max_risk
    return broken / draws, answered / draws


def test_the_promise_holds_for_queries_drawn_alike():
    broken, answered = broken_promises("queries", 0.1, 500, bad=0.0)
    assert broken <= DELTA + 0.02
    assert broken > 0.01  # the test of a promise that nothing could break would say nothing
    assert answered > 0.9


def test_the_promise_holds_for_classes_drawn_anew_if_classes_are_the_unit():
    broken, answered = broken_promises("classes", 0.15, 500, bad=0.1)
    assert broken <= DELTA + 0.02
    assert answered > 0.25
    assert broken_promises("queries", 0.15, 500, bad=0.1)[0] > DELTA + 0.05  # why the unit is there


def test_a_p_value_falls_as_the_risk_grows():
    for seed in range(10):
        score, wrong, classes = calibration(seed)
        table = RiskTable.of(score, wrong, classes, "queries")
        for share in table.shares:
            values = [share.p_value(i / 50, "queries", table.classes) for i in range(1, 50)]
            assert values == sorted(values, reverse=True)


def test_a_lower_risk_never_answers_more_where_the_chain_begins_alike():
    """Where it begins with a larger share, it may: that is documented, and rare."""
    more = compared = 0
    for seed in range(60):
        table = RiskTable.of(*calibration(seed, classes=40), "queries")
        answered, begun = [], []
        for hundredths in range(1, 60):
            share = table._largest(hundredths / 100, 1 - DELTA)
            answered.append(0 if share is None else share.answered)
            begun.append(next((s.answered for s in table._tested(hundredths / 100, 1 - DELTA)), 0))
        for i in range(1, len(answered)):
            compared += answered[i] != answered[i - 1]
            more += answered[i] < answered[i - 1]
            if begun[i] == begun[i - 1]:
                assert answered[i] >= answered[i - 1]
    assert more < 0.05 * compared


@pytest.mark.parametrize("unit", ["queries", "classes"])
def test_the_error_names_the_next_risk_that_works(unit):
    for seed in range(15):
        table = RiskTable.of(*calibration(seed, classes=20, per_class=10), unit)
        with pytest.raises(ReliabilityError) as raised:
            table.limit(0.01)  # 230 right answers would be needed
        error = raised.value
        assert isinstance(error, RiskNotReachable) and error.max_risk == 0.01
        assert error.reachable is not None and 0.02 < error.reachable < 1
        assert f"{round(100 * error.reachable)} %" in str(error)
        assert table.limit(error.reachable).coverage == error.coverage > 0
        with pytest.raises(RiskNotReachable) as lower:
            table.limit(round(100 * error.reachable - 1) / 100)
        assert lower.value.reachable == error.reachable


@pytest.mark.parametrize("unit", ["queries", "classes"])
def test_all_right_answers_everything_and_all_wrong_nothing(unit):
    score, _, classes = calibration(3, classes=50, per_class=12)
    limit = RiskTable.of(score, np.zeros(600, dtype=bool), classes, unit).limit(0.05)
    assert (limit.coverage, limit.risk, limit.threshold) == (1.0, 0.0, score.min())
    assert (limit.unit, limit.size) == (unit, 50 if unit == "classes" else 600)
    with pytest.raises(RiskNotReachable, match="nor any higher one, from 600 queries of 50 classes") as raised:
        RiskTable.of(score, np.ones(600, dtype=bool), classes, unit).limit(0.05)
    assert raised.value.reachable is None and raised.value.coverage == 0


def test_few_classes_cannot_promise_much_about_new_ones():
    """20 classes without a wrong answer may be blind to a tenth of all classes: .9^20 = .12 is above 1 - .9."""
    for classes, reachable in ((20, 0.11), (21, 0.11), (22, 0.10), (45, 0.05)):
        score, _, member = calibration(3, classes=classes, per_class=100)
        table = RiskTable.of(score, np.zeros(len(score), dtype=bool), member, "classes")
        assert table.limit(reachable).coverage == 1
        with pytest.raises(RiskNotReachable):
            table.limit(reachable - 0.01)


def test_one_score_for_all_is_one_share():
    _, wrong, classes = calibration(4, classes=20, per_class=20)
    table = RiskTable.of(np.full(400, 0.5, dtype=np.float32), wrong, classes, "queries")
    assert {(s.threshold, s.answered, s.wrong) for s in table.shares} == {(0.5, 400, int(wrong.sum()))}
    assert table.limit(0.9).coverage == 1


def test_one_query_and_one_class():
    one = RiskTable.of(np.array([0.5]), np.array([False]), np.array([7]), "queries")
    assert one.limit(0.95).coverage == 1  # a single right answer refutes a risk of 0.95 at δ = 0.1
    with pytest.raises(RiskNotReachable) as raised:
        one.limit(0.5)
    assert raised.value.reachable == pytest.approx(0.9, abs=0.011)
    score, wrong, _ = calibration(5)
    for unit, reachable in (("queries", True), ("classes", False)):
        table = RiskTable.of(score, np.zeros(len(wrong), dtype=bool), np.zeros(len(wrong)), unit)
        if reachable:
            assert table.limit(0.3).coverage == 1
        else:  # one draw says nothing of the next
            with pytest.raises(RiskNotReachable):
                table.limit(0.3)


def test_names_and_order_of_classes_and_queries_do_not_count():
    for seed in range(10):
        score, wrong, classes = calibration(seed, ties=True)
        table = RiskTable.of(score, wrong, classes)
        shuffled = np.random.default_rng(seed).permutation(len(score))
        renamed = (1000 - 7 * classes)[shuffled]
        assert RiskTable.of(score[shuffled], wrong[shuffled], renamed) == table


def test_the_worst_of_equally_wrong_classes_is_the_one_that_answers_least():
    classes = np.array([0, 0, 0, 1, 1, 2])
    wrong = np.array([True, False, False, True, False, False])
    share = RiskTable.of(np.full(6, 0.5), wrong, classes).shares[-1]
    assert (share.worst_wrong, share.worst_answered) == (1, 2)


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, math.nan, math.inf])
def test_numbers_out_of_range(value):
    table = RiskTable.of(*calibration(0))
    with pytest.raises(ReliabilityError, match="max_risk must lie between 0 and 1"):
        table.limit(value)
    with pytest.raises(ReliabilityError, match="confidence must lie between 0 and 1"):
        table.limit(0.1, value)


def test_calibration_sets_that_are_none():
    score, wrong, classes = calibration(0)
    bad = score.copy()
    bad[3] = np.nan
    for arguments in ((bad, wrong, classes), (score[:-1], wrong, classes), (score, wrong, classes[:4])):
        with pytest.raises(ReliabilityError, match="as many scores as outcomes"):
            RiskTable.of(*arguments)
    with pytest.raises(ReliabilityError, match="at least one"):
        RiskTable.of(score[:0], wrong[:0], classes[:0])
    with pytest.raises(ReliabilityError, match="unit must be classes or queries, got 'images'"):
        RiskTable.of(score, wrong, classes, "images")


def test_more_confidence_answers_less():
    for seed in range(10):
        table = RiskTable.of(*calibration(seed, classes=40), "queries")
        share = {c: table._largest(0.2, c) for c in (0.5, 0.99)}
        if share[0.99] is not None and next(table._tested(0.2, 0.5)) == next(table._tested(0.2, 0.99)):
            assert share[0.5].answered >= share[0.99].answered


def test_a_limit_says_what_it_rests_on():
    limit = Limit(0.7, 0.1, 0.9, 0.5, 0.06, "classes", 1234)
    for part in ("At most 10 %", "90 % confidence", "later classes", "1,234 classes", "void"):
        assert part in limit.assumption
    assert "later queries" in replace(limit, unit="queries").assumption


def test_shares_are_nested_and_cover_everything():
    score, wrong, classes = calibration(6, ties=True)
    table = RiskTable.of(score, wrong, classes)
    assert len(table.shares) == len(COVERAGES) == 20
    assert table.shares[-1].answered == len(score) and table.shares[-1].wrong == wrong.sum()
    answered = [s.answered for s in table.shares]
    assert answered == sorted(answered)
    assert all(s.answered >= math.floor(c * len(score)) for s, c in zip(table.shares, COVERAGES, strict=True))
