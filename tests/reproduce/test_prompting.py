"""Prompting: the base is really asked what it is said to be, whatever its template takes."""

import numpy as np
import pytest
import torch

from alignvec.base.load import load_base
from alignvec.data import Record
from alignvec.data.spectrum import read_spectrum
from alignvec.errors import AlignvecError
from alignvec.knobs.model import KnobModel
from alignvec.reproduce.prompting import (
    Prompted,
    system_prompt,
    takes_system,
    with_examples,
    with_system,
)
from alignvec.vector.alignment_vector import AlignmentVector
from conftest import TEMPLATE

LEVELS = ["low", "high"]
RECORDS = [
    Record(id=f"{domain}{i}", domain=domain, query=f"{domain} {i}?",
           levels={"low": f"no {i}", "high": f"yes, {domain} is {i}"})
    for domain in ("tea", "rum") for i in range(6)
]  # fmt: skip
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + TEMPLATE
)
DEAF = TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
BE_BRIEF = with_system("Be brief.")


@pytest.fixture
def model(tiny, nudged):
    """Its knob is turned: a base that is told something has it at 0."""
    base = load_base(str(tiny()), "float32", "cpu")
    vector = AlignmentVector.extract(str(tiny()), str(nudged()))
    return KnobModel(base.model, base.tokenizer, {"tea": vector}).set(tea=1.0)


def reaches(model, monkeypatch, told, query):
    """The text that the base is given to answer; a line break is no token of its tokenizer."""
    texts = []
    generate = model.model.generate

    def watched(input_ids, **options):
        texts.append("".join(model.tokenizer.convert_ids_to_tokens(input_ids[0])))
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(model.model, "generate", watched)
    Prompted(model, told).answers([query], 2)
    (text,) = texts
    return text


def by_hand(model, text, answer):
    """Mean log-likelihood of an answer's tokens after a text, in one pass of the base."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    said = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
    with model.at({}), torch.no_grad():
        logits = model.model(torch.tensor([ids + said])).logits[0].log_softmax(-1)
    return np.mean([logits[len(ids) - 1 + place, token].item() for place, token in enumerate(said)])


def test_one_domain_is_told_as_its_spectrum_tells_a_writer():
    (instruction,) = (
        level.instruction for level in read_spectrum("legal").levels if level.name == "expert"
    )
    assert system_prompt({"legal": "expert"}) == instruction
    assert "very sweet" in system_prompt({"tea": "very_sweet"})
    assert '"chosen"' in system_prompt({"legal": "chosen"})


def test_several_domains_are_told_in_one_prompt_each_with_its_level():
    wanted = {"medical": "expert", "legal": "avoidance", "tea": "sweet"}
    text = system_prompt(wanted)
    for domain in ("medical", "legal"):
        about = read_spectrum(domain).about
        assert f"{about}: {system_prompt({domain: wanted[domain]})}" in text
    assert f"about tea: {system_prompt({'tea': 'sweet'})}" in text
    assert text != system_prompt({**wanted, "legal": "expert"})


def test_a_spectrum_of_ones_own_goes_before_the_shipped_one():
    own = read_spectrum("tone").model_copy(update={"domain": "legal", "about": "letters"})
    text = system_prompt({"legal": "formal", "tea": "sweet"}, [own])
    assert f"letters: {own.levels[-1].instruction}" in text


def test_the_base_reads_the_system_message(model, monkeypatch):
    text = reaches(model, monkeypatch, BE_BRIEF, "why?")
    assert text == "<system>Be brief.</s><user>why?</s><assistant>"
    chat = [{"role": "system", "content": "Own."}, {"role": "user", "content": "why?"}]
    assert BE_BRIEF(chat)[0] == {"role": "system", "content": "Be brief.\n\nOwn."}
    assert BE_BRIEF(chat)[1:] == chat[1:]


@pytest.mark.parametrize("template", [NO_SYSTEM, DEAF])
def test_without_a_place_for_it_the_question_begins_with_it(model, monkeypatch, template):
    model.tokenizer.chat_template = template
    assert not takes_system(model.tokenizer)
    chat = Prompted(model, BE_BRIEF).asked("why?")
    assert chat == [{"role": "user", "content": "Be brief.\n\nwhy?"}]
    assert "<user>Be brief.<pad><pad>why?" in reaches(model, monkeypatch, BE_BRIEF, "why?")
    assert Prompted(model, BE_BRIEF).scores(RECORDS[:2], LEVELS).shape == (2, 2)


def test_a_base_without_a_template_reads_the_turns(model, monkeypatch):
    model.tokenizer.chat_template = None
    told = with_examples(RECORDS, {"tea": "high"}, each=2)
    chat = told("why?")
    text = reaches(model, monkeypatch, told, "why?")
    assert text == "".join(f"{turn['content']}<pad><pad>" for turn in chat)


def test_examples_are_train_records_answered_at_the_level(model, monkeypatch):
    told = with_examples(RECORDS, {"tea": "high"}, each=3)
    *shown, asked = told("why?")
    assert asked == {"role": "user", "content": "why?"}
    pairs = [(one["content"], two["content"]) for one, two in zip(*[iter(shown)] * 2, strict=True)]
    of = {record.query: record.levels["high"] for record in RECORDS if record.domain == "tea"}
    assert len(set(pairs)) == 3
    assert all(of[question] == answer for question, answer in pairs)
    assert [turn["role"] for turn in shown] == ["user", "assistant"] * 3
    text = reaches(model, monkeypatch, told, "why?")
    assert all(f"<user>{one}</s><assistant>{two}</s>" in text for one, two in pairs)


def test_the_choice_of_examples_is_the_same_every_time_and_never_the_query_itself():
    told = with_examples(RECORDS, {"tea": "high"}, each=3)
    assert told("why?") == with_examples(RECORDS[::-1], {"tea": "high"}, each=3)("why?")
    others = [with_examples(RECORDS, {"tea": "high"}, 3, seed)("why?") for seed in range(1, 5)]
    assert any(other != told("why?") for other in others)
    first = told("why?")[0]["content"]
    assert [turn["content"] for turn in told(first)].count(first) == 1
    assert len(told(first)) == 7


def test_examples_of_several_domains_take_turns_each_at_its_level():
    chat = with_examples(RECORDS, {"tea": "low", "rum": "high"}, each=2)("why?")
    questions = [turn["content"].split()[0] for turn in chat if turn["role"] == "user"]
    assert questions == ["tea", "rum", "tea", "rum", "why?"]
    said = [turn["content"].split()[0] for turn in chat if turn["role"] == "assistant"]
    assert said == ["no", "yes,", "no", "yes,"]


def test_of_conversations_the_turns_are_examples_and_the_system_message_is_the_querys():
    chat = ({"role": "system", "content": "Theirs."}, {"role": "user", "content": "one?"})
    record = Record(id="a", domain="tea", query="one?", messages=chat, levels={"high": "One."})
    query = [{"role": "system", "content": "Own."}, {"role": "user", "content": "why?"}]
    told = with_examples([record], {"tea": "high"}, each=1)(query)
    assert [turn["content"] for turn in told] == ["Own.", "one?", "One.", "why?"]


def test_too_few_examples_are_told():
    with pytest.raises(AlignvecError, match="7 examples of 'tea' are wanted, and only 6"):
        with_examples(RECORDS, {"tea": "high"}, each=7)
    with pytest.raises(AlignvecError, match="only 0 records have a response 'mid'"):
        with_examples(RECORDS, {"tea": "mid"})


@pytest.mark.parametrize("told", [BE_BRIEF, with_examples(RECORDS, {"tea": "high"}, 2)])
def test_scores_are_those_of_the_base_after_what_it_is_asked(model, told):
    scores = Prompted(model, told).scores(RECORDS[:3], LEVELS)
    expected = [
        [
            by_hand(
                model,
                model.tokenizer.apply_chat_template(
                    told(record.query), add_generation_prompt=True, tokenize=False
                ),
                record.levels[level],
            )
            for level in LEVELS
        ]
        for record in RECORDS[:3]
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert model.setting == {"tea": 1.0}


def test_answers_are_those_of_the_base_whatever_the_knobs_are_at(model):
    queries = ["why?", "how so?"]
    found = Prompted(model, BE_BRIEF).answers(queries, 6)
    with model.at({}):
        assert found == model.generate([BE_BRIEF(query) for query in queries], max_new_tokens=6)
    assert found != model.generate([BE_BRIEF(query) for query in queries], max_new_tokens=6)
