import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignvec.base.branching import can_branch, read_rows
from alignvec.base.likelihood import response_scores
from alignvec.base.load import load_checkpoint
from alignvec.base.logprobs import Row, logprobs
from conftest import ARCHITECTURES

TOKENS = st.lists(st.integers(3, 90), min_size=1, max_size=12)
ROWS = st.lists(
    st.builds(Row, TOKENS, st.lists(TOKENS, min_size=1, max_size=3)), min_size=1, max_size=4
)


def by_hand(model, prompt, response):
    """One sequence, no packing, no padding, no mask."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        logits = model(ids).logits[0].log_softmax(-1)
    return [logits[len(prompt) + i - 1, token].item() for i, token in enumerate(response)]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tiny):
    return load_checkpoint(tiny(request.param), torch.float32)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=ROWS)
def test_branches_have_the_likelihoods_of_separate_sequences(model, rows):
    assert can_branch(model)
    with torch.no_grad():
        found = logprobs(model, rows)
    for row, values in zip(rows, found, strict=True):
        for response, got in zip(row.responses, values, strict=True):
            expected = torch.tensor(by_hand(model, row.prompt, response))
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_scores_keep_the_order_whatever_the_batches(model):
    rows = [Row([5, 6, 7][: 1 + i % 3], [[8 + i, 9], [10] * (1 + i)]) for i in range(9)]
    whole, split = response_scores(model, rows), response_scores(model, rows, tokens_per_batch=8)
    torch.testing.assert_close(torch.tensor(whole), torch.tensor(split), atol=1e-4, rtol=1e-4)
    mean = sum(by_hand(model, rows[4].prompt, rows[4].responses[1])) / 5
    assert whole[4][1] == pytest.approx(mean, abs=1e-4)


def test_a_recurrent_model_is_scored_without_sharing(tiny):
    model = load_checkpoint(tiny("mamba"), torch.float32)
    assert not can_branch(model)
    rows = [Row([5, 6, 7], [[8, 9], [10, 11, 12]])]
    ((first, second),) = response_scores(model, rows)
    assert first == pytest.approx(sum(by_hand(model, [5, 6, 7], [8, 9])) / 2, abs=1e-4)
    assert second == pytest.approx(sum(by_hand(model, [5, 6, 7], [10, 11, 12])) / 3, abs=1e-4)


def test_rows_beyond_a_sliding_window_are_not_shared(tiny):
    model = load_checkpoint(tiny("mistral", sliding_window=8), torch.float32)
    assert not can_branch(model, 20)
    row = Row(list(range(3, 15)), [[20, 21, 22], [30]])
    ((first, _),) = response_scores(model, [row])
    assert first == pytest.approx(sum(by_hand(model, row.prompt, [20, 21, 22])) / 3, abs=1e-4)


def test_gradients_are_those_of_separate_sequences(model, monkeypatch):
    monkeypatch.setattr("alignvec.base.logprobs._AT_A_TIME", 300)  # several pieces, and a rest
    rows = [Row([5, 6], [[7, 8, 5], [9]]), Row([4], [[10, 3]])]
    weight = model.get_input_embeddings().weight

    def gradient(loss):
        return torch.autograd.grad(loss, weight)[0]

    apart = torch.zeros_like(weight)
    for row in rows:
        for number, response in enumerate(row.responses, 1):
            ids = torch.tensor([[*row.prompt, *response]])
            logits = model(ids).logits[0, len(row.prompt) - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(response))
            apart -= number * gradient(loss)
    together = [
        number * values.mean()
        for scores in read_rows(model, rows)
        for number, values in enumerate(scores, 1)
    ]
    assert torch.allclose(gradient(sum(together)), apart, atol=1e-5)
