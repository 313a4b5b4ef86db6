"""Bodies of vLLM's routes on their way through the dial, and the mark in its responses."""

import asyncio
import json

import pytest
from starlette.responses import JSONResponse, StreamingResponse

from alignvec import AlignmentVector
from alignvec.base.identity import BaseId
from alignvec.serve.dial import Dial
from alignvec.serve.errors import Refused
from alignvec.serve.profiles import NoProfiles
from alignvec.serve.vllm.marks import marked
from alignvec.serve.vllm.steering import Steering, Way, texts_of

KNOWN = {"levels": {"plain": -1.0, "fine": 1.0}, "safe": [-1.5, 1.5]}
VECTORS = {knob: AlignmentVector({}, BaseId("base", ""), calibration=KNOWN)
           for knob in ("tea", "ale")}  # fmt: skip
ASK = [{"role": "user", "content": "tea?"}]


class Router:
    """Reads the domain in the text itself."""

    reads = "text"

    def domain(self, _, __, texts):
        return ["tea" if "tea" in text else "ale" for text in texts]


def steering(default=None, router=None, names=("cup", "cup:big"), resolves=False):
    dial = Dial("cup", VECTORS, NoProfiles(), default, router)
    texts = (lambda body: texts_of(body, lambda tokens: "tea" * len(tokens))) if router else None
    return Steering(dial, names, {"other", "cup:old"}, resolves, texts)


def steered(body, way=Way.XARGS, **options):
    body = {"messages": ASK, **body}
    turned = steering(**options).steer(body, way)
    return body, turned and {knob: at for knob, at in turned.setting.items() if at}


@pytest.mark.parametrize(
    ("body", "model", "knobs"),
    [
        ({}, None, None),
        ({"model": "cup"}, "cup", None),
        ({"model": "cup", "knobs": {"tea": 0}}, "cup", None),
        ({"model": "cup", "knobs": {"tea": "fine", "ale": 0.1}}, "cup", "tea=1.0,ale=0.1"),
        ({"model": "cup:tea=1/3"}, "cup", None),
        ({"model": "cup:big:tea=fine"}, "cup:big", "tea=1.0"),
        ({"knobs": None, "vllm_xargs": {"knobs": "ale=-0.5"}}, None, "ale=-0.5"),
        ({"vllm_xargs": {"knobs": "", "other": 1}}, None, None),
        ({"knobs": {"tea": 1 / 3}}, None, "tea=0.3333"),
    ],
)
def test_a_body_becomes_one_that_vllm_knows(body, model, knobs):
    other = (body.get("vllm_xargs") or {}).get("other")
    if body.get("model") == "cup:tea=1/3":  # a position has to have been measured
        with pytest.raises(Refused):
            steered(body)
        return
    found, _ = steered(body)
    assert found.get("model") == model
    assert not found.keys() & {"knobs", "profile"}
    args = found.get("vllm_xargs") or {}
    assert args.get("knobs") == knobs
    assert args.get("other") == other


def test_other_ways_of_a_body():
    body, setting = steered({"knobs": {"tea": 1}}, Way.SAMPLING)
    assert body["sampling_params"] == {"extra_args": {"knobs": "tea=1.0"}}
    body, setting = steered(
        {"sampling_params": {"n": 2, "extra_args": {"knobs": {"ale": 1}}}}, Way.SAMPLING
    )
    assert body["sampling_params"] == {"n": 2, "extra_args": {"knobs": "ale=1.0"}}
    body, setting = steered({"model": "cup:tea=1"}, Way.COMPUTES_NOTHING)
    assert body == {"messages": ASK, "model": "cup"}
    assert setting == {"tea": 1.0}


def test_what_says_nothing_has_the_setting_of_the_server():
    assert steered({}, default={"tea": 0.5})[0]["vllm_xargs"] == {"knobs": "tea=0.5"}
    assert "vllm_xargs" not in steered({"knobs": {}}, default={"tea": 0.5})[0]
    assert steered({"model": "other"}, default={"tea": 0.5}) == (
        {"messages": ASK, "model": "other"}, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "way", "options", "code"),
    [
        ({"use_beam_search": True, "knobs": {"tea": 1}}, Way.XARGS, {}, "unsupported_parameter"),
        ({"use_beam_search": True}, Way.XARGS, {"default": {"tea": 1}}, "unsupported_parameter"),
        ({"model": "other", "knobs": {}}, Way.XARGS, {}, "adapter_with_knobs"),
        ({"model": "other", "profile": "x"}, Way.XARGS, {}, "adapter_with_knobs"),
        ({"model": "nobody"}, Way.XARGS, {}, "model_not_found"),
        ({"model": 5}, Way.XARGS, {}, "invalid_value"),
        ({"knob": {"tea": 1}}, Way.XARGS, {}, "unknown_parameter"),
        ({"profiles": "x"}, Way.XARGS, {}, "unknown_parameter"),
        ({"knobs": {"tea": 0}}, Way.UNSTEERED, {}, "not_steered"),
        ({}, Way.UNSTEERED, {"default": {"tea": 1}}, "not_steered"),
        (
            {"messages": None},
            Way.UNSTEERED,
            {"default": {"tea": 1}, "router": Router()},
            "not_steered",
        ),
        ({"vllm_xargs": "tea=1"}, Way.XARGS, {}, "invalid_value"),
        ({"vllm_xargs": {"knobs": 1}}, Way.XARGS, {}, "invalid_knobs"),
        ({"profile": "x"}, Way.XARGS, {}, "unknown_profile"),
    ],
)
def test_what_cannot_be_steered_is_refused(body, way, options, code):
    with pytest.raises(Refused) as caught:
        steered(body, way, **options)
    assert caught.value.code == code


def test_an_adapter_keeps_its_name():
    assert steered({"model": "cup:old"}, Way.XARGS)[0]["model"] == "cup:old"
    assert steered({"model": "nobody"}, resolves=True)[1] is None  # vLLM may know it
    assert steered({"model": "cup:tea=1"}, resolves=True)[1] == {"tea": 1.0}
    assert steered({}, Way.UNSTEERED)[1] == {}


def test_a_router_reads_what_is_asked_in_any_body():
    both = {"tea": 1, "ale": 1}

    def acts(body):
        return steered({"messages": None, "knobs": both, **body}, router=Router())[1]

    ale = [{"role": "user", "content": [{"type": "text", "text": "a pint?"}]},
           {"role": "assistant", "content": "tea"}]  # fmt: skip
    for body in ({"messages": ASK}, {"prompt": "tea"}, {"input": "tea"}, {"prompt": [5, 6]},
                 {"prompt": ["tea", "green tea"]}, {"token_ids": [1]}, {"prompt": [[1], [2]]},
                 {"input": ASK}, {"messages": [ASK, ASK]}):  # fmt: skip
        assert acts(body) == {"tea": 1.0}, body
    for body in ({"messages": ale}, {"prompt": "ale"}, {}, {"messages": [1, None]},
                 {"messages": [{"role": "user"}]}, {"prompt": [None]}):  # fmt: skip
        assert acts(body) == {"ale": 1.0}, body
    with pytest.raises(Refused, match="several domains"):
        acts({"prompt": ["tea", "ale"]})


MARK = {"knobs": {"tea": 1.0, "ale": 0.0}, "profile": None, "domain": None, "beyond_safe": []}


@pytest.fixture
def turned():
    return steering().steer({"knobs": {"tea": 1}}, Way.XARGS)


def test_an_answer_says_its_setting_and_keeps_its_bytes(turned):
    plain = JSONResponse({"a": [1.0, "é"]})
    whole = marked(JSONResponse({"a": [1.0, "é"]}), turned)
    assert json.loads(whole.body) == {"a": [1.0, "é"], "alignvec": MARK}
    assert whole.body.startswith(plain.body[:-1])
    assert whole.headers["content-length"] == str(len(whole.body))
    for other in (JSONResponse({"error": {}}, 400), JSONResponse([{}]), JSONResponse(None)):
        before = other.body
        assert marked(other, turned).body == before


def test_a_stream_says_its_setting_where_it_begins_and_ends(turned):
    def chunk(text, finish=None, **more):
        choice = {"delta": {"content": text}, "finish_reason": finish}
        told = json.dumps({"choices": [choice], **more}, separators=(",", ":"))
        return f"data: {told}\n\n"

    sent = [
        ": wait\n\n", chunk("data: {"), chunk('"finish_reason":"'), chunk("a\n\nb"),
        chunk("c") + chunk("d", "stop"), 'data: {"choices":[],"usage":{}}\n\n',
        'data: {"error":{"message":"x"}}\n\n', "data: [DONE]\n\n",
    ]  # fmt: skip

    async def source():
        for one in sent:
            yield one

    async def read():
        return [one async for one in marked(StreamingResponse(source()), turned).body_iterator]

    got = asyncio.run(read())
    mark = f',"alignvec":{json.dumps(MARK, separators=(",", ":"))}}}\n\n'
    c, d = sent[4].split("\n\n")[:2]
    assert got == [
        sent[0], sent[1][:-3] + mark, sent[2], sent[3], f"{c}\n\n{d[:-1]}{mark}",
        sent[5][:-3] + mark, *sent[6:],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        {"KNOBS": {"tea": 1}},
        {"vllm-xargs": {"knobs": "tea=1"}},
        {"vllm_xargs": {"knob": "tea=1"}},
        {"vllm_xargs": {"profile": "p"}},
        {"extra_body": {"knobs": {"tea": 1}}},
        {"alignvec": {"knobs": {"tea": 1}}},
        {"sampling_params": {"extra_args": {"knobs": "tea=1"}}},
    ],
)
def test_what_is_meant_for_knobs_is_not_passed_over(body):
    with pytest.raises(Refused) as refused:
        steered(body)
    assert refused.value.code == "unknown_parameter"


@pytest.mark.parametrize("way", [way for way in Way if way is not Way.XARGS])
def test_what_another_route_reads_is_not_passed_over_here(way):
    with pytest.raises(Refused, match="'vllm_xargs' here") as refused:
        steered({"vllm_xargs": {"knobs": "tea=1"}}, way)
    assert (refused.value.code, refused.value.param) == ("unknown_parameter", "vllm_xargs")
    steered({"vllm_xargs": {"other": 1}}, way)


@pytest.mark.parametrize("inside", [{"knobs": {"tea": 1}}, {"vllm_xargs": {"knobs": "tea=1"}}])
def test_parameters_of_sampling_hold_knobs_in_their_arguments_alone(inside):
    with pytest.raises(Refused, match="'sampling_params' here"):
        steered({"sampling_params": {"n": 2, **inside}}, Way.SAMPLING)


@pytest.mark.parametrize("body", [{"knobs": {"tea": -101}}, {"model": "cup:tea=1e3"}])
def test_a_strength_that_would_spoil_the_cache_is_refused_before_a_stream_begins(body):
    with pytest.raises(Refused, match="from -100 to 100") as refused:
        steered({"stream": True, **body})
    assert (refused.value.status, refused.value.code) == (400, "invalid_strength")
