"""What a setting writes: counted as one would by hand, and beside every rate."""

import json

import pytest

from alignvec.data.words import ends_sentence
from alignvec.errors import AlignvecError
from alignvec.evaluate.check import LevelCheck, safe_range
from alignvec.evaluate.rates import Rates
from alignvec.evaluate.text import (
    AnswerProbe,
    TextQuality,
    repeated,
    text_quality,
    unsound,
)
from alignvec.knobs.model import KnobModel
from alignvec.vector.alignment_vector import AlignmentVector
from conftest import refused, run


def test_repetition_is_the_share_of_4_grams_seen_before():
    assert repeated("a b c d e f") == 0
    assert repeated("a b c") == 0
    assert repeated("") == 0
    assert repeated("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated("no no no no no no") == pytest.approx(2 / 3)


def test_a_text_that_counts_repeats_itself():
    assert repeated("10% better, 20% better, 30% better, 40% better, 1.5% better") == pytest.approx(
        4 / 7
    )
    assert repeated("In 1999 and in 2001 it rained.") == 0


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("It is so.", True), ("Is it?\n", True), ('He said "no."', True), ("**So!**", True),
        ("It is (so).", True), ("and then", False), ("3. ", True), ("a list:", False), ("", False),
        ("这样。", True), ("彼は言った「行く。」", True), ("यह ठीक है।", True),
        ("هل هذا صحيح؟", True),
        ("Ist das „so.“", True), ("C'est « fini. »", True), ("สวัสดีครับ", True), ("这样", False),
    ],
)  # fmt: skip
def test_an_ended_answer(text, ends):
    assert ends_sentence(text) is ends


def test_means_over_answers():
    found = text_quality(["a b c d a b c d", "so."], [-1.0, float("nan")])
    assert found == TextQuality(2, 0.1, 4.5, 0.0, 0.5, -1.0)
    assert text_quality(["A 10-day dose", "is 5%."]).numbers == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("喝水" * 12 + "。", "repeats"),
        ("水。", "short"),
        ("早上先喝一杯温水，再慢慢走一会儿，好好休息。", None),
        ("每天8杯水，20分钟，30克盐，5次，7天，9公里。", "numbers"),
    ],
)  # fmt: skip
def test_soundness_where_no_spaces_tell_the_words(said, why):
    base = text_quality(
        ["多喝水，早点睡，慢慢就好了，饭后再走一走。", "把灯关掉，深呼吸，放松下来，听一会儿音乐。"]
    )
    assert unsound(text_quality([said]), base) == why


def test_an_answer_has_the_room_that_the_longest_query_leaves(tiny):
    model = KnobModel.from_pretrained(tiny("gpt2"), {}, "float32")
    probe = AnswerProbe(model, ["a" * 490, "b?"])  # of 512 positions
    assert len(probe.answers({})["greedy"]) == 2
    with pytest.raises(AlignvecError, match=r"leaves no room .* 512 positions.*--answers 0"):
        AnswerProbe(model, ["a" * 510])


def test_soundness_is_measured_on_the_base():
    def sound(*texts):
        return unsound(*texts) is None

    def text(repeated, words, numbers=0.0):
        return TextQuality(8, repeated, words, numbers, 1.0)

    base, references = text(0.1, 60), text(0.0, 30)
    assert sound(text(0.15, 60), base)
    assert unsound(text(0.16, 60), base) == "repeats"
    assert unsound(text(0.1, 39), base) == "short"
    assert sound(text(0.1, 39), base, references)
    assert not sound(text(0.1, 19), base, references)
    assert unsound(text(0.1, 81), base, references) == "long"
    assert sound(text(0.1, 60, 0.1), base)
    assert unsound(text(0.1, 60, 0.2), base) == "numbers"
    assert sound(text(0.1, 60, 0.2), base, text(0.1, 60, 0.1))


def check(strength, is_sound):
    text = {"greedy": TextQuality(1, 0.0, 1.0, 0.0, 1.0)}
    level = f"l{strength}" if strength else None
    return LevelCheck(level, strength, Rates(1, {}, {}, {}), text, None, is_sound, "")


def test_the_safe_range_ends_before_the_first_broken_level():
    assert safe_range([check(a, True) for a in (-1, 0, 0.5, 1)]) == (-1.15, 1.15)
    assert safe_range([check(-1, False), check(0, True), check(1, True)]) == (0, 1.15)
    assert safe_range([check(0.5, False), check(1, True), check(-1, True)]) == (-1.15, 0)
    assert safe_range([check(0.5, True), check(1, False)]) == (0, 0.575)


@pytest.fixture
def knob(tiny, nudged):
    vector = AlignmentVector.extract(tiny(), nudged())
    return KnobModel.from_pretrained(tiny(), {"k": vector}, dtype="float32")


def test_answers_are_those_of_the_setting(knob):
    asked = ["why?", "how so?"]
    probe = AnswerProbe(knob, asked, max_new_tokens=12)
    found = probe({"k": 1.0})
    assert set(found) == {"greedy", "sampled"}
    assert probe.answers({"k": 1.0})["greedy"] == knob.generate(asked, [{"k": 1.0}] * 2, 12)
    again = AnswerProbe(knob, asked, max_new_tokens=12)
    assert again.answers({"k": 1.0}) == probe.answers({"k": 1.0})  # the seed decides
    assert AnswerProbe(knob, asked, max_new_tokens=12, seed=1).answers({"k": 1.0}) != again.answers(
        {"k": 1.0}
    )


def test_the_reader_is_the_base_or_another_model(knob, tiny):
    """Its likelihood of a text is the mean over the text's tokens, given the question."""
    from alignvec.base.load import load_base
    from alignvec.evaluate.text import reading

    other = load_base(str(tiny("qwen2")), "float32")
    asked, texts = ["why?", "how?"], ["so it is.", "thus."]
    by_base = AnswerProbe(knob, asked).quality(texts).likelihood
    by_other = AnswerProbe(knob, asked, other).quality(texts).likelihood
    each = reading(other.model, other.tokenizer, asked, texts)
    assert by_other == pytest.approx(sum(each) / 2, abs=1e-4)
    assert by_other != by_base
    knob.set(k=1.0)
    assert AnswerProbe(knob, asked).quality(texts).likelihood == by_base  # whatever is set


def test_eval_tells_of_the_text(knob, tiny, records, tmp_path):
    vector = tmp_path / "av"
    knob.vectors["k"].save_pretrained(vector)
    asked = ("eval", tiny(), "--vector", f"k={vector}", "--data", records, "--limit", "3")
    run(*asked, "--set", "k=1", "--answers", "2", "-o", tmp_path / "one")
    found = json.loads((tmp_path / "one" / "rates.json").read_text())
    assert found["text"]["greedy"]["answers"] == 2
    assert found["base"]["greedy"] != found["text"]["greedy"]
    answers = json.loads((tmp_path / "one" / "answers.json").read_text())
    assert len(answers["greedy"]) == len(answers["queries"]) == 2
    sweep = tmp_path / "sweep"
    shown = run(*asked, "--sweep", "k=0:1:1", "--answers", "2", "-o", sweep)
    assert "repeated" in shown.stdout
    first = json.loads((sweep / "sweep.json").read_text())
    assert first["points"][0]["sound"] is True  # the base is as the base
    assert first["points"][0]["text"] == first["base"]
    again = run(*asked, "--sweep", "k=0:1:1", "--answers", "2", "-o", sweep)  # taken from there
    assert again.stdout == shown.stdout
    assert json.loads((sweep / "sweep.json").read_text()) == first
    run(*asked, "--sweep", "k=0:1:1", "--answers", "0", "-o", sweep)
    assert json.loads((sweep / "sweep.json").read_text())["points"][0]["text"] is None


def test_another_base_as_reader_must_exist(tiny, records, tmp_path):
    refused("eval", tiny(), "--data", records, "--reader", tmp_path / "none", "-o", tmp_path / "x")
