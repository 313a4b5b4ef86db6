"""The engine: each request is answered as it would be alone, whoever comes and goes."""

import asyncio
import math
import random
import threading
import time

import pytest
import torch

from alignvec.base.likelihood import response_scores
from alignvec.base.prompts import Prompt
from alignvec.errors import AlignvecError
from alignvec.knobs.model import KnobModel
from alignvec.serve import scoring, writing
from alignvec.serve.engine import Engine
from alignvec.serve.request import Busy, Failed, Request, Stopped
from alignvec.serve.rows import Rows
from alignvec.serve.sampling import Sampling
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress


@pytest.fixture(scope="module")
def vectors(tiny, nudged):
    full = AlignmentVector.extract(tiny("llama"), nudged("llama"))
    return {"full": full, "low": compress(full, rank=3)}


@pytest.fixture(scope="module")
def make(tiny, vectors):
    def of(**options):
        model = KnobModel.from_pretrained(tiny("llama"), vectors, dtype="float32")
        return Engine(model, **options)

    return of


def request(engine, question="how long?", setting=None, n=1, client="", **sampling):
    tokens = Prompt(engine.model.tokenizer, question).tokens
    checked = {"full": 0.0, "low": 0.0, **(setting or {})}
    if sampling.pop("endless", False):  # of a random model any token may end the turn
        sampling["logit_bias"] = {engine.model.tokenizer.eos_token_id: -100.0}
    return Request(tokens, checked, Sampling(**{"max_tokens": 12, **sampling}), n, client)


async def answers(engine, asked):
    """Texts of a request's answers, with their finish."""
    texts, ends = [""] * asked.n, [None] * asked.n
    async for piece in engine.generate(asked):
        texts[piece.index] += piece.text
        ends[piece.index] = piece.finish
    return list(zip(texts, ends, strict=True))


def within(engine, work):
    """Run `work()` while the engine runs."""

    async def run():
        await engine.start()
        try:
            return await asyncio.wait_for(work(), 120)
        finally:
            await engine.stop()

    return asyncio.run(run())


async def idle(engine):
    """Until nothing runs: the last piece is told a moment before its row is dropped."""
    for _ in range(500):
        if not engine.running and not engine.waiting:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the engine never comes to rest")


def some_requests(engine, count, seed=0):
    chance = random.Random(seed)
    for number in range(count):
        words = "".join(chance.choices("abcdefghij ", k=chance.randint(1, 60)))
        setting = {"full": round(chance.uniform(-1, 1), 2), "low": chance.choice([0, 1, -1.5])}
        yield request(
            engine, f"{words}?", chance.choice([setting, {}]), n=chance.choice([1, 1, 1, 3]),
            client=f"c{number % 5}", max_tokens=chance.randint(1, 25),
            temperature=chance.choice([0, 0.8]), top_p=chance.choice([1, 0.7]), seed=number,
            stop=chance.choice([(), ("e",)]),
            frequency_penalty=chance.choice([0, 0.5]),
        )  # fmt: skip


def test_two_hundred_at_once_are_answered_as_each_alone(make):
    engine = make(max_rows=24, max_waiting=300, prefill_tokens=64)

    async def work():
        asked = list(some_requests(engine, 200))
        leavers = set(random.Random(1).sample(range(200), 40))

        async def leave(one):
            pieces = engine.generate(one)
            async for _ in pieces:
                break
            await pieces.aclose()

        together = await asyncio.gather(
            *(
                leave(one) if number in leavers else answers(engine, one)
                for number, one in enumerate(asked)
            )
        )
        steps = engine.steps
        for number in sorted(set(range(200)) - leavers):
            assert together[number] == await answers(engine, asked[number]), number
        await idle(engine)
        assert steps < (engine.steps - steps) / 4  # they shared their steps

    within(engine, work)


def test_a_greedy_answer_is_that_of_the_folded_model(make, tiny, vectors):
    engine = make()
    folded = KnobModel.from_pretrained(tiny("llama"), vectors, dtype="float32", mode="fold")
    settings = [{}, {"low": 1.0}, {"full": -0.5, "low": 2.0}]

    async def work():
        asked = [request(engine, setting=one, max_tokens=20, temperature=0) for one in settings]
        return await asyncio.gather(*(answers(engine, one) for one in asked))

    for setting, [(text, _)] in zip(settings, within(engine, work), strict=True):
        (wanted,) = folded.set(setting).generate("how long?", max_new_tokens=20)
        assert text.strip() == wanted


def test_no_step_is_computed_for_who_has_gone(make):
    engine = make()

    async def work():
        pieces = engine.generate(request(engine, max_tokens=400, endless=True))
        await anext(pieces)
        await pieces.aclose()
        await answers(engine, request(engine, max_tokens=3))
        steps = engine.steps
        await asyncio.sleep(0.2)
        assert engine.steps == steps
        await idle(engine)

    within(engine, work)


def test_who_waits_and_goes_is_never_read(make):
    engine = make(max_rows=1)

    async def work():
        first = engine.generate(request(engine, max_tokens=400, endless=True))
        await anext(first)
        second = asyncio.create_task(answers(engine, request(engine)))
        await asyncio.sleep(0.05)
        assert engine.waiting == 1
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert engine.waiting == 0
        await first.aclose()

    within(engine, work)


def test_a_full_queue_refuses_and_then_has_room_again(make):
    engine = make(max_rows=1, max_waiting=2)

    async def work():
        running = engine.generate(request(engine, max_tokens=300, endless=True))
        await anext(running)
        waiting = [asyncio.create_task(answers(engine, request(engine))) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(Busy) as refused:
            await answers(engine, request(engine))
        assert refused.value.retry_after >= 1
        await running.aclose()
        await asyncio.gather(*waiting)
        await answers(engine, request(engine))

    within(engine, work)


def test_clients_are_let_in_by_turns(make):
    engine = make(max_rows=1, max_waiting=50)
    order = []

    async def work():
        async def one(client):
            await answers(engine, request(engine, client=client, max_tokens=2))
            order.append(client)

        many = [asyncio.create_task(one("many")) for _ in range(10)]
        await asyncio.sleep(0)
        few = asyncio.create_task(one("few"))
        await asyncio.gather(*many, few)

    within(engine, work)
    assert order.index("few") <= 3


def test_a_long_prompt_does_not_keep_the_others_waiting(make):
    engine = make(prefill_tokens=16)

    async def work():
        running = engine.generate(request(engine, max_tokens=200, endless=True))
        await anext(running)
        long = asyncio.create_task(answers(engine, request(engine, "x" * 300, max_tokens=1)))
        pieces = 0
        while not long.done():
            await anext(running)
            pieces += 1
        await running.aclose()
        return pieces

    assert within(engine, work) > 10


def test_a_long_prompt_lets_a_short_one_by(make):
    engine = make(prefill_tokens=16)
    order = []

    async def work():
        async def one(question, name):
            asked = request(engine, question, client=name, max_tokens=2, endless=True)
            async for _ in engine.generate(asked):
                order.append(name)

        long = asyncio.create_task(one("x" * 400, "long"))
        while not engine.steps:
            await asyncio.sleep(0.001)
        before = engine.steps
        await one("a", "short")
        assert engine.steps < before + 12
        while not long.done():  # and it is not kept waiting by others that come
            await one("b", "short")

    within(engine, work)
    assert order[:2] == ["short"] * 2
    assert order.count("long") == 2
    assert order.count("short") < 50


def test_what_runs_may_end_and_what_does_not_is_told(make):
    async def ending(drain, tokens):
        engine = make()
        await engine.start()
        task = asyncio.create_task(
            answers(engine, request(engine, max_tokens=tokens, endless=True))
        )
        while not engine.steps:  # a short answer may end between two looks
            await asyncio.sleep(0.01)
        await engine.stop(drain)
        with pytest.raises(Stopped):
            await answers(engine, request(engine))
        with pytest.raises(Stopped):
            await engine.score("a?", ["b"], {"full": 0.0, "low": 0.0})
        return (await asyncio.gather(task, return_exceptions=True))[0]

    assert isinstance(asyncio.run(ending(60, 12)), list)
    assert isinstance(asyncio.run(ending(0, 450)), Stopped)


def test_a_knob_turned_too_far_fails_alone(make):
    engine = make()

    async def work():
        far = answers(engine, request(engine, setting={"full": 3e38}))
        near = answers(engine, request(engine, temperature=0))
        return await asyncio.gather(far, near, return_exceptions=True)

    broken, fine = within(engine, work)
    assert isinstance(broken, AlignvecError)
    assert "no numbers" in str(broken)
    other = make()
    assert fine == within(other, lambda: answers(other, request(other, temperature=0)))


def test_likelihoods_are_those_of_the_model(make):
    engine = make()

    async def work():
        asked = request(engine, temperature=0, top_logprobs=2, max_tokens=5, setting={"low": 1.0})
        return [piece async for piece in engine.generate(asked)]

    told = [one for piece in within(engine, work) for one in piece.logprobs]
    assert told
    for token in told:
        assert token.logprob == token.top[0].logprob >= token.top[1].logprob
        assert token.top[0].id == token.id
        assert bytes(token.bytes).decode() == token.text
    assert sum(math.exp(one.logprob) for one in told[0].top) <= 1


def test_scores_are_those_of_the_rates(make, tiny, vectors):
    engine = make()
    responses = ["tea", "a few minutes", "tea"]
    setting = {"full": 0.0, "low": 1.0}
    found = within(engine, lambda: engine.score("how long?", responses, setting))
    model = KnobModel.from_pretrained(tiny("llama"), vectors, dtype="float32").set(setting)
    row = Prompt(model.tokenizer, "how long?").row(responses)
    (wanted,) = response_scores(model.model, [row])
    assert [total / count for total, count in found] == pytest.approx(wanted, rel=1e-4)


def test_of_n_answers_each_is_another_and_all_end(make):
    engine = make()
    asked = request(engine, n=4, temperature=1.0, seed=3, max_tokens=8)
    found = within(engine, lambda: answers(engine, asked))
    assert len({text for text, _ in found}) == 4
    assert {end for _, end in found} <= {"stop", "length"}


def test_a_full_queue_has_a_place_for_who_has_least_in_it(make):
    engine = make(max_rows=1, max_waiting=4)

    async def work():
        running = engine.generate(request(engine, client="many", max_tokens=300, endless=True))
        await anext(running)

        def ask(client):
            return asyncio.create_task(answers(engine, request(engine, client=client)))

        many = [ask("many") for _ in range(4)]
        await asyncio.sleep(0.05)
        few = [ask("few"), ask("few")]
        await asyncio.sleep(0.05)
        assert engine.waiting == 4
        third = ask("few")  # as many as the other then: it is full
        await asyncio.sleep(0.05)
        await running.aclose()
        return await asyncio.gather(*many, *few, third, return_exceptions=True)

    found = within(engine, work)
    assert [isinstance(one, Busy) for one in found] == [False] * 2 + [True] * 2 + [False] * 2 + [
        True
    ]


def test_who_cannot_be_read_is_told_and_the_others_go_on(make, monkeypatch, caplog):
    engine = make()
    read = Rows.read

    def full(rows, tokens, real=None):
        if tokens.shape[1] > 60:
            raise RuntimeError("no room")
        return read(rows, tokens, real)

    monkeypatch.setattr(Rows, "read", full)

    async def work():
        asked = request(engine, max_tokens=60, temperature=0, endless=True)
        running = asyncio.create_task(answers(engine, asked))
        await asyncio.sleep(0.02)
        with pytest.raises(Failed):
            await answers(engine, request(engine, "x" * 100))
        return await running

    [(text, finish)] = within(engine, work)
    assert text
    assert finish == "length"
    assert "no room" in caplog.text


@pytest.mark.parametrize("place", ["admit", "begin", "join", "write"])
def test_whatever_fails_nobody_waits_for_ever(make, monkeypatch, caplog, place):
    engine = make()

    def broken(*_, **__):
        raise ValueError("terces a"[::-1])  # a traceback shows the line

    def wrong(one):
        return Request(one.tokens, {}, one.sampling) if place == "admit" else one

    where = {
        "begin": (writing, "Text"),
        "join": (Rows, "select"),
        "write": (writing, "next_tokens"),
    }

    async def work():
        with monkeypatch.context() as patch:
            if place in where:
                patch.setattr(*where[place], broken)
            with pytest.raises(Failed):
                await asyncio.wait_for(answers(engine, wrong(request(engine))), 20)
        await answers(engine, request(engine))  # and then it goes on

    within(engine, work)
    assert "secret" not in caplog.text
    assert "writing.py" in caplog.text


def test_who_is_just_being_let_in_may_end_too(make, monkeypatch):
    engine, entered = make(), threading.Event()

    class Slow(writing.Text):
        def __init__(self, *given):
            entered.set()
            threading.Event().wait(0.3)
            super().__init__(*given)

    monkeypatch.setattr(writing, "Text", Slow)

    async def run():
        await engine.start()
        task = asyncio.create_task(answers(engine, request(engine)))
        await asyncio.to_thread(entered.wait, 20)
        await engine.stop(30)
        return await task

    assert asyncio.run(run())


def test_numbers_that_overflow_are_none(make):
    engine = make()
    with torch.no_grad():
        engine.model.model.lm_head.weight[7] = 3e38

    async def work():
        asked = [request(engine, f"{word}?", logprobs) for word, logprobs in (("a", {}), ("b", {}))]
        return await asyncio.gather(
            *(answers(engine, one) for one in asked), return_exceptions=True
        )

    assert any("no numbers" in str(one) for one in within(engine, work))


def test_the_bases_own_penalty_of_repetition_is_heeded(make, tiny):
    engine = make()
    folded = KnobModel.from_pretrained(tiny("llama"), {}, dtype="float32")
    (plain,) = folded.generate("how long?", max_new_tokens=20)
    for model in (engine.model.model, folded.model):
        model.generation_config.repetition_penalty = 1.5
    engine = Engine(engine.model)
    [(text, _)] = within(
        engine, lambda: answers(engine, request(engine, max_tokens=20, temperature=0))
    )
    (wanted,) = folded.generate("how long?", max_new_tokens=20)
    assert text.strip() == wanted != plain


def test_what_else_a_base_would_have_is_said_to_be_passed_over(make, caplog):
    model = make().model
    model.model.generation_config.suppress_tokens = [5]
    Engine(model)
    assert "suppress_tokens: passed over" in caplog.text


def test_scores_come_in_parts_between_the_steps_of_answers(make, monkeypatch):
    engine = make()
    responses = [chr(97 + number) * 10 for number in range(8)]
    setting = {"full": 0.0, "low": 1.0}

    async def work():
        whole = await engine.score("how long?", responses, setting)
        monkeypatch.setattr(scoring, "_TOGETHER", 30)
        running = engine.generate(request(engine, max_tokens=400, endless=True))
        await anext(running)
        before = engine.steps
        found = await engine.score("how long?", responses, setting)
        assert engine.steps >= before + 7
        await running.aclose()
        return whole, found

    whole, found = within(engine, work)
    assert [tokens for _, tokens in found] == [10] * 8
    assert [total for total, _ in found] == pytest.approx([total for total, _ in whole], rel=1e-5)


def test_scores_for_who_has_gone_are_not_computed(make, monkeypatch):
    engine = make()
    monkeypatch.setattr(scoring, "_TOGETHER", 1)
    parts = []
    likelihoods = Engine._likelihoods
    monkeypatch.setattr(
        Engine, "_likelihoods", lambda *given: parts.append(1) or likelihoods(*given)
    )

    async def work():
        setting = {"full": 0.0, "low": 0.0}
        task = asyncio.create_task(engine.score("how long?", ["a"] * 500, setting))
        while not parts:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.1)
        done = len(parts)
        await asyncio.sleep(0.1)
        assert len(parts) == done < 500

    within(engine, work)


NO_KNOB = {"full": 0.0, "low": 0.0}


@pytest.fixture
def read(monkeypatch):
    """The responses that were made tokens."""
    found, following = [], Prompt._following

    def slowly(prompt, before, tokens, text):
        found.append(text)
        time.sleep(0.01)
        return following(prompt, before, tokens, text)

    monkeypatch.setattr(Prompt, "_following", slowly)
    return found


@pytest.mark.parametrize(
    ("question", "responses", "longest"),
    [("how long?", ["a", "b" * 600, "c"], 2), ("how long?" * 60, ["a"], 0)],
)
def test_what_is_longer_than_the_context_is_not_scored(make, read, question, responses, longest):
    engine = make()
    with pytest.raises(AlignvecError, match="context is 512 tokens"):
        within(engine, lambda: engine.score(question, responses, NO_KNOB))
    assert len(read) == longest


def test_nothing_more_is_read_for_who_has_gone_or_when_the_engine_stops(make, read):
    engine = make(max_waiting=2)

    async def work():
        tasks = [
            asyncio.create_task(engine.score("how long?", ["a"] * 500, NO_KNOB)) for _ in range(2)
        ]
        while not read:
            await asyncio.sleep(0.001)
        with pytest.raises(Busy):
            await engine.score("how long?", ["a"], NO_KNOB)
        tasks[0].cancel()
        await asyncio.sleep(0.05)
        await engine.stop()
        return await asyncio.gather(*tasks, return_exceptions=True)

    gone, stopped = within(engine, work)
    assert isinstance(gone, asyncio.CancelledError)
    assert isinstance(stopped, Stopped)
    done = len(read)
    time.sleep(0.05)
    assert len(read) == done < 100
