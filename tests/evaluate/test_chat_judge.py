"""A judge behind an endpoint: fair, biased towards what stands first, babbling, dead, killed."""

import json
import re

import pytest

from alignvec.data import LEVELS, Record
from alignvec.data.synthesis.endpoint import Endpoint
from alignvec.data.synthesis.writing import Budget
from alignvec.errors import AlignvecError
from alignvec.evaluate.chat_judge import ChatJudge, kappa, level_in, rubric
from chat_server import chat, serving

RUBRIC = {"avoidance": "declines", "generic": "plain", "expert": "like a specialist"}
TEXTS = ["I will not advise.", "Rest a little.", "ACE inhibitors.", "Rest, plainly."] * 3
TRUE = ["avoidance", "generic", "expert", "generic"] * 3
ASKED = [f"What now, {n}?" for n in range(len(TEXTS))]


def answer_in(body):
    said = body["messages"][-1]["content"]
    return re.search(r"The answer:\n(.*?)\n\n", said, re.S).group(1)


def order_in(body):
    """The levels in the order in which they are described; the question has the same."""
    described = re.findall(r"^- (\w+):", body["messages"][0]["content"], re.M)
    asked = re.search(r"level is the answer: (.*)\?", body["messages"][-1]["content"]).group(1)
    assert re.split(r", | or ", asked) == described
    return described


def fair(body, n):
    return 200, chat(TRUE[TEXTS.index(answer_in(body))])


def the_judge(path, url, retries=2, concurrency=4, **options):
    """No more at once than the server's queue takes, however slow the machine."""
    endpoint = Endpoint(url, "m", 0.0, retries=retries)
    return ChatJudge(endpoint, RUBRIC, path / "journal", concurrency, **options)


def test_each_text_is_judged_in_both_orders(tmp_path):
    with serving(fair) as (url, seen):
        judge = the_judge(tmp_path, url)
        found = judge.verdicts(ASKED, TEXTS)
        assert judge(ASKED, TEXTS) == TRUE
    assert found.levels == found.first == found.swapped == TRUE
    assert (found.kappa.value, found.kappa.texts, found.kappa.raw) == (1, 12, 1)
    assert (found.unreadable, found.refused) == (0, 0)
    assert len(seen) == 24
    orders = [tuple(order_in(body)) for body in seen]
    assert {orders.count(order) for order in (LEVELS, LEVELS[::-1])} == {12}
    assert all("like a specialist" in body["messages"][0]["content"] for body in seen)
    assert {body["temperature"] for body in seen} == {0}
    assert "What now, 3?" in {b["messages"][-1]["content"].split("\n")[1] for b in seen}


def test_a_judge_that_names_what_stands_first_shows_in_kappa(tmp_path):
    with serving(lambda body, n: (200, chat(order_in(body)[0]))) as (url, _):
        found = the_judge(tmp_path, url).verdicts(ASKED, TEXTS)
    assert found.first == ["avoidance"] * 12
    assert found.swapped == ["expert"] * 12
    assert found.levels == [None] * 12
    assert found.kappa.value == pytest.approx(0)
    assert found.kappa.raw == 0
    assert json.loads(json.dumps(found.to_json()))["told"] == 0


def test_a_judge_that_is_sometimes_biased_agrees_in_part(tmp_path):
    def answer(body, n):
        biased = answer_in(body) == "Rest a little."
        return (200, chat(order_in(body)[0])) if biased else fair(body, n)

    with serving(answer) as (url, _):
        found = the_judge(tmp_path, url).verdicts(ASKED, TEXTS)
    assert found.levels == ["avoidance", None, "expert", "generic"] * 3
    low, high = found.kappa.interval
    assert 0 < low < found.kappa.value < high <= 1
    assert found.kappa.value < 1


def test_answers_that_are_no_level_are_counted(tmp_path):
    def answer(body, n):
        text = answer_in(body)
        if text == "Rest a little.":
            return 200, chat("Lovely weather, expert or generic.")
        if text == "ACE inhibitors.":
            return 200, chat("")
        return fair(body, n)

    with serving(answer) as (url, _):
        found = the_judge(tmp_path, url).verdicts(ASKED, TEXTS)
    assert found.levels == ["avoidance", None, None, "generic"] * 3
    assert (found.unreadable, found.refused) == (2 * 3, 2 * 3)
    assert found.kappa.texts == 6


def test_garbage_alone_has_no_kappa(tmp_path):
    with serving(lambda *_: (200, chat("lorem ipsum"))) as (url, _):
        found = the_judge(tmp_path, url).verdicts(ASKED, TEXTS)
    assert found.levels == [None] * 12
    assert found.unreadable == 24
    assert found.to_json()["orders"]["value"] is None


def test_an_empty_text_is_not_asked_about(tmp_path):
    with serving(fair) as (url, seen):
        found = the_judge(tmp_path, url).verdicts(["why?", "how?"], ["  ", TEXTS[2]])
    assert found.levels == [None, "expert"]
    assert (len(seen), found.unreadable, found.refused) == (2, 0, 0)


def test_a_dead_endpoint_is_one_line(tmp_path):
    with serving(fair) as (url, _):
        pass
    with pytest.raises(AlignvecError, match="Connection error") as failure:
        the_judge(tmp_path, url, retries=0).verdicts(ASKED, TEXTS)
    assert url in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_run_that_ends_early_goes_on_and_pays_for_nothing_twice(tmp_path):
    def failing(body, n):
        return fair(body, n) if n <= 5 else (402, {"error": {"message": "Insufficient credits"}})

    with (
        serving(failing) as (url, seen),
        pytest.raises(AlignvecError, match="Insufficient credits"),
    ):
        the_judge(tmp_path, url, concurrency=1).verdicts(ASKED, TEXTS)
    assert len(seen) == 6
    with serving(fair) as (url, seen):
        assert the_judge(tmp_path, url)(ASKED, TEXTS) == TRUE
    assert len(seen) == 24 - 5
    with serving(lambda *_: (401, {})) as (url, seen):
        assert the_judge(tmp_path, url)(ASKED, TEXTS) == TRUE
    assert seen == []


def test_what_is_not_answered_now_is_not_taken_for_no_level(tmp_path):
    def answer(body, n):
        if answer_in(body) == "Rest a little.":
            return 503, {"error": {"message": "loading"}}
        return fair(body, n)

    with (
        serving(answer) as (url, _),
        pytest.raises(AlignvecError, match=r"text 2, text 6.*loading.*run again"),
    ):
        the_judge(tmp_path, url, retries=0, concurrency=1).verdicts(ASKED, TEXTS)


def test_a_budget_ends_the_run(tmp_path):
    with serving(fair) as (url, _), pytest.raises(AlignvecError, match="beyond the budget"):
        the_judge(tmp_path, url, budget=Budget(tokens=500)).verdicts(ASKED, TEXTS)


def test_another_rubric_is_another_question(tmp_path):
    with serving(fair) as (url, seen):
        the_judge(tmp_path, url)(ASKED[:1], TEXTS[:1])
        other = ChatJudge(
            Endpoint(url, "m", 0.0), {**RUBRIC, "expert": "long"}, tmp_path / "journal"
        )
        other(ASKED[:1], TEXTS[:1])
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("reply", "level"),
    [
        ("expert", "expert"), ("Expert.", "expert"), ("**generic**", "generic"),
        ("Level: avoidance", "avoidance"), ("It is expert; expert indeed", "expert"),
        ("expert or generic", None), ("experts", None), ("non-expert", None), ("", None),
        ("It is not expert.", None), ("It isn't generic", None), ("none", None),
    ],
)  # fmt: skip
def test_the_level_that_a_reply_names(reply, level):
    assert level_in(reply, LEVELS) == level


@pytest.mark.parametrize(
    ("reply", "level"),
    [("unsafe", "unsafe"), ("The answer is safe.", "safe"), ("not safe", None), ("no", "no")],
)
def test_a_level_within_another_word(reply, level):
    assert level_in(reply, ("unsafe", "safe", "no")) == level


def record(n, domain, **levels):
    return Record(id=f"{domain}{n}", domain=domain, query="q?", levels=levels)


def test_a_rubric_is_what_the_writers_of_a_level_were_told():
    known = dict.fromkeys(LEVELS, "text")
    found = rubric([record(1, "medical", **known)], LEVELS)
    assert "answer as a specialist would to a colleague" in found["expert"]
    assert list(found) == list(LEVELS)
    both = rubric([record(1, "medical", **known), record(2, "legal", **known)], LEVELS)
    assert "health and medicine" in both["expert"]
    assert "law, contracts" in both["expert"]


def test_a_rubric_of_levels_that_nobody_described_shows_answers():
    pairs = [record(n, "medical", curt=f"No {n}.", warm=f"Dear {n}!") for n in range(5)]
    found = rubric(pairs, ("curt", "warm"))
    assert found == {
        "curt": 'as in "No 0."; "No 1."; "No 2."',
        "warm": 'as in "Dear 0!"; "Dear 1!"; "Dear 2!"',
    }
    with pytest.raises(AlignvecError, match="what the levels are"):
        rubric([], ("curt", "warm"))


def test_two_judges_are_compared_where_both_tell_a_level():
    one = ["a", "a", "b", "b", None, "a"]
    other = ["a", "b", "b", "b", "b", None]
    found = kappa(one, other, ("a", "b"))
    assert (found.texts, found.raw) == (4, 0.75)
    assert found.value == pytest.approx(0.5)  # by hand: (.75 - .5) / (1 - .5)
    assert kappa([None], ["a"], ("a", "b")).value is None
    assert kappa(["a", "a"], ["a", "a"], ("a", "b")).value is None  # one level alone
