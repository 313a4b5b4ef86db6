"""What the model itself writes is what training prefers the references to."""

import json

import pytest
import torch
from test_bank import records_of

from alignvec.align import AlignSettings, align
from alignvec.align.curriculum import pairs_along
from alignvec.align.own_answers import EVERY, OwnAnswers
from alignvec.data import LEVELS, Record
from alignvec.data.line import spaced
from alignvec.knobs.model import KnobModel

PLACES = spaced(LEVELS)


@pytest.fixture
def written(monkeypatch):
    """Step -> place -> (answer as tokens, difference), as training keeps them."""
    seen = {}
    whole = OwnAnswers._write

    def watched(self, pairs):
        found = whole(self, pairs)
        seen[self._until - EVERY] = (pairs, found)
        return found

    monkeypatch.setattr(OwnAnswers, "_write", watched)
    return seen


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_they_are_the_greedy_answers_of_the_model_as_it_is(architecture, tiny, tmp_path, written):
    """Before the first step it is the base, whose answers and likelihoods are known otherwise."""
    base = str(tiny(architecture))
    records = records_of("tea", 6)
    pairs = pairs_along({"tea": records}, PLACES, passes=2)
    settings = AlignSettings(rank=4, dtype="float32", own_answers=0.0)
    align(base, pairs, tmp_path / "tea", settings, knobs=["tea"])
    model = KnobModel.from_pretrained(base, {}, "float32")
    asked, found = written[0]
    assert found
    assert all(one["broken"] for one in asked)
    by_place = {one["place"]: one for one in asked}
    for place, (answer, before) in found.items():
        one = by_place[place]
        prompt = torch.tensor([one["prompt_ids"]])
        with torch.no_grad():
            said = model.model.generate(
                prompt, max_new_tokens=len(answer), do_sample=False, pad_token_id=0
            )[0, prompt.shape[1] :]
            assert said.tolist() == answer

            def mean(response, prompt=prompt):
                tokens = torch.cat([prompt, torch.tensor([response])], 1)
                logs = model.model(tokens).logits.log_softmax(-1)[0, prompt.shape[1] - 1 : -1]
                return logs[range(len(response)), response].mean().item()

            assert before == pytest.approx(mean(one["chosen_ids"]) - mean(answer), abs=1e-4)


def test_the_rows_to_come_have_them_and_the_others_do_not(tiny, tmp_path, monkeypatch):
    """From the step on that was asked for; what the objective starts from comes with them."""
    from alignvec.align.trainer import SharedPromptTrainer

    batches = []
    whole = SharedPromptTrainer._preference

    def watched(self, inputs, logprobs):
        batches.append(inputs["before"].tolist())
        return whole(self, inputs, logprobs)

    monkeypatch.setattr(SharedPromptTrainer, "_preference", watched)
    pairs = pairs_along({"tea": records_of("tea", 8)}, PLACES, passes=2)
    settings = AlignSettings(rank=4, dtype="float32", own_answers=0.5)
    align(str(tiny()), pairs, tmp_path / "tea", settings, knobs=["tea"])
    half = len(batches) // 2
    assert not any(map(any, batches[:half]))
    # Two batches are read ahead; then a pair of each row has the model's own answer.
    assert [sum(map(bool, batch)) for batch in batches[half:]] == [0, 0, 2, 2]


def test_a_run_that_goes_on_has_the_same_answers_in_the_same_steps(tiny, tmp_path, monkeypatch):
    """Two batches are read ahead of the step with which it goes on."""
    from alignvec.align.trainer import SharedPromptTrainer

    pairs = pairs_along({"tea": records_of("tea", 8)}, PLACES, passes=2)
    settings = AlignSettings(rank=4, dtype="float32", own_answers=0.25, save_every=1)
    whole = SharedPromptTrainer._preference

    def batches(name, stop=None):
        seen = []

        def watched(self, inputs, logprobs):
            if len(seen) == stop:
                raise KeyboardInterrupt
            seen.append(inputs["before"].tolist())
            return whole(self, inputs, logprobs)

        with monkeypatch.context() as patch:
            patch.setattr(SharedPromptTrainer, "_preference", watched)
            align(str(tiny()), pairs, tmp_path / name, settings, knobs=["tea"])
        return seen

    expected = batches("at-once")
    with pytest.raises(KeyboardInterrupt):
        batches("killed", stop=5)
    found = batches("killed")
    assert any(map(any, expected[5:7]))
    assert [list(map(bool, one)) for one in found] == [
        list(map(bool, one)) for one in expected[-len(found) :]
    ]


def test_they_have_the_room_that_a_model_has(tiny, tmp_path, written):
    """Beside a prompt that leaves little an answer may be long, but not behind it."""
    records = [
        Record(id=f"r{length}", query="q" * length, levels=dict.fromkeys(LEVELS, said))
        for length, said in ((480, "a"), (4, "a " * 60), (6, "b " * 60))
    ]
    pairs = pairs_along({"tea": records}, PLACES, passes=3)
    settings = AlignSettings(rank=4, dtype="float32", own_answers=0.0)
    align(str(tiny("gpt2")), pairs, tmp_path / "tea", settings, knobs=["tea"])
    lengths = {
        len(one["prompt_ids"]): len(found[one["place"]][0])
        for some, found in written.values() for one in some if one["place"] in found
    }  # fmt: skip
    assert all(prompt + answer <= 512 for prompt, answer in lengths.items())
    assert max(lengths.values()) > 120


def test_a_share_of_one_is_without_them(tiny, tmp_path, written):
    pairs = pairs_along({"tea": records_of("tea", 4)}, PLACES, passes=1)
    settings = AlignSettings(rank=4, dtype="float32", own_answers=1.0)
    align(str(tiny()), pairs, tmp_path / "tea", settings, knobs=["tea"])
    assert not written
    record = json.loads((tmp_path / "tea" / "training.json").read_text())
    assert record["settings"]["own_answers"] == 1.0
