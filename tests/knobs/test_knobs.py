import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignvec.base.identity import BaseId
from alignvec.base.load import load_base
from alignvec.data import Record
from alignvec.errors import AlignvecError
from alignvec.evaluate.rates import preference_rates, response_rows
from alignvec.knobs.calibration import Calibration
from alignvec.knobs.model import KnobModel
from alignvec.knobs.setting import check_setting, parse_setting, parse_sweep
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import folded

names = st.text(st.characters(categories=["L", "N"], include_characters="-_."), min_size=1)
finite = st.floats(allow_nan=False, allow_infinity=False, max_value=3e38, min_value=-3e38)
UNMEASURED = AlignmentVector({}, BaseId("base", ""), "av")


@given(st.dictionaries(names, finite, min_size=1))
def test_a_written_setting_parses_back(setting):
    text = ",".join(f"{knob}={strength!r}" for knob, strength in setting.items())
    assert parse_setting(text) == setting
    assert check_setting(setting, dict.fromkeys(setting, UNMEASURED)) == setting


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("medical=nan", "knob 'medical': nan is not a finite number"),
        ("medical=inf", "not a finite"),
        ("medical=1e999", "not a finite"),
        ("medical", "write KNOB=STRENGTH"),
        ("medical=", "write KNOB=STRENGTH"),
        ("", "write KNOB=STRENGTH"),
        ("medical=very", "knob 'medical' has no units on this base"),
        ("medical=1,medical=2", "named twice"),
        ("medcial=1", "unknown knob 'medcial'; did you mean 'medical'?"),
        ("x=1", "unknown knob 'x'; one of legal, medical"),
    ],
)
def test_a_bad_setting_is_refused_by_name(text, message):
    with pytest.raises(AlignvecError) as caught:
        check_setting(parse_setting(text), {"medical": UNMEASURED, "legal": UNMEASURED})
    assert message in str(caught.value)


def test_sweeps_include_both_ends():
    assert parse_sweep("m=-1:1:0.5") == ("m", [-1, -0.5, 0, 0.5, 1])
    assert parse_sweep("m=0:0.3:0.1")[1] == [0, 0.1, 0.2, 0.3]
    assert parse_sweep("m=1:-1:-1")[1] == [1, 0, -1]
    assert len(parse_sweep("m=-3:3:0.6")[1]) == 11
    assert math.copysign(1, parse_sweep("m=-1:1:0.5")[1][2]) == 1
    for wrong in ("m", "m=1:2", "m=0:1:0", "m=0:1:-1", "m=a:b:c", "=0:1:1", "m=0:1:nan"):
        with pytest.raises(AlignvecError, match=r"sweep|does not lead"):
            parse_sweep(wrong)
    with pytest.raises(AlignvecError, match="at most 1000"):
        parse_sweep("m=0:1:1e-9")


@pytest.fixture
def model(tiny, nudged):
    vector = AlignmentVector.extract(tiny(), nudged())
    return KnobModel.from_pretrained(tiny(), {"a": vector, "b": -0.5 * vector}, dtype="float32")


def weights(model):
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def test_a_thousand_turns_leave_no_trace(model):
    base = weights(model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        a, b = (4 * torch.rand(2, generator=generator) - 2).tolist()
        model.set(a=a, b=b)
    assert not same(base, weights(model))
    model.set(a=0.3)
    once = weights(model)
    model.set()
    assert same(base, weights(model))
    assert same(once, weights(model.set({"a": 0.3})))


def test_opposite_knobs_cancel(model):
    base = weights(model)
    turned = weights(model.set(a=1, b=2))
    assert all(torch.allclose(base[n], turned[n], atol=1e-5) for n in base)


def test_a_refused_setting_turns_nothing(model):
    model.set(a=0.5)
    before = weights(model)
    for bad in ({"a": math.nan}, {"c": 1.0}, {"a": "1"}, {"a": True}, {"a": 1.0, "b": math.inf},
                {"a": 1e39}, {"a": 10**400}, {"a": None}):  # fmt: skip
        with pytest.raises(AlignvecError, match="knob"):
            model.set(bad)
    assert model.setting == {"a": 0.5, "b": 0.0}
    assert same(before, weights(model))


def test_an_interrupted_turn_is_taken_back(model, monkeypatch):
    model.set(a=0.5)
    before = weights(model)
    turned = []

    def interrupt(theta, weighted, start, stop):
        turned.append(theta)
        if len(turned) == 5:
            raise KeyboardInterrupt
        return folded(theta, weighted, start, stop)

    monkeypatch.setattr("alignvec.knobs.fold.folded", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.set(a=2.0)
    assert same(before, weights(model))
    assert model.setting == {"a": 0.5, "b": 0.0}


def test_what_is_no_request_is_refused(model):
    assert model.generate([]) == []
    for arguments, message in (
        ({"knobs": {"a": 1.0}}, "a list with a setting"),
        ({"knobs": [None]}, "a list with a setting"),
        ({"schedule": [1, 2]}, "a schedule maps"),
        ({"schedule": {0: "x"}}, "no token with a finite factor"),
        ({"schedule": {0: 1.0}, "prompt_lookup_num_tokens": 3}, "not with assisted decoding"),
        ({"return_dict_in_generate": True}, "answers are text"),
    ):
        with pytest.raises(AlignvecError, match=message):
            model.generate("hm", **arguments)
    with pytest.raises(AlignvecError, match="has a role and content, not rol"):
        model.generate([{"rol": "user"}])
    assert model.set(a=np.float32(0.5), b=torch.tensor(1)).setting == {"a": 0.5, "b": 1.0}
    model.model.lm_head.weight.data.fill_(torch.nan)  # as a product that overflows leaves it
    with pytest.raises(AlignvecError, match="turned too far"):
        model.generate("hm")


def test_rows_answer_under_their_own_setting(model):
    questions = ["how so?", "a longer question, why?", "how so?", "when"]
    knobs = [{"a": 2.0}, {}, {"b": 3.0}, {"a": 2.0}]
    model.set(a=0.1)
    mixed = model.generate(questions, knobs=knobs, max_new_tokens=8)
    assert model.setting == {"a": 0.1, "b": 0.0}
    for question, knob, answer in zip(questions, knobs, mixed, strict=True):
        assert model.set(knob).generate(question, max_new_tokens=8) == [answer]
    assert len(set(mixed)) > 1
    with pytest.raises(AlignvecError, match="2 settings for 1 conversations"):
        model.generate("hi", knobs=[{}, {}])


def test_several_return_sequences_stay_with_their_row(model):
    options = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 5}
    both = model.generate(["hm", "why"], knobs=[{"a": 1.0}, {"a": -1.0}], **options)
    assert both[:2] == model.generate("hm", knobs=[{"a": 1.0}], **options)
    assert both[2:] == model.generate("why", knobs=[{"a": -1.0}], **options)


def test_more_tokens_than_learnt_positions_are_said(tiny):
    """GPT-2 looks its positions up; beyond the last there is none."""
    base = load_base(str(tiny("gpt2")), "float32", "cpu")
    model = KnobModel(base.model, base.tokenizer, {})
    with pytest.raises(AlignvecError, match="more than the model has positions for"):
        model.generate("how? " * 110)
    record = Record(id="a", query="how?", levels={"a": "so " * 200, "b": "b"})
    rows = response_rows(base.tokenizer, [record], ["a", "b"])
    with pytest.raises(AlignvecError, match="more than the model has positions for"):
        preference_rates(base.model, rows, ["a", "b"])


def test_a_tokenizer_of_another_model_is_said(tiny):
    """A token without a row in the embedding is no matter of length."""
    base = load_base(str(tiny(vocab_size=40)), "float32", "cpu")
    model = KnobModel(base.model, base.tokenizer, {})
    with pytest.raises(AlignvecError, match="vocabulary ends at 39"):
        model.generate("how?")
    rows = response_rows(base.tokenizer, [Record(id="a", query="x", levels={"a": "x", "b": "y"})],
                         ["a", "b"])  # fmt: skip
    with pytest.raises(AlignvecError, match="vocabulary ends at 39"):
        preference_rates(base.model, rows, ["a", "b"])


@given(ends=st.tuples(st.integers(0, 120), st.integers(0, 120)).map(sorted))
def test_both_ends_of_a_knob_are_reachable(ends):
    """Rates are counts over counts, and a position between two of them rounds."""
    low, high = (count / 120 for count in ends)
    measured = Calibration(
        levels={"low": -1.0, "high": 1.0},
        safe=(-1.0, 1.0),
        strengths=[-1.0, 1.0],
        top=[0.0, 1.0],
        position=[low, high],
    )
    found = [measured.strength("k", place) for place in ("0/10", "10/10")]
    assert found == pytest.approx([-1.0, 1.0] if low < high else [0.0, 0.0])
