"""Each row draws its own next token, by its own chance."""

import math
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignvec.serve.sampling import Chance, Sampling, likelihoods, next_tokens


def drawn(sampling, logits, times=1, index=0):
    chance = Chance(sampling, index)
    return [next_tokens(logits.clone()[None], [chance])[0] for _ in range(times)]


def test_no_temperature_is_the_likeliest():
    assert drawn(Sampling(1, temperature=0), torch.tensor([0.0, 3.0, 1.0]), 3) == [1, 1, 1]


def test_shares_are_those_of_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -math.inf])
    times = 4000
    counts = Counter(drawn(Sampling(1, temperature=0.7, seed=3), logits, times))
    wanted = torch.softmax(logits / 0.7, 0).tolist()
    for token, share in enumerate(wanted):
        assert abs(counts[token] / times - share) < 4 * math.sqrt(0.25 / times)
    assert counts[3] == 0


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=30), st.floats(0.01, 0.99))
@settings(max_examples=50, deadline=None)
def test_top_p_draws_from_the_fewest_that_have_it(values, top_p):
    logits = torch.tensor(values)
    shares = torch.softmax(logits.double(), 0)
    chosen = set(drawn(Sampling(1, top_p=top_p, seed=1), logits, 40))
    for token in chosen:  # those above it have less than top_p together
        assert shares[shares > shares[token]].sum() < top_p + 1e-9


def test_top_p_of_a_wide_vocabulary_that_is_nearly_flat():
    logits = torch.zeros(5000)
    logits[:3000] += 0.01
    assert max(drawn(Sampling(1, top_p=0.5, seed=1), logits, 200)) < 3000


def test_a_seed_is_an_answer_and_each_of_n_is_another_one():
    logits = torch.zeros(1000)
    one = drawn(Sampling(1, seed=7), logits, 10)
    assert one == drawn(Sampling(1, seed=7), logits, 10)
    assert one != drawn(Sampling(1, seed=7), logits, 10, index=1)
    assert one != drawn(Sampling(1, seed=8), logits, 10)
    assert drawn(Sampling(1), logits, 10) != drawn(Sampling(1), logits, 10)
    assert drawn(Sampling(1, seed=-(2**63)), logits)
    assert drawn(Sampling(1, seed=2**64), logits)
    assert drawn(Sampling(1, seed=-1), logits, 10) != drawn(Sampling(1, seed=-2), logits, 10)


@given(st.integers(0, 5), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_a_row_draws_the_same_whoever_else_is_in_the_batch(place, others):
    torch.manual_seed(0)
    mine, wish = torch.randn(50), Sampling(1, temperature=1.3, top_p=0.9, seed=5)
    alone = drawn(wish, mine)
    rows = [torch.randn(50) for _ in range(others)]
    chances = [Chance(Sampling(1, temperature=i % 2, seed=i), 0) for i in range(others)]
    place = min(place, others)
    rows.insert(place, mine)
    chances.insert(place, Chance(wish, 0))
    assert next_tokens(torch.stack(rows), chances)[place] == alone[0]


def test_penalties_and_biases_change_their_own_row():
    logits = torch.tensor([[2.0, 1.0, 0.0]] * 3)
    often = Chance(Sampling(1, temperature=0, frequency_penalty=0.6), 0)
    often.counts.update([0, 0])
    once = Chance(Sampling(1, temperature=0, presence_penalty=0.9), 0)
    once.counts.update([0, 0])
    biased = Chance(Sampling(1, temperature=0, logit_bias={2: 5.0}), 0)
    assert next_tokens(logits, [often, once, biased]) == [1, 0, 2]


def test_numbers_at_the_end_of_what_there_is_still_have_a_likeliest():
    logits = torch.tensor([-3e38, 3e38, 0.0, -math.inf])
    for heat in (1e-4, 0.5, 2.0):
        for top_p in (0, 0.5, 1):
            wish = Sampling(1, temperature=heat, top_p=top_p, seed=1)
            assert drawn(wish, logits.nan_to_num(), 5) == [1] * 5


def test_what_was_seen_is_less_likely_if_the_base_has_it_so():
    wish = Sampling(1, temperature=0)
    for logits, wanted in (([2.0, 1.5, -9.0], 1), ([2.0, 0.9, -9.0], 0), ([-1.0, -1.5, -9.0], 1)):
        chance = Chance(wish, 0, prompt=[0, 2], repetition=2.0)
        assert next_tokens(torch.tensor([logits]), [chance]) == [wanted]
    chance.counts.update([1])
    assert next_tokens(torch.tensor([[-1.0, -1.5, -9.0]]), [chance]) == [0]
    assert next_tokens(torch.tensor([[2.0, 1.5]]), [Chance(wish, 0, repetition=2.0)]) == [0]


def test_likelihoods_are_natural_logs_of_all_that_could_be():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    first, second = likelihoods(logits, [0, 1], 5)
    assert math.isclose(first.logprob, math.log(0.25), rel_tol=1e-6)
    assert [token for token, _ in first.top] == [1, 0]
    assert math.isclose(second.logprob, math.log(0.5), rel_tol=1e-6)
