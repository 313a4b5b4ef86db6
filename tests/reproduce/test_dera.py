"""DeRa mixes the logits of two models at every token, in scoring as in writing."""

import pytest
import torch

from alignvec.base.likelihood import response_scores
from alignvec.base.load import load_checkpoint, load_tokenizer
from alignvec.base.prompts import Prompt
from alignvec.data import read_records
from alignvec.errors import AlignvecError
from alignvec.evaluate.rates import response_rows
from alignvec.knobs.model import KnobModel
from alignvec.reproduce.dera import DeRa
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress

LEVELS = ["avoidance", "generic", "expert"]
QUERIES = ["why?", "how long does it take to steep green tea?", "is it so"]


@pytest.fixture(params=["llama", "gpt2"])
def two(request, tiny, nudged):
    """A model with a knob, and both of its ends as models of their own."""
    base, aligned = tiny(request.param), nudged(request.param)
    vector = AlignmentVector.extract(base, aligned)
    knob = KnobModel.from_pretrained(base, {"tea": vector}, dtype="float32")
    return knob, load_checkpoint(base, torch.float32), load_checkpoint(aligned, torch.float32)


def mixed(base, aligned, strength, tokens):
    """[T, V]: log-probabilities of the mixture, of two forward passes of two models."""
    with torch.no_grad():
        one, other = (model(torch.tensor([tokens])).logits[0] for model in (base, aligned))
    return ((1 - strength) * one + strength * other).log_softmax(-1)


@pytest.mark.parametrize("strength", [-1.0, 0.5, 2.0])
def test_scores_and_answers_are_those_of_two_models(strength, two, records):
    knob, base, aligned = two
    subject = DeRa(knob, {"tea": 1}, strength)
    told = list(read_records(records))[:4]
    scores = subject.scores(told, LEVELS)
    for row, found in zip(response_rows(knob.tokenizer, told, LEVELS), scores, strict=True):
        for response, score in zip(row.responses, found, strict=True):
            logs = mixed(base, aligned, strength, [*row.prompt, *response])
            own = logs[len(row.prompt) - 1 : -1][range(len(response)), response]
            assert score == pytest.approx(own.mean().item(), abs=1e-4)
    answers = subject.answers(QUERIES, 10)
    for query, answer in zip(QUERIES, answers, strict=True):
        prompt = Prompt(knob.tokenizer, query)
        written = []
        while len(written) < 10 and 2 not in written:
            logs = mixed(base, aligned, strength, [*prompt.tokens, *written])
            written.append(int(logs[-1].argmax()))
        text = knob.tokenizer.decode(written, skip_special_tokens=True)
        assert answer == prompt.shown(text)


def test_its_ends_are_the_base_and_the_aligned_model(two, records):
    knob, base, aligned = two
    told = list(read_records(records))
    rows = response_rows(knob.tokenizer, told, LEVELS)
    knob.set(tea=0.3)  # whatever it is turned to meanwhile
    for strength, model in ((0, base), (1, aligned)):
        subject = DeRa(knob, {"tea": 1}, strength)
        expected = response_scores(model, rows)
        for one, other in zip(subject.scores(told, LEVELS).tolist(), expected, strict=True):
            assert one == pytest.approx(other, abs=2e-4)
        plain = KnobModel(model, knob.tokenizer, {})
        assert subject.answers(QUERIES, 8) == plain.generate(QUERIES, max_new_tokens=8)
    assert knob.setting == {"tea": 0.3}
    assert knob.gate.strengths is None


def test_a_token_that_may_not_be_written_never_is(two):
    """A config forbids it by a logit of minus infinity, whatever that is multiplied by."""
    knob, *_ = two
    knob.model.generation_config.suppress_tokens = [0, 1, 2, 4, *range(3, 96, 2)]
    for strength in (0, 1.5, -1):
        (answer,) = DeRa(knob, {"tea": 1}, strength).answers(["why?"], 6)
        written = knob.tokenizer(answer.replace(" ", ""), add_special_tokens=False)["input_ids"]
        assert all(token % 2 == 0 for token in written)
        assert answer


def test_rows_read_apart_and_in_any_batch_are_the_same(tiny, nudged, records, monkeypatch):
    vector = compress(AlignmentVector.extract(tiny(), nudged()), rank=3)
    knob = KnobModel.from_pretrained(tiny(), {"tea": vector}, dtype="float32", mode="gate")
    subject = DeRa(knob, {"tea": 1}, 0.5)
    told = list(read_records(records))
    together = subject.scores(told, LEVELS)
    monkeypatch.setattr("alignvec.reproduce.dera._TOKENS", 1)
    monkeypatch.setattr("alignvec.base.branching.can_branch", lambda *_: False)
    assert subject.scores(told, LEVELS) == pytest.approx(together, abs=1e-4)
    model = knob.detach()
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_what_cannot_run_is_refused(tiny, nudged):
    vector = AlignmentVector.extract(tiny(), nudged())
    knob = KnobModel(
        load_checkpoint(tiny(), torch.float32), load_tokenizer(tiny()), {"tea": vector}, mode="fold"
    )
    with pytest.raises(AlignvecError, match="not in mode 'fold'"):
        DeRa(knob, {"tea": 1}, 0.5)
    knob.mode = "auto"
    with pytest.raises(AlignvecError, match="unknown knob 'coffee'"):
        DeRa(knob, {"coffee": 1}, 0.5)
