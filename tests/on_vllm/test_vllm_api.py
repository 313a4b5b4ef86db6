"""`alignvec serve --engine vllm` as OpenAI's own client meets it: one server for the file."""

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm")

import httpx
import openai
from tokenizers import decoders
from transformers import AutoTokenizer

from conftest import build, write_low_rank

KEY = "a-key-of-the-tests"
ASK = [{"role": "user", "content": "how long does tea steep?"}]
NO_END = {"2": -100}  # the token that ends an answer
FINE = {"tea": "fine"}  # which is 1


class Server:
    """Where the server is."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(
            base_url=self.url, timeout=60, headers={"Authorization": f"Bearer {KEY}"}
        )

    def client(self, key=KEY, **options):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    base = build("llama", folder / "base", head_dim=32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()  # no spaces between letters
    tokenizer.save_pretrained(base)
    known = {"levels": {"plain": -1.0, "fine": 1.0}, "safe": [-1.5, 1.5]}
    for seed, knob in enumerate(("tea", "ale")):
        write_low_rank(base, folder / knob, seed, known)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "alignvec", "serve", str(base), "--engine", "vllm",
             "--vector", f"tea={folder / 'tea'}", "--vector", f"ale={folder / 'ale'}",
             "--name", "cup", "--port", str(port), "--state", str(folder / "state.sqlite"),
             "--dtype", "float32", "--", "--max-model-len", "512", "--enforce-eager",
             "--max-num-seqs", "16", "--gpu-memory-utilization", "0.1",
             "--enable-scale-out", "--lora-modules", f"other={folder / 'tea'}", "--max-loras", "2"],
            stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "ALIGNVEC_API_KEY": KEY,
                 "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    here = Server(port)
    try:
        end = time.monotonic() + 600
        while True:
            assert process.poll() is None, (folder / "log").read_text()[-4000:]
            assert time.monotonic() < end, (folder / "log").read_text()[-4000:]
            try:
                if here.http.get("/health").is_success:
                    break
            except httpx.TransportError:
                time.sleep(1)
        yield here
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="module")
def client(served):
    return served.client()


def chat(client, knobs=None, profile=None, **options):
    given = {"model": "cup", "messages": ASK, "max_tokens": 12, "temperature": 0,
             "logit_bias": NO_END, **options}  # fmt: skip
    ours = {"knobs": knobs, "profile": profile}
    extra = {**given.pop("extra_body", {}), **{k: v for k, v in ours.items() if v is not None}}
    return client.chat.completions.create(**given, extra_body=extra)


def text_of(answer):
    return answer.choices[0].message.content


def refusal(call, kind=openai.BadRequestError):
    with pytest.raises(kind) as caught:
        call()
    return caught.value


def test_all_ways_to_turn_a_knob_are_one(served, client):
    put = served.http.put("/v1/profiles/guests", json={"knobs": FINE}, headers={"If-Match": "*"})
    if put.status_code == 412:  # there is none yet
        put = served.http.put("/v1/profiles/guests", json={"knobs": FINE})
    put.raise_for_status()
    base = chat(client)
    ways = [
        chat(client, {"tea": 1}),
        chat(client, FINE),
        chat(client, model="cup:tea=fine"),
        chat(client, model="cup:tea=1"),
        chat(client, profile="guests"),
        chat(client, extra_body={"vllm_xargs": {"knobs": "tea=fine,ale=0"}}),
    ]
    assert {text_of(one) for one in ways} == {text_of(ways[0])}
    assert text_of(ways[0]) != text_of(base)
    for one in ways:
        assert one.model == "cup"
        assert one.alignvec["knobs"] == {"tea": 1.0, "ale": 0.0}
    assert [one.alignvec["profile"] for one in ways] == [None] * 4 + ["guests", None]
    assert base.alignvec == {
        "knobs": {"tea": 0.0, "ale": 0.0}, "profile": None, "domain": None, "beyond_safe": [],
    }  # fmt: skip
    assert chat(client, {"tea": 2}).alignvec["beyond_safe"] == ["tea"]
    assert text_of(chat(client, {})) == text_of(base)


def test_every_route_that_writes_is_steered(served, client):
    def told(path, body, knobs):
        answer = served.http.post(path, json={"model": "cup", "temperature": 0, **body, **knobs})
        assert answer.is_success, answer.text
        found = answer.json()
        if path.startswith("/inference"):
            return found["choices"][0]["token_ids"]
        assert found["alignvec"]["knobs"] == {"tea": (knobs and 1.0) or 0.0, "ale": 0.0}
        return json.dumps(found.get("choices") or found.get("output") or found.get("content"))

    tokens = [ord(c) - 32 + 5 for c in "tea is"]
    routes = [
        ("/v1/completions", {"prompt": "tea is", "max_tokens": 8}),
        ("/v1/chat/completions/batch", {"messages": [ASK, ASK], "max_tokens": 8}),
        ("/v1/messages", {"messages": ASK, "max_tokens": 8}),
        ("/v1/responses", {"input": "tea is", "max_output_tokens": 8}),
        ("/invocations", {"messages": ASK, "max_tokens": 8}),
        ("/inference/v1/generate", {"token_ids": tokens, "sampling_params":
            {"max_tokens": 8, "temperature": 0}}),
    ]  # fmt: skip
    for path, body in routes:
        if path == "/inference/v1/generate":
            body = {key: value for key, value in body.items() if key != "temperature"}
        assert told(path, body, {}) != told(path, body, {"knobs": FINE}), path
    rendered = served.http.post(
        "/v1/chat/completions/render", json={"model": "cup:tea=fine", "messages": ASK}
    ).json()
    assert rendered["sampling_params"]["extra_args"]["knobs"] == "tea=1.0"


def test_a_stream_is_the_same_answer_and_says_its_setting_as_serve_does(client):
    options = {"n": 2, "temperature": 1, "seed": 7}
    whole = chat(client, FINE, **options)
    usage = {"include_usage": True}
    chunks = list(chat(client, FINE, stream=True, stream_options=usage, **options))
    for index in (0, 1):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        text = "".join(choice.delta.content or "" for choice in mine)
        assert text == whole.choices[index].message.content
        assert [choice.finish_reason for choice in mine][-1] == "length"
    assert not chunks[-1].choices
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 24
    ends = [chunk for chunk in chunks if not chunk.choices or chunk.choices[0].finish_reason]
    assert len(ends) == 3
    for chunk in (chunks[0], *ends):
        assert chunk.alignvec == whole.alignvec
    assert not any(hasattr(chunk, "alignvec") for chunk in chunks[1:] if chunk not in ends)


def test_log_probabilities_and_completions(client):
    told = chat(client, FINE, logprobs=True, top_logprobs=2).choices[0]
    assert "".join(one.token for one in told.logprobs.content) == told.message.content

    def complete(**options):
        return client.completions.create(
            model="cup:tea=fine", prompt=["tea is", "ale was"], max_tokens=8, temperature=0,
            logit_bias=NO_END, **options,
        )  # fmt: skip

    whole = complete(logprobs=1)
    streamed = {0: "", 1: ""}
    for chunk in complete(stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == {choice.index: choice.text for choice in whole.choices}
    assert whole.choices[0].logprobs.token_logprobs[0] <= 0
    assert whole.alignvec["knobs"] == {"tea": 1.0, "ale": 0.0}


WRONG = [
    ({"knobs": {"tae": 1}}, "knobs", "unknown_knob"),
    ({"knobs": {"tea": "strong"}}, "knobs", "invalid_strength"),
    ({"knobs": {"tea": 1e999}}, "knobs", "invalid_strength"),
    ({"knobs": {"tea": True}}, "knobs", "invalid_strength"),
    ({"knobs": [1]}, "knobs", "invalid_knobs"),
    ({"knobs": "tea=1"}, "knobs", "invalid_knobs"),
    ({"knob": {"tea": 1}}, "knob", "unknown_parameter"),
    ({"profile": "nobody"}, "profile", "unknown_profile"),
    ({"profile": 1}, "profile", "invalid_value"),
    ({"vllm_xargs": {"knobs": "tea"}}, "knobs", "invalid_knobs"),
    ({"vllm_xargs": {"knobs": "tae=1"}}, "knobs", "unknown_knob"),
    ({"vllm_xargs": {"knobs": "tea=1"}, "knobs": {"tea": 1}}, "knobs", "knob_twice"),
    ({"vllm_xargs": [1], "knobs": {"tea": 1}}, "vllm_xargs", "invalid_value"),
    ({"model": "cup:tea"}, "model", "invalid_knobs"),
    ({"model": "cup:tea=1", "knobs": {"tea": 1}}, "knobs", "knob_twice"),
    ({"use_beam_search": True, "n": 2, "knobs": {"tea": 1}}, "use_beam_search",
     "unsupported_parameter"),
    ({"model": "other", "knobs": {"tea": 1}}, "model", "adapter_with_knobs"),
    ({"model": "other", "vllm_xargs": {"knobs": "tea=1"}}, "model", "adapter_with_knobs"),
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
def test_what_is_wrong_is_refused_with_its_field(served, path):
    for wrong, param, code in WRONG:
        body = {"model": "cup", "messages": ASK, "prompt": "a", "max_tokens": 4, **wrong}
        answer = served.http.post(
            path, content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error
        assert error["type"] == "invalid_request_error"


def test_what_cannot_be_steered_is_refused_and_what_says_nothing_is_vllms(served, client):
    def said(path, **body):
        return served.http.post(path, json={"model": "cup", **body})

    scored = {"query": "tea", "items": ["a"], "label_token_ids": [5, 6]}
    refused = said("/generative_scoring", **scored, knobs=FINE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "not_steered")
    assert said("/generative_scoring", **scored).is_success
    assert said("/tokenize", prompt="tea", model="cup:tea=1").json()["count"] == 3
    error = refusal(lambda: chat(client, model="gpt-4"), openai.NotFoundError)
    assert (error.code, error.param) == ("model_not_found", "model")
    other = chat(client, model="other")  # an adapter of the user's own: the same vector at 1
    assert not hasattr(other, "alignvec")
    assert text_of(other) == text_of(chat(client, FINE))
    beams = chat(client, extra_body={"use_beam_search": True}, n=2, logit_bias=None)
    assert beams.alignvec["knobs"] == {"tea": 0.0, "ale": 0.0}
    for content in (b"{", b"[]"):
        answer = served.http.post(
            "/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400


def test_knobs_and_profiles_are_serves(served, client):
    tea, ale = sorted(served.http.get("/v1/knobs").json()["data"], key=lambda one: one["name"])[
        ::-1
    ]
    assert (tea["name"], ale["name"]) == ("tea", "ale")
    assert tea["levels"] == {"plain": -1.0, "fine": 1.0}
    assert tea["safe"] == [-1.5, 1.5]
    assert client.models.list().data[0].id == "cup"
    url = "/v1/profiles/evening"
    made = served.http.put(url, json={"knobs": {"ale": "fine"}}, headers={"If-None-Match": "*"})
    assert made.status_code == 201
    tag = made.headers["etag"]
    assert served.http.get(url).headers["etag"] == tag
    assert chat(client, profile="evening").alignvec["knobs"] == {"tea": 0.0, "ale": 1.0}
    assert served.http.put(url, json={"knobs": {"ale": 2}}).status_code == 428
    assert served.http.put(
        url, json={"knobs": {"ale": 2}}, headers={"If-Match": '"x"'}
    ).status_code == 412  # fmt: skip
    assert (
        served.http.put(url, json={"knobs": {"tae": 2}}).json()["error"]["code"] == "unknown_knob"
    )
    assert served.http.delete(url, headers={"If-Match": tag}).status_code == 204
    assert served.http.get(url).status_code == 404


def test_all_of_it_is_behind_the_key(served):
    for path in ("/v1/knobs", "/v1/profiles", "/v1/models"):
        assert httpx.get(f"{served.url}{path}").status_code == 401
    refusal(lambda: chat(served.client("wrong")), openai.AuthenticationError)


def test_requests_side_by_side_answer_as_each_alone(served, client):
    """60 at once: some streamed, some given up half way, each under a setting of its own."""
    chance = random.Random(0)
    asked = []
    for number in range(60):
        setting = {knob: round(chance.uniform(-1, 1), 2) for knob in ("tea", "ale")}
        setting = {knob: at for knob, at in setting.items() if chance.random() < 0.8}
        messages = [{"role": "user", "content": f"a long question of tea, {number % 4}"}]
        asked.append((number, setting, {"messages": messages, "max_tokens": 16}))

    def answered(one):
        number, setting, options = one
        if number % 3 == 0:
            stream = chat(client, setting, stream=True, **options)
            text = ""
            for count, chunk in enumerate(stream):
                text += chunk.choices[0].delta.content or ""
                if number % 6 == 0 and count == 5:
                    stream.close()
                    return None
            return text
        answer = chat(client, setting, **options)
        assert {k: v for k, v in answer.alignvec["knobs"].items() if v} == {
            k: v for k, v in setting.items() if v
        }
        return text_of(answer)

    with ThreadPoolExecutor(60) as pool:
        together = list(pool.map(answered, asked))
    assert threading.active_count() < 20
    assert sum(text is None for text in together) == 10
    assert len(set(together)) > 20
    for (_, setting, options), text in zip(asked, together, strict=True):
        if text is not None:
            assert text == text_of(chat(client, setting, **options)), setting
