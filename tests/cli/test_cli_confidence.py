"""Which reliability the command line takes."""

from argparse import ArgumentParser
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from idml_zoo.cli.confidence import add_confidence, chosen_confidence, stored_reliability
from idml_zoo.reliability.errors import ReliabilityError, RiskNotReachable
from idml_zoo.reliability.reliability import default
from idml_zoo.reliability.risk import RiskTable

BARE = SimpleNamespace()


def parsed(*arguments):
    parser = ArgumentParser()
    add_confidence(parser)
    return parser.parse_args(list(map(str, arguments)))


def test_the_file_comes_before_the_model_and_the_model_before_the_default(tmp_path):
    of_model, of_file = (replace(default(), fitted_on=n) for n in ("the model", "the file"))
    of_file.save(tmp_path / "r.json")
    model = SimpleNamespace(reliability=of_model)
    args = parsed("--reliability", tmp_path / "r.json")
    assert stored_reliability(args) == of_file and stored_reliability(parsed()) is None
    assert chosen_confidence(args, of_file, model, True) == (of_file, None)
    assert chosen_confidence(parsed(), None, model, True) == (of_model, None)
    for without in (BARE, SimpleNamespace(reliability=None)):
        assert chosen_confidence(parsed(), None, without, True) == (None, None)


def test_the_limit_is_that_of_the_form_in_use():
    score = np.linspace(0, 1, 2000)
    risk = RiskTable.of(score, score < 0.3, np.arange(2000), "queries")
    labelled = replace(default(), labelled=replace(default().labelled, risk=risk))
    reliability, limit = chosen_confidence(parsed("--max-risk", 0.1), labelled, BARE, True)
    assert reliability == labelled and limit == labelled.limit(0.1, labelled=True)
    with pytest.raises(ReliabilityError, match="no limit without a calibration"):
        chosen_confidence(parsed("--max-risk", 0.1), labelled, BARE, False)
    hopeless = RiskTable.of(score, np.arange(2000) % 2 == 0, np.arange(2000), "queries")
    wrong = replace(default(), labelled=replace(default().labelled, risk=hopeless))
    with pytest.raises(RiskNotReachable, match=r"the next that is: 5\d %"):
        chosen_confidence(parsed("--max-risk", 0.1), wrong, BARE, True)
