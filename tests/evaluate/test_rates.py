"""Preference rates: which level wins, by hand."""

import numpy as np
import pytest
import torch

from alignvec.base.load import load_base
from alignvec.base.logprobs import logprobs
from alignvec.data import read_records
from alignvec.evaluate.intervals import bootstrap_interval
from alignvec.evaluate.rates import preference_rates, rates_of, response_rows

LEVELS = ["avoidance", "generic", "expert"]


def test_the_highest_score_wins():
    scores = np.array([[-1.0, -2.0, -3.0], [-2.0, -1.0, -3.0], [-3.0, -2.0, -1.0], [-9, -8, -7.5]])
    found = rates_of(scores, LEVELS)
    assert found.queries == 4
    assert found.rate == {"avoidance": 0.25, "generic": 0.25, "expert": 0.5}
    assert found.score == {"avoidance": -3.75, "generic": -3.25, "expert": -3.625}


def test_a_rate_of_all_or_nothing_has_no_interval():
    found = rates_of(np.tile([0.0, 1.0, 0.5], (5, 1)), LEVELS)
    assert found.rate == {"avoidance": 0, "generic": 1, "expert": 0}
    assert found.interval == {"avoidance": (0, 0), "generic": (1, 1), "expert": (0, 0)}


def test_the_interval_is_that_of_a_mean_over_queries():
    """Against the normal approximation; wider for fewer queries; the same for the same seed."""
    wins = np.random.default_rng(0).random((400, 1)) < 0.3
    low, high = bootstrap_interval(wins, 0)
    error = 1.96 * np.sqrt(wins.mean() * (1 - wins.mean()) / len(wins))
    assert low[0] == pytest.approx(wins.mean() - error, abs=0.01)
    assert high[0] == pytest.approx(wins.mean() + error, abs=0.01)
    few_low, few_high = bootstrap_interval(wins[:25], 0)
    assert few_high[0] - few_low[0] > 3 * (high[0] - low[0])
    assert bootstrap_interval(wins, 0) == (low, high)
    assert bootstrap_interval(wins, 1) != (low, high)


def test_rows_hold_the_levels_in_the_order_asked_for(tiny, records):
    base = load_base(str(tiny()), "float32", "cpu")
    found = list(read_records(records, LEVELS))
    rows = response_rows(base.tokenizer, found, LEVELS[::-1])
    assert len(rows) == len(found)
    text = [base.tokenizer.decode(response).replace(" ", "") for response in rows[3].responses]
    assert text == [found[3].levels[level].replace(" ", "") for level in LEVELS[::-1]]
    assert base.tokenizer.decode(rows[3].prompt).endswith("<assistant>")


def test_rates_are_those_of_mean_likelihoods_per_token(tiny, records):
    """From log-probabilities token by token, no query dropped, no level swapped."""
    base = load_base(str(tiny()), "float32", "cpu")
    rows = response_rows(base.tokenizer, list(read_records(records, LEVELS)), LEVELS)
    with torch.no_grad():
        tokens = [values for row in rows for values in logprobs(base.model, [row])[0]]
    scores = np.array([float(values.mean()) for values in tokens]).reshape(len(rows), 3)
    expected, found = rates_of(scores, LEVELS), preference_rates(base.model, rows, LEVELS)
    assert found.queries == len(rows) == 12
    assert found.rate == expected.rate
    assert found.score == pytest.approx(expected.score, abs=1e-5)
