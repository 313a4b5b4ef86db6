"""Preference rates: which level wins, by hand."""

import numpy as np
import pytest
import torch

from alignvec.base.likelihood import response_scores
from alignvec.base.load import load_base
from alignvec.base.logprobs import logprobs
from alignvec.data import read_records
from alignvec.errors import AlignvecError
from alignvec.evaluate.intervals import wilson_interval
from alignvec.evaluate.rates import preference_rates, rates_of, response_rows
from conftest import write_records

LEVELS = ["avoidance", "generic", "expert"]


def test_the_highest_score_wins():
    scores = np.array([[-1.0, -2.0, -3.0], [-2.0, -1.0, -3.0], [-3.0, -2.0, -1.0], [-9, -8, -7.5]])
    found = rates_of(scores, LEVELS)
    assert found.queries == 4
    assert found.rate == {"avoidance": 0.25, "generic": 0.25, "expert": 0.5}
    assert found.score == {"avoidance": -3.75, "generic": -3.25, "expert": -3.625}


@pytest.mark.parametrize(
    ("scores", "rate"),
    [
        ([[-1.0, -1.0, -2.0]], {"avoidance": 0.5, "generic": 0.5, "expert": 0}),
        ([[-1.0, -1.0 + 1e-8, -1.0]], {level: pytest.approx(1 / 3) for level in LEVELS}),
        ([[-1.0, -1.0, -2.0], [-3.0, -2.0, -1.0]],
         {"avoidance": 0.25, "generic": 0.25, "expert": 0.5}),
    ],
)  # fmt: skip
def test_levels_that_tie_share_a_query(scores, rate):
    found = rates_of(np.array(scores), LEVELS)
    assert found.rate == rate
    assert sum(found.rate.values()) == pytest.approx(1)


def test_a_response_at_two_levels_ties_to_the_last_bit(tiny, tmp_path):
    base = load_base(str(tiny()), "float32", "cpu")
    some = write_records(tmp_path / "tea.jsonl", 7, avoidance="so it is", expert="so it is")
    rows = response_rows(base.tokenizer, list(read_records(some)), LEVELS)
    scores = np.array(response_scores(base.model, rows))
    assert (scores[:, 0] == scores[:, 2]).all()
    found = preference_rates(base.model, rows, LEVELS)
    assert found.rate["avoidance"] == found.rate["expert"]


def test_a_model_without_numbers_has_no_rates(tiny, records):
    base = load_base(str(tiny()), "float32", "cpu")
    rows = response_rows(base.tokenizer, list(read_records(records)), LEVELS)
    with torch.no_grad():
        base.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(AlignvecError, match="no numbers"):
        preference_rates(base.model, rows, LEVELS)


@pytest.mark.parametrize("queries", [1, 6, 60])
@pytest.mark.parametrize("share", [0.0, 1 / 3, 0.5, 1.0])
def test_the_interval_is_wilsons(share, queries):
    """Its ends are where the share is 1.96 standard errors away; none is the share itself."""
    low, high = wilson_interval(share, queries)
    assert 0 <= low <= share <= high <= 1
    assert high - low > 0.1 * 6 / queries
    for end in (low, high):
        if end not in (0, 1):
            error = np.sqrt(end * (1 - end) / queries)
            assert abs(share - end) == pytest.approx(1.959964 * error)
    mirrored = wilson_interval(1 - share, queries)
    assert mirrored == (pytest.approx(1 - high), pytest.approx(1 - low))


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
