"""OpenAI's own client against a server on a tiny model."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from live import ASK, QUESTION, live, tea_model
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams
from pydantic import ValidationError
from tokenizers.processors import TemplateProcessing

from alignvec.base.prompts import Prompt
from alignvec.serve import endpoints
from alignvec.serve.chat import ChatRequest
from alignvec.serve.completion import CompletionReply, CompletionRequest
from alignvec.serve.request import Piece, TokenLogprob
from alignvec.serve.routes import ScoreRequest
from alignvec.serve.spelling import shown

NO_END = {"2": -100}  # the token that ends an answer


@pytest.fixture(scope="module")
def model(tiny, nudged):
    return tea_model(tiny(), nudged())


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    with live(model, tmp_path_factory.mktemp("serve"), tokens=64) as here:
        yield here


@pytest.fixture(scope="module")
def client(served):
    return served.client()


def chat(client, knobs=None, profile=None, **options):
    given = {"model": "tea", "messages": ASK, "max_tokens": 8, "temperature": 0,
             "logit_bias": NO_END, **options}  # fmt: skip
    ours = {"knobs": knobs, "profile": profile}
    extra = {name: value for name, value in ours.items() if value is not None}
    return client.chat.completions.create(**given, extra_body=extra)


def complete(client, **options):
    given = {"model": "tea", "prompt": "tea is", "max_tokens": 8, "temperature": 0,
             "logit_bias": NO_END, **options}  # fmt: skip
    return client.completions.create(**given)


def test_a_chat_is_answered_as_the_model_alone_answers(client, model):
    for strength in (0.0, 1.0, -1.0):
        (alone,) = model.generate([QUESTION], [{"tea": strength}], max_new_tokens=8)
        answer = chat(client, {"tea": strength}, logit_bias=None)
        assert answer.choices[0].message.content.strip() == alone
        assert answer.alignvec["knobs"] == {"tea": strength}


def test_what_an_answer_took_is_told(client):
    answer = chat(client)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(QUESTION) + 3  # around it <user>, </s>, <assistant>
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_a_stream_is_the_same_answer_in_pieces(client):
    whole = chat(client, {"tea": 1}, n=2)
    chunks = list(
        chat(client, {"tea": 1}, n=2, stream=True, stream_options={"include_usage": True})
    )
    for index in (0, 1):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        text = "".join(choice.delta.content or "" for choice in mine)
        assert text == whole.choices[index].message.content
        assert [choice.finish_reason for choice in mine][-1] == "length"
        assert not any(choice.finish_reason for choice in mine[:-1])
    assert not chunks[-1].choices
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].alignvec == chunks[-1].alignvec == whole.alignvec


def test_a_stream_says_nothing_of_usage_unless_asked(client):
    chunks = list(chat(client, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_knobs_are_turned_in_the_body_or_in_the_name(client):
    plain = chat(client, {"tea": "fine"})
    named = chat(client, model="tea:tea=fine")
    assert plain.alignvec == named.alignvec
    assert plain.alignvec["knobs"] == {"tea": 1.0}
    assert plain.choices[0].message.content == named.choices[0].message.content
    assert plain.choices[0].message.content != chat(client).choices[0].message.content
    assert chat(client, {"tea": 2}).alignvec["beyond_safe"] == ["tea"]


def test_a_profile_is_a_setting(served, client):
    served.http.put("/v1/profiles/guests", json={"knobs": {"tea": "fine"}}).raise_for_status()
    answer = chat(client, profile="guests")
    assert answer.alignvec["profile"] == "guests"
    assert answer.alignvec["knobs"] == {"tea": 1.0}


def test_a_seed_gives_the_same_answers_and_n_others(client):
    def texts(seed):
        answer = chat(client, seed=seed, n=3, temperature=1.5)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage.completion_tokens == 24
        return [choice.message.content for choice in answer.choices]

    assert texts(7) == texts(7)
    assert len({*texts(7), *texts(8)}) == 6


def test_an_answer_ends_before_a_stop_string(client):
    whole = chat(client).choices[0].message.content
    for stop in (whole[3:5], [whole[3:5], "never"]):
        cut = chat(client, stop=stop).choices[0]
        assert cut.finish_reason == "stop"
        assert cut.message.content == whole[: whole.index(whole[3:5])]
        streamed = list(chat(client, stop=stop, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
        assert text == cut.message.content


def test_log_probabilities_are_those_of_what_is_written(client):
    def told(**options):
        return chat(client, logprobs=True, top_logprobs=3, **options)

    answer = told().choices[0]
    content = answer.logprobs.content
    assert "".join(one.token for one in content) == answer.message.content
    assert bytes(b for one in content for b in one.bytes).decode() == answer.message.content
    for one in content:
        likely = [top.logprob for top in one.top_logprobs]
        assert len(likely) == 3
        assert likely == sorted(likely, reverse=True)
        assert one.logprob <= 0
    streamed = [
        one
        for chunk in told(stream=True)
        if chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert [one.token for one in streamed] == [one.token for one in content]
    alone = chat(client, logprobs=True).choices[0].logprobs.content
    assert all(not one.top_logprobs for one in alone)


def test_texts_are_gone_on_with(client):
    one = complete(client)
    assert one.object == "text_completion"
    assert one.usage.prompt_tokens == len("tea is")
    tokens = [ord(c) - 32 + 5 for c in "tea is"]
    texts = ["tea is", "ale was", "tea is"]
    expected = [complete(client, prompt=text).choices[0].text for text in texts]
    several = complete(client, prompt=texts, n=2)
    assert [choice.index for choice in several.choices] == list(range(6))
    assert [choice.text for choice in several.choices[::2]] == expected
    assert several.usage.prompt_tokens == 6 + 7 + 6
    assert several.usage.completion_tokens == 6 * 8
    assert complete(client, prompt=tokens).choices[0].text == expected[0]
    assert [c.text for c in complete(client, prompt=[tokens, tokens]).choices] == expected[:1] * 2
    streamed = {}
    for chunk in complete(client, prompt=texts, stream=True):
        choice = chunk.choices[0]
        streamed[choice.index] = streamed.get(choice.index, "") + choice.text
    assert [streamed[index] for index in range(3)] == expected


def test_a_text_begins_as_the_tokenizer_has_it_and_is_not_ended(served, client):
    plain = complete(client)
    core = served.engine.model.tokenizer.backend_tokenizer
    core.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    try:
        begun = complete(client)
        told = [1, *(ord(c) - 32 + 5 for c in "tea is")]
        assert begun.usage.prompt_tokens == plain.usage.prompt_tokens + 1
        assert begun.choices[0].text == complete(client, prompt=told).choices[0].text
    finally:
        core.post_processor = TemplateProcessing(single="$A", special_tokens=[])


def test_texts_tell_log_probabilities_in_their_own_form(client):
    choice = complete(client, logprobs=2).choices[0]
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert told.text_offset == [0, 1, 2, 3, 4, 5, 6, 7]
    for token, logprob, top in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, strict=True
    ):
        assert top[token] == logprob
        assert 2 <= len(top) <= 3


def test_an_offset_counts_characters_however_many_tokens_make_one():
    tokens = [
        TokenLogprob(0, shown(spelled), list(spelled), -1.0)
        for spelled in (b"a", b"\xf0\x9f\x98", b"\x80", b"b")
    ]
    reply = CompletionReply("tea", "", {}, 1, 1, False, True)
    parts = [Piece(0, "a", tokens[:2], 2, None), Piece(0, "\U0001f600b", tokens[2:], 4, "length")]
    told = [reply.chunk(0, part).choices[0].logprobs.text_offset for part in parts]
    assert told == [[0, 1], [1, 2]]


def test_an_answer_may_come_back_as_it_was_sent(client):
    message = chat(client).choices[0].message
    again = [*ASK, message, {"role": "user", "content": [{"type": "text", "text": "and ale?"}]}]
    whole = chat(client, messages=[{"role": "developer", "content": "Be brief."}, *again])
    plain = [*ASK, {"role": "assistant", "content": message.content}, {"role": "user",
             "content": "and ale?"}]  # fmt: skip
    assert (
        whole.choices
        == chat(client, messages=[{"role": "system", "content": "Be brief."}, *plain]).choices
    )


def test_what_changes_nothing_is_taken(client):
    idle = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
            "response_format": {"type": "text"}, "modalities": ["text"], "seed": 1,
            "safety_identifier": "s", "prompt_cache_key": "k", "top_p": 1, "stop": None,
            "presence_penalty": 0, "frequency_penalty": 0}  # fmt: skip
    assert chat(client, **idle).choices == chat(client).choices


def refusal(call, kind=openai.BadRequestError):
    with pytest.raises(kind) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("path", "params", "taken"),
    [
        ("/v1/chat/completions", ChatParams, ChatRequest),
        ("/v1/completions", TextParams, CompletionRequest),
    ],
)
def test_what_openai_has_and_we_have_not_is_refused_by_name(served, path, params, taken):
    needed = {"model": "tea", "max_tokens": 1, "messages": ASK}
    if path == "/v1/completions":
        needed = {"model": "tea", "max_tokens": 1, "prompt": "a"}
    others = params.__annotations__.keys() - taken.model_fields.keys()
    assert {"tools", "reasoning_effort", "audio"} <= others or others == {"suffix"}
    for name in others:
        answer = served.post(path, {**needed, name: "low"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (
            400, "unsupported_parameter", name,
        ), error  # fmt: skip
        assert name in error["message"]
        assert served.post(path, {**needed, name: None}).status_code == 200


def test_who_said_it_is_told_to_templates_that_ask(client, model):
    """Clients of several agents name each of them; most templates have no place for that."""
    named = [{**ASK[0], "name": "ann"}]
    asked = ChatRequest.model_validate({"model": "tea", "messages": named}).conversation
    says = "{% for m in messages %}{{ m.name }}: {{ m.content }}{% endfor %}"
    told = model.tokenizer.apply_chat_template(asked, chat_template=says, tokenize=False)
    assert told == f"ann: {ASK[0]['content']}"
    plain, same = chat(client), chat(client, messages=named)
    assert same.choices[0].message.content == plain.choices[0].message.content


PICTURE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
WRONG = {  # the field -> values, each with the param and code of the refusal
    "temprature": [(0.5, "temprature", "unknown_parameter")],
    "temperature": [(v, "temperature", "invalid_value") for v in (-0.1, 2.1, "hot", True)],
    "top_p": [(v, "top_p", "invalid_value") for v in (-0.1, 1.1)],
    "max_tokens": [(v, "max_tokens", "invalid_value") for v in (0, -1, 1.5, "8")]
    + [(600, "messages", "context_length_exceeded")],
    "n": [(v, "n", "invalid_value") for v in (0, 129, "two")],
    "stop": [
        ("", "stop", "invalid_value"),
        (["a"] * 5, "stop", "invalid_value"),
        (["a", 1], "stop[1]", "invalid_value"),
    ],
    "seed": [(2**63, "seed", "invalid_value"), (0.5, "seed", "invalid_value")],
    "presence_penalty": [(2.1, "presence_penalty", "invalid_value")],
    "frequency_penalty": [(-2.1, "frequency_penalty", "invalid_value")],
    "logit_bias": [
        ({"5": 101}, "logit_bias.5", "invalid_value"),
        ({"96": 1}, "logit_bias", "invalid_value"),
    ],
    "top_logprobs": [(1, "top_logprobs", "invalid_value"), (21, "top_logprobs", "invalid_value")],
    "stream_options": [({"include_usage": True}, "stream_options", "invalid_value")],
    "max_completion_tokens": [(8, "max_tokens", "invalid_value")],
    "store": [(True, "store", "unsupported_value")],
    "response_format": [({"type": "json_object"}, "response_format.type", "unsupported_value")],
    "knobs": [
        ({"tae": 1}, "knobs", "unknown_knob"),
        ({"tea": "strong"}, "knobs", "invalid_strength"),
        ([1], "knobs", "invalid_knobs"),
    ],
    "profile": [("nobody", "profile", "unknown_profile")],
    "messages": [
        ([], "messages", "invalid_value"),
        ("hello", "messages", "invalid_value"),
        ([{"role": "user", "content": PICTURE}], "messages[0].content[0].type",
         "unsupported_value"),
        ([{"role": "tool", "content": "x"}], "messages[0].role", "unsupported_value"),
        ([{"role": "user"}], "messages[0].content", "missing_required_parameter"),
        ([{"role": "user", "content": "a", "name": 1}], "messages[0].name", "invalid_value"),
        ([{"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}],
         "messages[0].tool_calls", "unknown_parameter"),
        ([{"role": "user", "content": "\ud800"}], "messages[0].content", "invalid_value"),
        ([{"role": "user", "content": "a" * 600}], "messages", "context_length_exceeded"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG)
def test_what_is_wrong_is_refused_with_its_field(served, field):
    for value, param, code in WRONG[field]:
        body = {"model": "tea", "messages": ASK, "max_tokens": 4, field: value}
        answer = served.http.post(
            "/v1/chat/completions",
            content=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (
            "chat/completions",
            {"messages": ASK, "stop": ["a"] * 5},
            "stop: List should have at most 4",
        ),
        ("chat/completions", {"messages": [{**ASK[0], "content": []}]}, "at least 1 item"),
        ("completions", {"prompt": []}, "at least 1 item"),
        ("completions", {"prompt": ["a"] * 129}, "prompt: List should have at most 128"),
        ("completions", {"prompt": [1, -1]}, "prompt[1]: Input should be greater"),
    ],
)
def test_of_several_forms_the_one_that_is_meant_says_what_is_wrong(served, path, body, said):
    answer = served.post(f"/v1/{path}", {"model": "tea", **body})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


MANY = {f"x{number}": 1 for number in range(90_000)}


@pytest.mark.parametrize(
    ("taken", "body"),
    [
        (ChatRequest, {"messages": [{}] * 340_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 340_000}]}),
        (ChatRequest, {"messages": [{**ASK[0], **MANY}]}),
        (ChatRequest, {"messages": ASK, "logit_bias": MANY}),
        (ChatRequest, {"messages": ASK, "metadata": MANY}),
        (ChatRequest, {"messages": ASK, "stream_options": MANY}),
        (CompletionRequest, {"prompt": [-1] * 340_000}),
        (ScoreRequest, {"messages": [{}] * 340_000, "responses": ["a"]}),
        (ScoreRequest, {"prompt": "a", "responses": ["a"], **MANY}),
    ],
)
def test_a_body_that_is_wrong_throughout_is_given_up_early(taken, body):
    """A server that collects all of it hears nobody else meanwhile."""
    with pytest.raises(ValidationError) as caught:
        taken.model_validate({"model": "tea", **body})
    assert caught.value.error_count() < 10


def test_half_a_character_is_no_text_to_score_either(served):
    for prompt, response in (("\ud800", "a"), ("a", "\ud800")):
        field = {"prompt": prompt, "responses": [response]}
        answer = served.http.post(
            "/v1/score", content=json.dumps(field), headers={"Content-Type": "application/json"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    scored = served.post("/v1/score", {"prompt": "a", "responses": ["b", "cd"]}).json()
    assert [one["tokens"] for one in scored["data"]] == [1, 2]


def test_texts_that_cannot_be_gone_on_with_are_refused(client):
    def refused(**options):
        error = refusal(lambda: complete(client, **options))
        return error.param, error.code

    assert refused(prompt=[]) == ("prompt", "invalid_value")
    assert refused(prompt=[1, 96]) == ("prompt", "invalid_value")
    assert refused(prompt=["a"] * 65, n=2) == ("n", "invalid_value")
    assert refused(echo=True) == ("echo", "unsupported_value")
    assert refused(best_of=2) == ("best_of", "unsupported_value")
    assert refused(logprobs=6) == ("logprobs", "invalid_value")
    assert refused(prompt="a" * 510) == ("prompt", "context_length_exceeded")
    assert complete(client, best_of=2, n=2).choices


def test_the_client_raises_its_own_errors(client):
    error = refusal(lambda: chat(client, model="gpt-4"), openai.NotFoundError)
    assert error.code == "model_not_found"
    assert "tea" in error.message
    error = refusal(lambda: chat(client, temperature=3))
    assert (error.param, error.type) == ("temperature", "invalid_request_error")
    error = refusal(lambda: client.embeddings.create(model="tea", input="a"), openai.NotFoundError)
    assert "/v1/embeddings" in error.message


def test_the_model_is_listed(client):
    (one,) = client.models.list().data
    assert (one.id, one.object, one.owned_by) == ("tea", "model", "alignvec")
    assert client.models.retrieve("tea") == one
    assert client.models.retrieve("tea:tea=fine").id == "tea:tea=fine"
    assert refusal(lambda: client.models.retrieve("ale"), openai.NotFoundError).param == "model"


def test_nothing_is_computed_for_a_client_that_has_gone(served, client):
    """A stream that is closed, one that is never read, and a request that is given up."""
    long = {"max_tokens": 440, "n": 2, "timeout": 30}
    stream = chat(client, stream=True, **long)
    for _ in range(5):
        next(stream)
    stream.close()
    assert served.quiet(0.5)
    chat(client, stream=True, **long).close()
    assert served.quiet(0.5)
    with pytest.raises(openai.APITimeoutError):
        chat(client, **{**long, "timeout": 0.1})
    assert served.quiet(0.5)
    with pytest.raises(openai.APITimeoutError):
        complete(client, prompt=["a", "b"], max_tokens=400, timeout=0.1)
    assert served.quiet(0.5)
    before = served.engine.steps
    time.sleep(0.2)
    assert served.engine.steps == before


def test_requests_share_the_model(client):
    found = {}

    def ask(strength):
        found[strength] = chat(client, {"tea": strength}, max_tokens=30).choices

    alone = {strength: chat(client, {"tea": strength}, max_tokens=30).choices
             for strength in (-1, 0, 1)}  # fmt: skip
    threads = [threading.Thread(target=ask, args=(strength,)) for strength in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == alone


def test_an_answer_that_takes_too_long_is_given_up(model, tmp_path):
    with live(model, tmp_path, seconds=0.3) as here:
        client = here.client()
        error = refusal(lambda: chat(client, max_tokens=440, n=8), openai.InternalServerError)
        assert (error.status_code, error.code) == (504, "timeout")
        with pytest.raises(openai.APIError, match="not finished") as caught:
            list(chat(client, max_tokens=440, n=8, stream=True))
        assert caught.value.code == "timeout"
        assert here.quiet(0.5)
        assert chat(client, max_tokens=2).choices


def test_a_full_server_says_when_to_come_again(model, tmp_path):
    with live(model, tmp_path, rows=(1, 1)) as here:
        client = here.client()
        streams = [chat(client, stream=True, max_tokens=440) for _ in range(1)]
        next(streams[0])
        waiting = threading.Thread(target=lambda: chat(client, max_tokens=2), daemon=True)
        waiting.start()
        end = time.monotonic() + 5
        while time.monotonic() < end and here.engine.running + here.engine.waiting < 2:
            time.sleep(0.005)
        for stream in (False, True):
            error = refusal(lambda s=stream: chat(client, stream=s), openai.RateLimitError)
            assert error.code == "rate_limit_exceeded"
            assert int(error.response.headers["retry-after"]) >= 1
        streams[0].close()
        waiting.join(10)
        assert chat(client, max_tokens=2).choices  # it has recovered


def test_more_than_there_is_room_for_is_refused_and_not_to_be_tried_again(
    served, client, model, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(served.engine, "cells", 1000)
        error = refusal(lambda: chat(client, n=4, max_tokens=300))
        assert (error.param, error.code) == ("n", "invalid_value")
        assert len(chat(client, n=4, max_tokens=8).choices) == 4
    with live(model, tmp_path, rows=(1, 1)) as here:
        error = refusal(lambda: complete(here.client(), prompt=["a", "b", "c"]))
        assert error.param == "prompt"


def test_scores_take_no_longer_than_is_allowed_and_than_somebody_waits(
    model, tmp_path, monkeypatch
):
    gone = threading.Event()

    async def slow(*_):
        try:
            await asyncio.sleep(20)
        finally:
            gone.set()

    ask = {"prompt": "a", "responses": ["b"]}
    with live(model, tmp_path, seconds=0.5) as here:
        monkeypatch.setattr(here.engine, "score", slow)
        answer = here.post("/v1/score", ask)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        gone.clear()
        with pytest.raises(httpx.ReadTimeout):
            here.post("/v1/score", ask, timeout=0.1)
        assert gone.wait(0.3)


def test_prompts_wait_to_be_read_as_answers_wait_to_be_written(model, tmp_path, monkeypatch):
    """No longer than is allowed, only while somebody listens, and not more than there is room."""
    go_on, begun = threading.Event(), []

    class Slow(Prompt):
        def __init__(self, tokenizer, chat):
            begun.append(chat[-1]["content"])
            go_on.wait(20)
            super().__init__(tokenizer, chat)

    monkeypatch.setattr(endpoints, "Prompt", Slow)
    with live(model, tmp_path, rows=(1, 2), seconds=2) as here, ThreadPoolExecutor(2) as threads:

        def ask(text, **options):
            asked = {"model": "tea", "messages": [{"role": "user", "content": text}]}
            return here.post(body={**asked, "max_tokens": 1}, **options)

        for text in ("read", "not yet"):
            with pytest.raises(httpx.ReadTimeout):
                ask(text, timeout=0.2)
        late = ask("too late")
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        waiting = [threads.submit(ask, "in time") for _ in range(2)]
        time.sleep(0.2)
        full = ask("one too many")
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
        go_on.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
    assert begun == ["read", "in time", "in time"]


def test_a_body_is_read_to_its_limit_and_in_time(model, tmp_path):
    with live(model, tmp_path, body=2000, seconds=0.5) as here:
        long = [{"role": "user", "content": "a" * 3000}]
        error = here.post(body={"model": "tea", "messages": long})
        assert (error.status_code, error.json()["error"]["code"]) == (413, "request_too_large")
        in_parts = here.http.post("/v1/completions", content=(b"x" * 500 for _ in range(9)))
        assert in_parts.status_code == 413
        host, port = here.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 5) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                         b"Content-Length: 100\r\n\r\n{")  # fmt: skip
            assert b" 408 " in slow.recv(1000)
        with socket.create_connection((host, int(port)), 5) as huge:  # refused before it is sent
            huge.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                         b"Content-Length: 1000000000\r\n\r\n")  # fmt: skip
            assert b" 413 " in huge.recv(1000)


def test_what_is_no_json_is_refused(served):
    def refused(content, kind="application/json"):
        answer = served.http.post(
            "/v1/chat/completions", content=content, headers={"Content-Type": kind}
        )
        assert answer.status_code == 400, answer.text
        return answer.json()["error"]

    assert refused(b"{")["code"] == "invalid_json"
    assert refused(b"[]")["type"] == "invalid_request_error"
    assert refused(b'{"a": ' + b"[" * 5000)
    assert refused(b'{"a": ' + b"9" * 5000 + b"}")
    # What a web page may send without being asked: it counts for nothing.
    error = refused(json.dumps({"model": "tea", "messages": ASK}), "text/plain")
    assert "Content-Type: application/json" in error["message"]  # as curl -d alone would send it


def test_counters_tell_what_was_done(model, tmp_path):
    with live(model, tmp_path) as here:
        client = here.client()
        chat(client, n=2)
        list(chat(client, stream=True))
        refusal(lambda: chat(client, temperature=3))
        here.http.get("/nowhere/1")
        here.http.get("/nowhere/2")
        answer = here.http.get("/metrics")
        told = {}
        for line in answer.text.splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                told[name] = float(value)
        chats = 'alignvec_requests_total{route="/v1/chat/completions",status="%s"}'
        assert told[chats % 200] == 2
        assert told[chats % 400] == 1
        assert told['alignvec_requests_total{route="other",status="404"}'] == 2
        assert told["alignvec_prompt_tokens_total"] == 2 * (len(QUESTION) + 3)
        assert told["alignvec_answer_tokens_total"] == 24
        assert told["alignvec_first_token_seconds_count"] == 3
        assert told["alignvec_between_tokens_seconds_count"] == 21
        assert told["alignvec_running"] == told["alignvec_waiting"] == 0
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_the_server_tells_how_it_is(served):
    assert served.http.get("/health").json() == {"status": "ok"}
    assert served.http.get("/ready").json() == {"status": "ok"}
    served.app.state.ready = False
    try:
        answer = served.http.get("/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    finally:
        served.app.state.ready = True


def test_a_stream_is_told_in_events(served):
    with served.http.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": "tea", "messages": ASK, "stream": True, "max_tokens": 2},
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [event for event in "".join(answer.iter_text()).split("\n\n") if event]
    assert events[-1] == "data: [DONE]"
    assert all(isinstance(json.loads(event.removeprefix("data: ")), dict) for event in events[:-1])


def test_a_fault_ends_with_a_500_and_no_trace(served, client, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(served.engine, "generate", broken)
    error = refusal(lambda: chat(client), openai.InternalServerError)
    assert error.status_code == 500
    assert "secret" not in error.response.text
    assert "Traceback" not in error.response.text
