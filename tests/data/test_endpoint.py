"""Chat endpoints as they really answer: fields refused, texts in parts, faults in a 200, stumps,
missing counts, limits; and that nobody pays twice for any of it.
"""

import json
import time
from datetime import UTC, datetime
from email.utils import formatdate

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignvec.data.synthesis.answer import completion_of, fault_of
from alignvec.data.synthesis.chat import Task, tokens_in
from alignvec.data.synthesis.endpoint import Endpoint, _said_pause
from alignvec.data.synthesis.journal import Journal
from alignvec.data.synthesis.writing import Budget, write_texts
from alignvec.errors import AlignvecError
from chat_server import TEXT, chat, serving
from conftest import refused, run


def asked(count, room=20):
    system = ("system", "Be brief.")
    return [Task((system, ("user", f"tea {n}?")), room, name=f"q{n}") for n in range(count)]


class Written:
    """What came of asking a server that answers so for some texts."""

    def __init__(self, path, answer, count=1, temperature=0.7, retries=1, budget=None, **options):
        tasks = asked(count)
        with serving(answer) as (url, self.seen):
            writer = Endpoint(url, "m", temperature, retries=retries)
            journal = Journal(path / "journal")
            try:
                self.outcome = write_texts(lambda: tasks, writer, journal, budget, **options)
            finally:
                journal.close()
            found = [journal_text(path, task, writer) for task in tasks]
        self.texts = [one.text for one in found if one]
        self.found = found[0]
        self.tokens = journal.prompt_tokens, journal.completion_tokens
        self.estimated = journal.estimated


def journal_text(path, task, writer):
    journal = Journal(path / "journal")
    try:
        return journal.text(task, writer)
    finally:
        journal.close()


def openai_error(message, param=None, code=None):
    kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def extra_forbidden(field):
    return {"type": "extra_forbidden", "loc": ["body", field], "input": 0,
            "msg": "Extra inputs are not permitted"}  # fmt: skip


UNSUPPORTED = "Unsupported parameter: '{}' is not supported with this model."
REFUSALS = {
    "openai_room": ("max_tokens", 400, openai_error(
        UNSUPPORTED.format("max_tokens") + " Use 'max_completion_tokens' instead.", "max_tokens",
        "unsupported_parameter")),
    "openai_temperature": ("temperature", 400, openai_error(
        "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default "
        "(1) value is supported.", "temperature", "unsupported_value")),
    "azure": ("seed", 400, openai_error("Unrecognized request argument supplied: seed")),
    "fastapi": ("seed", 422, {"detail": [extra_forbidden("seed")]}),
    "mistral": ("seed", 422, {"object": "error", "type": "invalid_request_error",
                              "message": {"detail": [extra_forbidden("seed")]}}),
    "vllm": ("seed", 400, {"object": "error", "type": "BadRequestError", "param": None, "code": 400,
                           "message": str([extra_forbidden("seed")])}),
    "gemini": ("seed", 400, [{"error": {"code": 400, "status": "INVALID_ARGUMENT", "message":
               'Invalid JSON payload received. Unknown name "seed": Cannot find field.'}}]),
    "in_a_200": ("seed", 200, {"error": {"code": 400, "message": "unknown field: seed"}}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_a_field_that_a_server_refuses_is_left_out_from_then_on(tmp_path, name):
    field, status, error = REFUSALS[name]

    def answer(body, n):
        return (status, error) if field in body else (200, chat())

    found = Written(tmp_path, answer, count=3, concurrency=1)
    assert found.texts == [TEXT] * 3
    assert [field in body for body in found.seen] == [True, False, False, False]
    assert all(20 in (b.get("max_tokens"), b.get("max_completion_tokens")) for b in found.seen)
    kept = {"max_tokens", "temperature", "seed"} - {field}
    assert all(kept <= body.keys() for body in found.seen)


def test_several_fields_are_refused_one_after_the_other(tmp_path):
    def answer(body, n):
        for field in ("max_tokens", "temperature", "seed"):
            if field in body:
                return 400, openai_error(UNSUPPORTED.format(field), field)
        return 200, chat()

    found = Written(tmp_path, answer, count=2, concurrency=1)
    assert found.texts == [TEXT] * 2
    assert len(found.seen) == 3 + 2
    assert found.seen[-1].keys() == {"model", "messages", "max_completion_tokens"}


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported",
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
    ],
)
def test_a_model_without_a_system_role_is_told_by_the_user(tmp_path, message):
    def answer(body, n):
        if body["messages"][0]["role"] == "system":
            return 400, openai_error(message)
        return 200, chat()

    found = Written(tmp_path, answer)
    assert found.texts == [TEXT]
    assert found.seen[-1]["messages"] == [{"role": "user", "content": "Be brief.\n\ntea 0?"}]
    assert found.seen[-1]["seed"] == 0


@pytest.mark.parametrize(
    "error",
    [
        openai_error("Invalid 'temperature': expected a value <= 2, but got 3.", "temperature"),
        openai_error("max_tokens is too large: 20. The model's context is 8 tokens.", "max_tokens"),
        {"detail": [{"loc": ["body", "temperature"], "msg": "should be <= 2", "input": {}}]},
    ],
)
def test_a_field_with_a_wrong_value_is_not_left_out(tmp_path, error):
    found = Written(tmp_path, lambda body, n: (400, error))
    assert (found.outcome.failed, len(found.seen)) == (1, 1)
    assert "temperature" in found.outcome.missing or "max_tokens" in found.outcome.missing


THOUGHT = "The user wants tea."
GOOD = {
    "parts": chat([{"type": "text", "text": "Tea is ready "},
                   {"type": "text", "text": "after three minutes."}]),
    "part_of_thoughts": chat([{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]},
                              {"type": "text", "text": TEXT}]),
    "bare_strings": chat([TEXT]),
    "deepseek": chat(reasoning_content=THOUGHT),
    "openrouter": chat(reasoning=THOUGHT, reasoning_details=[{"text": THOUGHT}], refusal=None),
    "tags": chat(f"<think>\n{THOUGHT}\n</think>\n\n{TEXT}"),
    "closing_tag_alone": chat(f"{THOUGHT}\n</think>\n\n{TEXT}"),
    "harmony": chat(f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant"
                    f"<|channel|>final<|message|>{TEXT}"),
    "no_finish_reason": chat(finish=None),
    "error_null": chat() | {"error": None},
    "in_a_list": [chat()],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_the_text_of_an_answer(tmp_path, name):
    found = Written(tmp_path, lambda body, n: (200, GOOD[name]))
    assert found.texts == [TEXT]
    assert (found.tokens, len(found.seen)) == ((9, 9), 1)


KEYS = ("choices", "message", "content", "error", "usage", "total_tokens", "finish_reason", "code",
        "type", "param", "detail", "loc", "msg", "status", "metadata", "refusal")  # fmt: skip
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
ANY = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    ),
)


@example(400, {"error": {"loc": True, "msg": True}}, False)
@given(st.sampled_from([200, 200, 400, 429, 500]), ANY, st.booleans())
@settings(max_examples=300, deadline=None)
def test_whatever_a_server_says_is_a_fault_or_an_answer(status, body, in_choices):
    if in_choices:
        body = {"choices": [body]}
    if fault_of(status, body) is None:
        completion = completion_of(asked(1)[0], body)
        assert completion.text or completion.rejected


@pytest.mark.parametrize("finish", ["length", "max_tokens", "model_length"])
def test_a_text_cut_off_at_its_length(tmp_path, finish):
    found = Written(tmp_path, lambda body, n: (200, chat("Tee ist gr�", finish)))
    assert found.texts == ["Tee ist gr"]
    assert found.found.cut_off


BAD = {
    "filtered": (chat(finish="content_filter"), "content_filter"),
    "gemini": (chat(finish="SAFETY"), "SAFETY"),
    "deepseek": (chat(finish="insufficient_system_resource"), "insufficient"),
    "refusal": (chat(None, refusal="I cannot do that."), "I cannot do that."),
    "refusal_part": (chat([{"type": "refusal", "refusal": "I cannot."}]), "I cannot."),
    "empty": (chat(""), "empty"),
    "null": (chat(None), "empty"),
    "blank_parts": (chat([{"type": "text", "text": " "}]), "empty"),
    "no_choices": (chat() | {"choices": []}, "empty"),
    "reasoning_alone": (chat(None, reasoning_content=THOUGHT), "reasoning and no text"),
    "open_tag": (chat(f"<think>{THOUGHT}"), "reasoning and no text"),
    "encoding": (chat("Tee ist gr�n."), "encoding"),
    "half_a_pair": (chat("Tea \ud83c is ready."), "encoding"),
    "error_midway": (chat() | {"error": {"code": 502, "message": "Upstream died"}}, "Upstream"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_text_is_paid_for_and_asked_for_under_another_seed(tmp_path, name):
    bad, reason = BAD[name]
    found = Written(tmp_path, lambda body, n: (200, bad if n < 3 else chat()))
    assert found.texts == [TEXT]
    assert len({body["seed"] for body in found.seen}) == len(found.seen) == 3
    assert found.tokens == (27, 27)

    other = tmp_path / "other"
    other.mkdir()
    never = Written(other, lambda body, n: (200, bad), count=2, concurrency=1)
    assert never.outcome.failed == 2
    assert "q0, q1" in never.outcome.missing
    assert reason in never.outcome.missing
    assert never.tokens == (len(never.seen) * 9, len(never.seen) * 9)
    again = Written(other, lambda body, n: (200, chat()), count=2, concurrency=7)
    assert (again.seen, again.outcome.missing) == ([], never.outcome.missing)


def test_a_greedy_writer_would_only_say_the_same_again(tmp_path):
    found = Written(tmp_path, lambda body, n: (200, chat("")), temperature=0.0)
    assert (found.outcome.failed, len(found.seen)) == (1, 1)


def test_no_room_but_for_reasoning_is_no_matter_of_seeds(tmp_path):
    answer = chat(None, "length", (9, 20), reasoning_content=THOUGHT)
    found = Written(tmp_path, lambda body, n: (200, answer))
    assert len(found.seen) == 1
    assert "cut off at 20 tokens: turn the model's reasoning off" in found.outcome.missing


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, None), ({}, None), ({"prompt_tokens": None, "completion_tokens": None}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        ({"prompt_tokens": -1, "completion_tokens": "many"}, None), ([], None), ("none", None),
        ({"prompt_tokens": 9, "total_tokens": 20}, (9, 11)),
        ({"prompt_tokens": "9", "completion_tokens": 11.0}, (9, 11)),
        ({"input_tokens": 9, "output_tokens": 11}, (9, 11)),
        ({"prompt_tokens": 9, "completion_tokens": 11, "extra": {"reasoning_tokens": 3}}, (9, 11)),
    ],
)  # fmt: skip
def test_tokens_that_a_server_does_not_count_are_estimated(tmp_path, usage, tokens):
    found = Written(tmp_path, lambda body, n: (200, chat() | {"usage": usage}))
    assert found.texts == [TEXT]
    assert found.estimated == (tokens is None)
    assert found.tokens == (tokens or (asked(1)[0].prompt_tokens, tokens_in(TEXT)))


def test_reasoning_that_nobody_counts_is_estimated_too(tmp_path):
    body = chat(usage=None, reasoning_content="hmm " * 100)
    assert Written(tmp_path, lambda *_: (200, body)).tokens[1] > 100


def test_an_estimate_does_not_depend_on_the_script():
    assert tokens_in("水温八十度，泡三分钟即可。") > 7


@pytest.mark.parametrize("bad", [chat(usage=None), chat("", usage=None), chat(usage=(30, 20))])
def test_a_budget_holds_whatever_is_answered(tmp_path, bad):
    budget = Budget(tokens=200)
    found = Written(tmp_path, lambda *_: (200, bad), count=50, budget=budget, concurrency=1)
    assert found.outcome.beyond > 0
    assert sum(found.tokens) <= 200
    seen = len(found.seen)
    again = Written(tmp_path, lambda *_: (200, bad), count=50, budget=budget, concurrency=9)
    assert sum(again.tokens) <= 200
    keys = [json.dumps(b, sort_keys=True) for b in found.seen + again.seen]
    assert len(set(keys)) == len(keys) >= seen


def test_a_budget_learns_what_an_answer_costs(tmp_path):
    """It is estimated at 27 tokens; at the third there are 40 left."""
    budget = Budget(tokens=200)
    found = Written(
        tmp_path, lambda *_: (200, chat(usage=(60, 20))), count=9, budget=budget, concurrency=1
    )
    assert (found.outcome.written, found.outcome.beyond) == (2, 7)


PASSING = {
    "429": (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"}),
    "503_in_a_200": (200, {"error": {"message": "no server", "code": 503}}),
    "vllm_in_a_200": (200, {"object": "error", "message": "busy", "type": "x", "code": 429}),
    "type_in_a_200": (200, {"error": {"message": "busy", "type": "rate_limit_error"}}),
    "string_in_a_200": (200, {"error": "the model crashed"}),
    "html": (200, b"<html>bad gateway</html>"),
    "no_json": (500, b""),
    "error_and_no_choices": (200, {"choices": [], "error": {"message": "busy", "code": 503}}),
    "choices_null": (200, {"id": "c", "choices": None}),
    "reset": (429, {"error": {"message": "slow"}}, {"x-ratelimit-reset-requests": "10ms"}),
    "milliseconds": (429, {"error": {"message": "slow"}}, {"retry-after-ms": "10"}),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_waited_for_and_asked_again(tmp_path, name):
    found = Written(tmp_path, lambda body, n: PASSING[name] if n == 1 else (200, chat()))
    assert found.texts == [TEXT]
    assert found.seen[0] == found.seen[1]
    assert found.tokens == (9, 9)


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "0.4"},
        {"retry-after-ms": "400"},
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "400ms",
         "x-ratelimit-remaining-tokens": "70", "x-ratelimit-reset-tokens": "6m0s"},
    ],
)  # fmt: skip
def test_a_server_says_how_long_to_wait(tmp_path, headers, monkeypatch):
    monkeypatch.setattr("alignvec.data.synthesis.endpoint._LONGEST_PAUSE", 0.0)
    slow = 429, {"error": {"message": "slow down"}}, headers
    start = time.monotonic()
    assert Written(tmp_path, lambda body, n: slow if n < 2 else (200, chat())).texts == [TEXT]
    assert time.monotonic() - start >= 0.4


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": lambda at: formatdate(at, usegmt=True)}, 90),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 99999 00:00:00 GMT"}, None),
        ({"x-ratelimit-reset-tokens": "1m30.5s"}, 90.5),
        ({"x-ratelimit-reset": lambda at: str(int(at * 1000))}, 90),
        ({"x-ratelimit-reset": lambda at: str(int(at))}, 90),
        ({"x-ratelimit-reset": lambda at: datetime.fromtimestamp(at, UTC).isoformat()}, 90),
        ({"x-ratelimit-reset": "tomorrow"}, None),
        ({"x-ratelimit-reset-requests": "2", "x-ratelimit-remaining-requests": "7"}, None),
        ({}, None),
    ],
)
def test_pauses_in_the_words_of_headers(headers, seconds):
    at = time.time() + 90  # a header may tell when, not how long
    headers = {name: said(at) if callable(said) else said for name, said in headers.items()}
    assert _said_pause(headers) == (None if seconds is None else pytest.approx(seconds, abs=30))


STOPPING = {
    "key": (401, openai_error("Incorrect API key provided"), "Incorrect API key"),
    "model": (404, openai_error("The model 'm' does not exist"), "does not exist"),
    "money": (402, {"error": {"message": "Insufficient credits", "code": 402}}, "credits"),
    "quota": (429, openai_error("You exceeded your quota", code="insufficient_quota"), "quota"),
    "in_a_200": (200, {"error": {"message": "No auth credentials", "code": 401}}, "No auth"),
}


@pytest.mark.parametrize("name", STOPPING)
def test_what_meets_every_request_ends_the_run_at_once(tmp_path, name):
    status, error, words = STOPPING[name]
    with pytest.raises(AlignvecError, match=words):
        Written(tmp_path, lambda *_: (status, error), count=30, retries=8, concurrency=1)


def test_a_limit_of_hours_is_not_waited_for(tmp_path):
    limit = 429, {"error": {"message": "daily limit"}}, {"Retry-After": "7200"}
    with pytest.raises(AlignvecError, match="daily limit; run again in 7200 seconds"):
        Written(tmp_path, lambda *_: limit, retries=8)


def test_a_refused_text_is_kept_as_such_and_the_others_are_written(tmp_path):
    def answer(body, n):
        if "tea 1?" in body["messages"][-1]["content"]:
            return 400, openai_error("The prompt was filtered", code="content_filter")
        return 200, chat()

    found = Written(tmp_path, answer, count=3, concurrency=1)
    assert (found.outcome.written, found.outcome.failed, len(found.seen)) == (2, 1, 3)
    assert "q1 (The prompt was filtered)" in found.outcome.missing
    assert found.tokens == (18 + asked(2)[1].prompt_tokens, 18)  # it was read
    again = Written(tmp_path, answer, count=3)
    assert (again.seen, again.outcome.missing) == ([], found.outcome.missing)


def test_a_server_that_was_down_is_asked_again(tmp_path):
    down = Written(tmp_path, lambda *_: (503, {"error": {"message": "loading"}}), retries=0)
    assert down.outcome.unanswered == 1
    assert "q0 (loading); 1 of them may come if you run again" in down.outcome.missing
    assert Written(tmp_path, lambda *_: (200, chat())).texts == [TEXT]


def test_a_server_that_refused_everything_and_was_mended_is_asked_again(tmp_path):
    no = Written(tmp_path, lambda *_: (400, openai_error("no chat template")), count=3)
    assert no.outcome.failed == 3
    assert Written(tmp_path, lambda *_: (200, chat()), count=3).texts == [TEXT] * 3


def test_the_command_line_says_what_is_missing_and_what_was_estimated(tmp_path):
    queries, out = tmp_path / "queries.jsonl", tmp_path / "records.jsonl"
    lines = [{"id": f"q{n}", "domain": "tone", "query": f"Why {n}?"} for n in range(2)]
    queries.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def answer(body, n):
        if "Why 1?" in body["messages"][-1]["content"]:
            return 400, openai_error("The prompt was filtered")
        return 200, chat(usage=None)

    with serving(answer) as (url, seen):
        command = ("data", "responses", queries, "--spectrum", "tone", "--endpoint", url,
                   "--model", "m", "-o", out)  # fmt: skip
        line = refused(*command)
        count = len(seen)
        assert refused(*command, "--concurrency", 1) == line
        assert len(seen) == count
        queries.write_text(json.dumps(lines[0]) + "\n")
        shown = run(*command).stdout
    assert "q1 casual, q1 neutral, q1 formal (The prompt was filtered)" in line
    assert "estimated for 3 answers" in shown


SECRET = "sk-proj-0123456789abcdef"


@pytest.mark.parametrize("status", [200, 400, 401, 404, 500])
def test_a_key_is_neither_printed_nor_kept(tmp_path, monkeypatch, caplog, status):
    """A server says what it was sent, far down in a long sentence; the URL holds secrets, too."""
    monkeypatch.setenv("OPENAI_API_KEY", f"{SECRET}\n")  # as a file of it ends
    lines = [{"id": f"q{n}", "domain": "tone", "query": f"Why {n}?"} for n in range(2)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    headers = {}

    def answer(body, n):
        if status == 200 and n == 1:
            return 200, chat("", refusal=f"You sent {SECRET} and pass-word-9.")
        if status == 400 and n == 1:
            return 200, chat()
        if status == 200:
            return 200, chat()
        return status, openai_error(f"{'x' * 190} {SECRET} and pass-word-9, token=abcdefghij")

    with serving(answer, headers) as (url, _):
        url = url.replace("//", "//someone:pass-word-9@") + "?token=abcdefghij"
        command = ("data", "responses", tmp_path / "q.jsonl", "--spectrum", "tone", "--endpoint",
                   url, "--model", "m", "-o", tmp_path / "out.jsonl", "--retries", 0,
                   "--concurrency", 1)  # fmt: skip
        done = run(*command, code=1 if status != 200 else 0)
    kept = "".join(file.read_text() for file in tmp_path.iterdir())
    for secret in (SECRET, SECRET[:12], "pass-word", "abcdefghij"):
        assert secret not in done.output + done.stderr + caplog.text + kept
    assert headers["path"].endswith("/v1/chat/completions?token=abcdefghij")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("{}", "/v1/chat/completions"),
        ("{}/", "/v1/chat/completions"),
        ("{}/chat/completions", "/v1/chat/completions"),
        ("{}/chat/completions/?api-version=2024-10-21",
         "/v1/chat/completions?api-version=2024-10-21"),
    ],
)  # fmt: skip
def test_an_endpoint_is_found_however_its_url_is_pasted(tmp_path, monkeypatch, url, path):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    headers = {}
    with serving(lambda *_: (200, chat()), headers) as (server, _):
        journal = Journal(tmp_path / "journal")
        write_texts(lambda: asked(1), Endpoint(url.format(server), "m"), journal)
        journal.close()
    assert headers["path"] == path
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert headers.get("api-key") == (SECRET if "api-version" in url else None)


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://h/v1", "http://", "http://[::1", "http://h:99999", "http://a b"],
)
def test_what_is_no_url_of_an_endpoint(url):
    with pytest.raises(AlignvecError, match="the endpoint is no URL"):
        Endpoint(url, "m")


def test_a_key_that_no_header_could_hold(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-“quoted”")
    with pytest.raises(AlignvecError, match="OPENAI_API_KEY holds characters"):
        Endpoint(None, "m")


def test_nobody_waits_long_for_a_pause_when_the_run_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("alignvec.data.synthesis.writing._GRACE", 0.2)

    def answer(body, n):
        if n > 1:
            return 429, {"error": {"message": "slow down"}}, {"Retry-After": "200"}
        time.sleep(0.3)
        return 402, {"error": {"message": "Insufficient credits"}}

    start = time.monotonic()
    with pytest.raises(AlignvecError, match="Insufficient credits"):
        Written(tmp_path, answer, count=30, concurrency=4)
    assert time.monotonic() - start < 20


def test_an_empty_file_of_somebody_elses_with_the_name_of_a_journal_stays(tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "q", "domain": "tone", "query": "Why?"}))
    (tmp_path / "out.jsonl.journal").touch()
    with serving(lambda *_: (401, openai_error("no"))) as (url, _):
        for name in ("out.jsonl", "new.jsonl"):
            refused("data", "responses", tmp_path / "q.jsonl", "--spectrum", "tone", "--endpoint",
                    url, "--model", "m", "-o", tmp_path / name)  # fmt: skip
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl.journal", "q.jsonl"]


def test_a_url_without_v1_is_told_so(tmp_path):
    with serving(lambda *_: (404, b"404 page not found")) as (url, _):
        journal = Journal(tmp_path / "journal")
        with pytest.raises(AlignvecError, match="page not found; an endpoint mostly ends in /v1"):
            write_texts(lambda: asked(1), Endpoint(url.removesuffix("/v1"), "m"), journal)
        journal.close()


def test_what_others_are_being_paid_for_is_kept_when_one_ends_the_run(tmp_path):
    """Eight are asked at once; the first is told that the money is spent, the others answered."""

    def answer(body, n):
        if n == 1:
            time.sleep(0.3)
            return 402, {"error": {"message": "Insufficient credits"}}
        time.sleep(0.6)
        return 200, chat()

    with pytest.raises(AlignvecError, match="Insufficient credits"):
        Written(tmp_path, answer, count=30, concurrency=8)
    again = Written(tmp_path, lambda *_: (200, chat()), count=8)
    assert len(again.seen) == 1
