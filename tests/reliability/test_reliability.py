"""A reliability as a file: it comes back as it was, and a stranger's does no harm."""

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idml_zoo.reliability.errors import ReliabilityError
from idml_zoo.reliability.reliability import VERSION, Form, Reliability, default
from idml_zoo.reliability.risk import RiskTable
from idml_zoo.reliability.names import LABEL_FREE, LABELLED, UNCERTAINTY


def calibrated():
    rng = np.random.default_rng(0)
    score = rng.random(900).astype(np.float32)
    wrong = rng.random(900) > score**0.3
    tables = [RiskTable.of(score, wrong, np.arange(900) // 15, unit) for unit in ("classes", "queries")]
    labelled, label_free = (
        Form(form.confidence, form.unknown, table)
        for form, table in zip((default().labelled, default().label_free), tables, strict=True)
    )
    return Reliability(labelled, label_free, fitted_on="birds", calibrated_on="900 queries of 60 classes")


def test_the_default_uses_features_that_there_are_and_has_no_limits():
    for labelled, names in ((True, LABEL_FREE + LABELLED + UNCERTAINTY), (False, LABEL_FREE + UNCERTAINTY)):
        form = default().form(labelled)
        assert set(form.confidence.features) <= set(names) and set(form.unknown.features) <= set(names)
        with pytest.raises(ReliabilityError, match="no limit without a calibration"):
            default().limit(0.1, labelled=labelled)
    assert default() is default()
    assert default().fitted_on


def test_a_reliability_comes_back_as_it_was(tmp_path):
    for reliability in (default(), calibrated()):
        assert Reliability.from_dict(json.loads(json.dumps(reliability.to_dict()))) == reliability
        path = tmp_path / "folder" / "reliability.json"
        reliability.save(path)
        assert Reliability.load(path) == Reliability.load(str(path)) == reliability
    for labelled in (True, False):
        stored, made = (r.limit(0.3, labelled=labelled) for r in (Reliability.load(path), calibrated()))
        assert stored == made and stored.unit == ("classes" if labelled else "queries")


def test_probabilities_are_those_of_the_two_estimators():
    rng = np.random.default_rng(0)
    features = {n: rng.normal(size=50).astype(np.float32) for n in LABEL_FREE + LABELLED + UNCERTAINTY}
    form = default().labelled
    confidence, unknown = form.assess(features)
    assert confidence.dtype == unknown.dtype == np.float32
    np.testing.assert_array_equal(confidence, form.confidence.probability(features).astype(np.float32))
    np.testing.assert_array_equal(unknown, form.unknown.probability(features).astype(np.float32))


@pytest.mark.parametrize("version", [0, 2, VERSION + 0.0, "1", None, True, [1], {"a": [[]]}, 10**300])
def test_another_version_is_not_read(version):
    with pytest.raises(ReliabilityError, match=f"features of version {VERSION}; fit it again") as raised:
        Reliability.from_dict(default().to_dict() | {"version": version})
    assert len(str(raised.value)) < 300


def share(**changed):
    """A share's row of a valid table, changed."""
    names = ("threshold", "answered", "wrong", "ww", "wa", "aa", "worst_wrong", "worst_answered")
    row = dict(zip(names, calibrated().to_dict()["labelled"]["risk"]["shares"][0], strict=True))
    return list((row | changed).values())


@pytest.mark.parametrize(
    "row",
    [
        share(threshold=1.5),
        share(threshold=-0.1),
        share(threshold=math.nan),
        share(threshold="0.5"),
        share(threshold=True),
        share(answered=0),
        share(answered=45.0),
        share(answered=1 << 60),
        share(answered=10**400),
        share(wrong=-1),
        share(wrong=46),
        share(ww=-1.0),
        share(ww=1e300),
        share(wa=math.inf),
        share(aa=0.0),
        share(aa=1e9),
        share(worst_wrong=40),
        share(worst_answered=900),
        share()[:7],
        [*share(), 0],
        [],
        {},
        None,
        7,
    ],
)
def test_shares_that_cannot_be(row):
    data = calibrated().to_dict()
    assert Reliability.from_dict(copy.deepcopy(data)) == calibrated()
    data["labelled"]["risk"]["shares"][0] = row
    with pytest.raises(ReliabilityError, match="a risk table must have 20 shares of 8 numbers that agree"):
        Reliability.from_dict(data)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("queries", 10, "answer more queries than it has"),
        ("classes", 901, "nor have more classes"),
        ("queries", 900.0, "count its queries and classes"),
        ("queries", True, "count its queries and classes"),
        ("classes", 0, "count its queries and classes"),
        ("classes", 10**400, "count its queries and classes"),
        ("unit", "images", "count its queries and classes"),
        ("unit", ["classes"], "count its queries and classes"),
        ("shares", [], "20 shares"),
        ("shares", None, "20 shares"),
        ("more", 1, "an object with queries"),
    ],
)
def test_tables_that_cannot_be(key, value, message):
    data = calibrated().to_dict()
    data["label_free"]["risk"][key] = value
    with pytest.raises(ReliabilityError, match=message):
        Reliability.from_dict(data)


def test_shares_in_another_order_are_no_table():
    data = calibrated().to_dict()
    data["labelled"]["risk"]["shares"].reverse()
    with pytest.raises(ReliabilityError, match="must hold the one before it"):
        Reliability.from_dict(data)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("fitted_on", "x" * 201, "fitted_on must be a text of at most 200"),
        ("calibrated_on", None, "calibrated_on must be a text"),
        ("labelled", None, "a form must be an object"),
        ("label_free", {"confidence": {}, "unknown": {}}, "a form must be an object"),
        ("more", 1, "must have version"),
    ],
)
def test_other_keys_and_values(key, value, message):
    with pytest.raises(ReliabilityError, match=message):
        Reliability.from_dict(default().to_dict() | {key: value})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"[]", "must be an object, got list"),
        (b"{", "Expecting"),
        (b"\xff\xfe\x00", "decode"),
        (b"[" * 100_000, "recursion|nested|Expecting"),
        (b" " * (1 << 18), "more than the 131,072 bytes"),
        (b"9" * 5000, "digits|must be an object"),
        (b"\x80\x04K\x01.", "decode"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "stranger.json"
    path.write_bytes(content)
    with pytest.raises(ReliabilityError, match=message) as raised:
        Reliability.load(path)
    assert str(path) in str(raised.value) and len(str(raised.value)) < 500


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ReliabilityError, match="No such file"):
        Reliability.load(tmp_path / "none.json")
    with pytest.raises(ReliabilityError, match="directory"):
        Reliability.load(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400) | st.just(1e-320),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """Every path into a value of lists and objects."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


PLACES = sorted(places(calibrated().to_dict()), key=str)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(["set", "drop", "repeat"]), JSON), max_size=3))
def test_changed_files_are_read_or_refused(changes):
    data = calibrated().to_dict()
    for path, how, value in changes:
        inner = data
        for key in path[:-1]:
            inner = inner[key] if isinstance(inner, dict) and key in inner else None
            if inner is None:
                break
        if not path or not isinstance(inner, dict) or path[-1] not in inner:
            continue
        if how == "set":
            inner[path[-1]] = value
        elif how == "drop":
            del inner[path[-1]]
        else:
            inner[path[-1]] = [inner[path[-1]]] * 3
    judged(data)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from([p for p in PLACES if len(p) > 2 and isinstance(p[-1], int)]), JSON)
def test_changed_numbers_are_read_or_refused(path, value):
    data = inner = calibrated().to_dict()
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    judged(data)


def judged(data):
    """A file is refused with a ReliabilityError, or gives probabilities and limits like any other."""
    try:
        reliability = Reliability.from_dict(data)
    except ReliabilityError as error:
        assert len(str(error)) < 500  # noqa: PT017 - either outcome is right
        return
    features = {n: np.linspace(-3, 3, 7, dtype=np.float32) for n in LABEL_FREE + LABELLED + UNCERTAINTY}
    for labelled in (True, False):
        try:
            confidence, unknown = reliability.form(labelled).assess(features)
            assert ((confidence >= 0) & (confidence <= 1) & (unknown >= 0) & (unknown <= 1)).all()
            limit = reliability.limit(0.3, labelled=labelled)
            assert 0 <= limit.threshold <= 1 and 0 <= limit.risk <= 1 and 0 < limit.coverage <= 1
        except ReliabilityError:
            continue
