"""Vectors from records: what they are of, and that they do what they are for."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from alignvec.base.load import load_checkpoint, load_tokenizer
from alignvec.base.prompts import Prompt
from alignvec.data import read_records
from alignvec.errors import AlignvecError
from alignvec.reproduce.steering import Steered
from alignvec.reproduce.steering_choice import choose
from alignvec.reproduce.steering_vectors import BiPOSettings, bipo, difference_of_means

LOW, HIGH = "avoidance", "expert"


@pytest.fixture
def model(tiny):
    return load_checkpoint(tiny(num_hidden_layers=3), torch.float32)


@pytest.fixture
def tokenizer(tiny):
    return load_tokenizer(tiny(num_hidden_layers=3))


@pytest.fixture
def told(records):
    return list(read_records(records))


def test_the_difference_is_of_means_over_the_tokens_of_responses(model, tokenizer, told):
    found = difference_of_means(model, tokenizer, told, LOW, HIGH, 1)
    wanted = torch.zeros(32)
    for record in told:
        for level, sign in ((LOW, -1), (HIGH, 1)):
            row = Prompt(tokenizer, record.prompt).row([record.levels[level]])
            ids = torch.tensor([[*row.prompt, *row.responses[0]]])
            with torch.no_grad():
                hidden = model(ids, output_hidden_states=True).hidden_states[2][0]
            wanted += sign * hidden[len(row.prompt) :].mean(0) / len(told)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    back = difference_of_means(model, tokenizer, told, HIGH, LOW, 1)
    torch.testing.assert_close(back, -found)
    assert not found.is_inference()


def by_hand(model, tokenizer, record, added):
    """log p(high) - log p(low), the vector added to what the layer returns at each answer token."""
    margin = 0.0
    for level, sign in ((LOW, -1), (HIGH, 1)):
        prompt = Prompt(tokenizer, record.prompt)
        response = prompt.taught(record.levels[level])
        start = len(prompt.tokens) - 1

        def add(module, args, output, start=start):
            return torch.cat([output[:, :start], output[:, start:] + added], 1)

        handle = model.model.layers[1].register_forward_hook(add)
        ids = torch.tensor([[*prompt.tokens, *response]])
        logs = model(ids).logits[0, start:-1].log_softmax(-1)
        handle.remove()
        margin = margin + sign * logs[range(len(response)), response].sum()
    return margin


def test_a_step_of_bipo_goes_down_the_gradient_of_its_loss(model, tokenizer, told):
    """The second step: at the first the vector is zero, and the direction without effect."""
    settings = BiPOSettings(steps=2, learning_rate=0.05, batch_size=len(told), warmup=0, beta=0.5)
    found = bipo(model, tokenizer, told, LOW, HIGH, 1, settings)
    # The first step of Adam is as long as its rate.
    first = bipo(model, tokenizer, told, LOW, HIGH, 1, replace(settings, steps=1))
    rate = float(first.abs().max())
    ids = torch.tensor([Prompt(tokenizer, told[0].prompt).tokens])
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[2]
    assert rate == pytest.approx(0.05 * float(hidden.abs().median()), rel=0.3)
    with torch.no_grad():
        base = [by_hand(model, tokenizer, record, torch.zeros(32)) for record in told]
    ways = []
    for directions in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        vector = torch.zeros(32, requires_grad=True)
        adam = torch.optim.Adam([vector], lr=rate)
        for step, direction in enumerate(directions):
            margins = [by_hand(model, tokenizer, one, direction * vector) for one in told]
            gains = torch.stack(margins) - torch.stack(base)
            loss = -logsigmoid(0.5 * direction * gains).mean()
            (vector.grad,) = torch.autograd.grad(loss, vector)
            vector.grad /= max(1.0, float(vector.grad.norm()))
            adam.param_groups[0]["lr"] = rate * (1 - 0.5 * step)  # a cosine of two steps
            adam.step()
        ways.append(vector.detach())
    assert min(float((found - way).abs().max()) for way in ways) < 1e-4
    assert float((ways[0] - ways[3]).abs().max()) > 1e-3


def test_bipo_moves_both_ways_and_touches_no_weight(model, tokenizer, told):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.lm_head.weight.requires_grad_(False)
    settings = BiPOSettings(steps=12, learning_rate=0.05)
    vector = bipo(model, tokenizer, told, LOW, HIGH, 1, settings)
    assert vector.shape == (32,)
    assert not vector.requires_grad

    def margin(strength):
        scores = Steered(model, tokenizer, vector, 1, strength).scores(told, [LOW, HIGH])
        return (scores[:, 1] - scores[:, 0]).mean()

    assert margin(-1) + 0.01 < margin(0) < margin(1) - 0.01
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    frozen = [name for name, one in model.named_parameters() if not one.requires_grad]
    assert frozen == ["lm_head.weight"]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_seed_makes_the_same_vector_again(model, tokenizer, told):
    def trained(seed):
        return bipo(model, tokenizer, told, LOW, HIGH, 1, BiPOSettings(steps=3, seed=seed))

    first = trained(0)
    torch.manual_seed(9)
    assert torch.equal(first, trained(0))
    assert not torch.equal(first, trained(1))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"beta": -1}, {"warmup": 2}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(AlignvecError, match=next(iter(wrong))):
        BiPOSettings(**wrong)


def test_without_records_there_is_no_vector(model, tokenizer):
    for find in (bipo, difference_of_means):
        with pytest.raises(AlignvecError, match="there are none"):
            find(model, tokenizer, [], LOW, HIGH, 1)


def test_the_layer_is_chosen_that_moves_the_rate_farthest(model, tokenizer, told):
    asked = []

    def vector_at(layer):
        asked.append(layer)
        settings = BiPOSettings(steps=12, learning_rate=0.05)
        return bipo(model, tokenizer, told, LOW, HIGH, layer, settings) * (layer == 1)

    chosen = choose(model, tokenizer, told[:4], LOW, HIGH, vector_at, depths=(0, 0.4, 0.9))
    assert set(asked) == {0, 1, 2}
    assert chosen.layer == 1  # the others' vectors are zero
    assert chosen.margin > 0
    assert torch.equal(chosen.vector, vector_at(1))


@pytest.mark.parametrize(("allowed", "strength"), [(1e9, 1.0), (-1e9, 0.5)])
def test_a_strength_that_breaks_the_text_is_not_chosen(
    allowed, strength, model, tokenizer, told, monkeypatch
):
    """The farther the better, but for what it costs the very text that is wanted."""
    monkeypatch.setattr("alignvec.reproduce.steering_choice._LOST", allowed)
    vector = bipo(model, tokenizer, told, LOW, HIGH, 1, BiPOSettings(steps=12, learning_rate=0.05))
    chosen = choose(model, tokenizer, told[:4], LOW, HIGH, lambda _: vector, (0.4,), (1.0, 0.5))
    assert chosen.strength == strength
