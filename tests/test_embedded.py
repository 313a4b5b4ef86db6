"""The way of the data on the real model that ships with the project, in small."""

import pytest
import torch

from alignvec.align import AlignSettings, align
from alignvec.base.load import load_base
from alignvec.base.prompts import Prompt
from alignvec.data import LEVELS, preference_pairs, read_records
from alignvec.evaluate import preference_rates, response_rows
from alignvec.knobs.model import KnobModel
from alignvec.vector.alignment_vector import AlignmentVector

pytestmark = pytest.mark.real
ORDER = ["expert", "generic", "avoidance"]


@pytest.fixture(scope="module")
def vector(tmp_path_factory):
    """Trained for three steps; real, if faint."""
    folder = tmp_path_factory.mktemp("embedded")
    train = list(read_records("builtin", domain="medical", split="train"))[:12]
    align("embedded", list(preference_pairs(train, ORDER)), folder / "aligned", AlignSettings())
    vector = AlignmentVector.extract("embedded", folder / "aligned")
    return AlignmentVector.from_pretrained(vector.save_pretrained(folder / "av"))


@pytest.fixture(scope="module")
def model(vector):
    return KnobModel.from_pretrained("embedded", {"medical": vector})


def test_it_talks_in_its_own_chat_format():
    base = load_base("embedded")
    text = base.tokenizer.decode(Prompt(base.tokenizer, "What is the capital of France?").tokens)
    assert text.endswith("<|im_start|>assistant\n")
    assert text.count("<|im_start|>") == 3
    answer = KnobModel(base.model, base.tokenizer, {}).generate("What is the capital of France?")
    assert "Paris" in answer[0]


def test_the_knob_moves_unseen_queries_both_ways_and_comes_back(model, vector):
    assert vector.kind == "low_rank"
    held_out = list(read_records("builtin", domain="medical", split="test"))[:6]
    rows = response_rows(model.tokenizer, held_out, LEVELS)
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    scores = {}
    for strength in (-6.0, 0.0, 6.0):
        rates = preference_rates(model.set(medical=strength).model, rows, LEVELS)
        scores[strength] = rates.score["expert"] - rates.score["avoidance"]
    assert scores[-6.0] < scores[0.0] - 0.1
    assert scores[6.0] > scores[0.0] + 0.1
    model.set(medical=0)
    after = model.model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_gated_rows_write_what_folded_ones_do_up_to_a_near_tie(vector):
    model = KnobModel.from_pretrained("embedded", {"medical": vector}, dtype="bfloat16")
    question = "Why does my knee hurt when I climb stairs?"
    ids = torch.tensor([Prompt(model.tokenizer, question).tokens])
    settings = [{"medical": by} for by in (0.0, 6.0, -6.0)]

    def write(rows, length=24):
        with torch.inference_mode():
            found = model.model.generate(
                rows, attention_mask=torch.ones_like(rows), max_new_tokens=length,
                min_new_tokens=length, do_sample=False, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        return found.sequences[:, rows.shape[1] :], torch.stack(found.logits, 1).float()

    folded = []
    for setting in settings:
        with model.at(setting):
            folded.append(write(ids))
    with model.gate.rows(model.gate.tensor(settings)):
        gated, _ = write(ids.repeat(len(settings), 1))
    agreed = 0
    for row, (tokens, logits) in zip(gated, folded, strict=True):
        apart = (row != tokens[0]).nonzero().flatten().tolist()
        agreed += apart[0] if apart else len(row)
        if apart:  # logits of about 20 are 0.125 apart in bfloat16
            first, second = logits[0, apart[0]].topk(2).values.tolist()
            assert first - second <= 0.5
            assert row[apart[0]] in logits[0, apart[0]].topk(3).indices
    assert agreed >= 24
    assert len({tuple(tokens[0].tolist()) for tokens, _ in folded}) == 3
