"""Objectives on mean log-likelihoods: against their formulas."""

import math

import pytest
import torch

from alignvec.align.objectives import OBJECTIVES, orpo, simpo, softmax

CHOSEN, REJECTED = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-2.0, -1.0, -3.0])
ROWS = torch.tensor([0, 1, 1])


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def test_simpo():
    found = simpo(CHOSEN, REJECTED, ROWS, 2.0, 0.5)
    wanted = [-math.log(sigmoid(2 * (c - r) - 0.5)) for c, r in zip(CHOSEN, REJECTED, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_orpo():
    def odds(score):
        return math.exp(score) / (1 - math.exp(score))

    found = orpo(CHOSEN, REJECTED, ROWS, 0.1, 0.0)
    ratios = [odds(float(c)) / odds(float(r)) for c, r in zip(CHOSEN, REJECTED, strict=True)]
    wanted = [-0.1 * math.log(sigmoid(math.log(ratio))) for ratio in ratios]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_softmax_is_over_the_levels_of_a_row():
    chosen, rejected = torch.tensor([-1.0, -2.0, -2.0]), torch.tensor([-2.0, -1.0, -3.0])
    found = softmax(chosen, rejected, ROWS, 3.0, 0.0)
    pair = math.exp(-3) / (math.exp(-3) + math.exp(-6))
    three = math.exp(-6) / (math.exp(-6) + math.exp(-3) + math.exp(-9))
    torch.testing.assert_close(found, -torch.tensor([pair, three, three]).log())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loss_falls_as_the_chosen_response_gets_likelier(name):
    margins = torch.linspace(-2, 2, 9)
    values = [
        float(OBJECTIVES[name](-2 + m[None] / 2, -2 - m[None] / 2, torch.tensor([0]), 1.0, 0.5))
        for m in margins
    ]
    assert values == sorted(values, reverse=True)
