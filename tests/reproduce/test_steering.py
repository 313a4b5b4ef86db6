"""Steering adds a vector where it says, in scoring as in writing, and leaves nothing behind."""

import copy

import pytest
import torch
import transformers as hf
from torch import nn

from alignvec.base.likelihood import response_scores
from alignvec.base.load import load_checkpoint, load_tokenizer
from alignvec.base.logprobs import Row
from alignvec.base.prompts import Prompt
from alignvec.data import read_records
from alignvec.errors import AlignvecError
from alignvec.evaluate.rates import response_rows
from alignvec.reproduce.steering import Steered, decoder_layer, steered, steered_rows
from conftest import VOCABULARY

FAMILIES = ["llama", "gpt2", "gemma", "mixtral", "qwen2", "opt"]
LEVELS = ["avoidance", "generic", "expert"]
QUERIES = ["why?", "how long does it take to steep green tea?", "is it so"]


@pytest.fixture(scope="module")
def loaded(tiny):
    return lambda family="llama", **changes: (
        load_checkpoint(tiny(family, **changes), torch.float32),
        load_tokenizer(tiny(family, **changes)),
    )


def gptj():
    """Its layers return tuples."""
    torch.manual_seed(0)
    config = hf.GPTJConfig(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=512, rotary_dim=4,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def direction(model):
    """A vector as large as the hidden states are that it is added to."""
    with torch.no_grad():
        hidden = model(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states[1]
    width = model.config.get_text_config().hidden_size
    return hidden.std() * torch.randn(width, generator=torch.Generator().manual_seed(5))


def upper_half(model, layer):
    """A copy that begins above a layer and takes hidden states in the place of embeddings."""
    model = copy.deepcopy(model)
    decoder = model.get_decoder()
    name = "h" if hasattr(decoder, "h") else "layers"
    setattr(decoder, name, nn.ModuleList(list(getattr(decoder, name))[layer + 1 :]))
    for positions in ("wpe", "embed_positions"):
        if hasattr(decoder, positions):
            nn.init.zeros_(getattr(decoder, positions).weight)
    return model


def by_hand(model, layer, added, prompt, response):
    """Log-probabilities [t, V] after the prompt: read up to a layer, add, read on from there."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True, use_cache=False).hidden_states[layer + 1]
        hidden = hidden.clone()
        hidden[0, len(prompt) - 1 :] += added
        logits = upper_half(model, layer)(inputs_embeds=hidden, use_cache=False).logits
    return logits[0, len(prompt) - 1 :].log_softmax(-1)


def written_by_hand(model, layer, added, prompt, count, end):
    written = []
    while len(written) < count:
        written.append(int(by_hand(model, layer, added, prompt, written)[-1].argmax()))
        if written[-1] == end:
            break
    return written


@pytest.mark.parametrize("family", [*FAMILIES, "gptj"])
def test_scores_are_those_of_the_vector_added_by_hand(family, loaded):
    model = gptj() if family == "gptj" else loaded(family)[0]
    added = direction(model)
    rows = [
        Row([5, 6, 7, 8], [[9, 10, 11], [12], [13, 14, 15, 16, 17]]),
        Row([20, 21], [[22, 23]]),
    ]
    found = response_scores(model, rows, within=steered_rows(model, 0, added, rows))
    plain = response_scores(model, rows)
    for row, scores, before in zip(rows, found, plain, strict=True):
        for response, score, base in zip(row.responses, scores, before, strict=True):
            logs = by_hand(model, 0, added, row.prompt, response)
            hand = logs[range(len(response)), response].mean().item()
            assert score == pytest.approx(hand, abs=2e-5)
            assert abs(score - base) > 1e-3


def test_a_row_at_a_time_or_branched_is_the_same(loaded, monkeypatch):
    model, _ = loaded()
    rows = [Row([5, 6, 7, 8], [[9, 10, 11], [12, 13]]), Row([20, 21], [[22, 23]])]
    within = steered_rows(model, 0, direction(model), rows)
    branched = response_scores(model, rows, within=within)
    monkeypatch.setattr("alignvec.base.branching.can_branch", lambda *_: False)
    apart = response_scores(model, rows, within=within)
    for one, other in zip(branched, apart, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "mixtral"])
def test_answers_of_a_padded_batch_are_those_written_alone_by_hand(family, loaded):
    model, tokenizer = loaded(family)
    vector = direction(model)
    answers = Steered(model, tokenizer, vector, 0, 0.7).answers(QUERIES, 12)
    for query, answer in zip(QUERIES, answers, strict=True):
        prompt = Prompt(tokenizer, query)
        tokens = written_by_hand(model, 0, 0.7 * vector, prompt.tokens, 12, 2)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert answer == prompt.shown(text)
    assert answers != Steered(model, tokenizer, vector, 0, 0).answers(QUERIES, 12)


@pytest.mark.parametrize("cached", [True, False])
def test_what_is_written_is_as_likely_as_it_is_scored(cached, loaded):
    model, tokenizer = loaded()
    added = direction(model)
    prompts = [Prompt(tokenizer, query).tokens for query in QUERIES]
    inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), steered(model, 0, added, torch.tensor([length - 1])):
        output = model.generate(
            **inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=cached,
            pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    written = output.sequences[:, length:]
    logs = torch.stack(output.logits, 1).log_softmax(-1).gather(2, written[:, :, None])
    rows = [Row(prompt, [one.tolist()]) for prompt, one in zip(prompts, written, strict=True)]
    scored = response_scores(model, rows, within=steered_rows(model, 0, added, rows))
    assert [score for (score,) in scored] == pytest.approx(logs.mean((1, 2)).tolist(), abs=1e-4)


def test_strength_scales_and_zero_is_the_base_bit_for_bit(loaded, records):
    model, tokenizer = loaded(num_hidden_layers=3)
    told = list(read_records(records))
    vector = direction(model)
    rows = response_rows(tokenizer, told, LEVELS)
    for layer in range(3):
        at_zero = Steered(model, tokenizer, vector, layer, 0).scores(told, LEVELS)
        assert at_zero.tolist() == response_scores(model, rows)
    twice = Steered(model, tokenizer, vector, 1, 2).scores(told, LEVELS)
    assert twice.shape == (12, 3)
    doubled = Steered(model, tokenizer, 2 * vector, 1, 1).scores(told, LEVELS)
    assert twice.tolist() == doubled.tolist()
    higher = Steered(model, tokenizer, vector, 2, 2).scores(told, LEVELS)
    assert abs(twice - higher).max() > 0.001


def hooks(model):
    return [len(module._forward_hooks) for module in model.modules()]


def test_nothing_is_left_on_the_model(loaded, records):
    model, tokenizer = loaded()
    told = list(read_records(records))
    subject = Steered(model, tokenizer, direction(model), 1, 1)
    before = hooks(model)  # transformers keeps those that it notes hidden states with
    subject.scores(told, LEVELS)
    assert len(subject.answers(QUERIES, 3)) == 3
    assert subject.answers([], 3) == []
    with pytest.raises(AlignvecError, match="no tokens"):
        subject.scores([told[0].model_copy(update={"levels": {"expert": ""}})], ["expert"])
    with pytest.raises(KeyboardInterrupt), steered(model, 0, direction(model), torch.tensor([0])):
        raise KeyboardInterrupt
    assert hooks(model) == before


def test_the_layers_are_those_that_read_text(multimodal, loaded):
    model = load_checkpoint(multimodal("gemma3"), torch.float32)
    assert decoder_layer(model, 1) is model.model.language_model.layers[1]
    moe, _ = loaded("mixtral")
    assert decoder_layer(moe, 0) is moe.model.layers[0]


def test_what_does_not_fit_is_refused(loaded):
    model, tokenizer = loaded()
    vector = direction(model)
    for layer in (-1, 2):
        with pytest.raises(AlignvecError, match=f"no layer {layer}; they go from 0 to 1"):
            Steered(model, tokenizer, vector, layer, 1)
    for wrong, strength in ((vector[:-1], 1), (vector * torch.nan, 1), (vector, 1e39)):
        with pytest.raises(AlignvecError, match="32 finite numbers"):
            Steered(model, tokenizer, wrong, 0, strength)
