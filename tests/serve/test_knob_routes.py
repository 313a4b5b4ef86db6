"""The routes that are alignvec's own, over HTTP, in an application of anybody's."""

import json
import math

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from alignvec.base.identity import BaseId
from alignvec.errors import AlignvecError
from alignvec.knobs.calibration import trained_calibration
from alignvec.serve.chat import ChatRequest
from alignvec.serve.dial import Dial
from alignvec.serve.errors import ErrorBody, install
from alignvec.serve.profiles import Profiles
from alignvec.serve.routes import knob_routes
from alignvec.vector.alignment_vector import AlignmentVector

LINE = trained_calibration({"avoidance": -1.0, "generic": 0.5, "expert": 1.0}).model_dump()
VECTORS = {
    "medical": AlignmentVector({}, BaseId("base", ""), calibration=LINE),
    "legal": AlignmentVector({}, BaseId("base", "")),
}


class Full(AlignvecError):
    """As of an engine that takes no more."""


class Counting:
    """A response is as likely as it is short, and less so under a setting."""

    async def score(self, messages, responses, setting):
        if messages == "full":
            raise Full("come back later")
        if messages == "long":
            raise AlignvecError("the prompt is longer than the model reads")
        if messages == "broken":
            raise RuntimeError("a secret")
        push = sum(setting.values())
        return [(math.nan if push > 9 else -len(one) - push, len(one)) for one in responses]


def application(tmp_path, scorer=None, ours=True):
    profiles = Profiles(tmp_path / "state.sqlite")
    app = FastAPI()
    if ours:
        install(app)
    app.include_router(knob_routes(Dial("embedded", VECTORS, profiles), profiles, scorer))
    return app


@pytest.fixture
def client(tmp_path):
    return TestClient(application(tmp_path, Counting()), raise_server_exceptions=False)


def error(response, status, code=None, param=None):
    """The message of a refusal, in OpenAI's body."""
    assert response.status_code == status, response.text
    told = ErrorBody.model_validate(response.json()).error
    assert (told.code, told.param) == (code, param), response.text
    return told.message


def test_the_knobs_are_listed(client):
    listed = client.get("/v1/knobs").json()
    assert (listed["object"], listed["model"]) == ("list", "embedded")
    medical, legal = listed["data"]
    assert medical["levels"] == {"avoidance": -1, "generic": 0.5, "expert": 1}
    assert medical["safe"] == list(LINE["safe"])
    assert (legal["name"], legal["safe"], legal["calibration"]) == ("legal", None, None)


def test_a_profile_is_put_read_changed_and_deleted(client):
    path = "/v1/profiles/clinic"
    error(client.get(path), 404, "profile_not_found", "name")
    made = client.put(path, json={"knobs": {"medical": "expert"}}, headers={"If-None-Match": "*"})
    assert made.status_code == 201
    assert made.json()["knobs"] == {"medical": "expert"}
    read = client.get(path)
    assert read.json() == made.json()
    assert read.headers["ETag"] == made.headers["ETag"] == made.json()["etag"]
    assert client.get("/v1/profiles").json()["data"] == [made.json()]
    error(client.put(path, json={"knobs": {}}), 428, "if_match_required", "If-Match")
    mine = {"If-Match": read.headers["ETag"]}
    changed = client.put(path, json={"knobs": {"legal": -1}}, headers=mine)
    assert changed.status_code == 200
    assert "read it again" in error(
        client.put(path, json={"knobs": {}}, headers=mine), 412, "profile_changed", "If-Match"
    )
    error(client.delete(path, headers=mine), 412, "profile_changed", "If-Match")
    error(client.delete(path), 428, "if_match_required", "If-Match")
    gone = client.delete(path, headers={"If-Match": changed.headers["ETag"]})
    assert (gone.status_code, gone.content) == (204, b"")
    error(client.delete(path, headers={"If-Match": "*"}), 404, "profile_not_found", "name")


@pytest.mark.parametrize(
    ("body", "code", "param", "words"),
    [
        ('{"knobs": {"medcal": 1}}', "unknown_knob", "knobs", "did you mean 'medical'?"),
        ('{"knobs": {"medical": "80%"}}', "invalid_strength", "knobs", "was not measured"),
        ('{"knobs": {"medical": NaN}}', "invalid_strength", "knobs", "not a finite number"),
        ('{"knobs": {"\\ud800": 1}}', "unknown_knob", "knobs", "one of legal, medical"),
        ('{"knobs": [1]}', "invalid_knobs", "knobs", "is an object"),
        ('{"knobs": null}', "invalid_knobs", "knobs", "is an object"),
        ("{}", "missing_required_parameter", "knobs", "required"),
        ('{"knobs": {}, "path": "/"}', "unknown_parameter", "path", "no field that is known"),
        ('{"knobs"', "invalid_json", None, "not JSON"),
        ("[1]", "invalid_value", None, "dictionary"),
        (b"\xff", "invalid_json", None, "as JSON"),
        ("[" * 10**5, "invalid_json", None, "as JSON"),
        ('{"knobs": {"medical": %s}}' % ("9" * 5000), "invalid_json", None, "as JSON"),
    ],
)
@pytest.mark.parametrize("ours", [True, False])
def test_what_fits_no_knob_is_not_kept(tmp_path, body, code, param, words, ours):
    client = TestClient(application(tmp_path, ours=ours))  # nothing is raised
    headers = {"Content-Type": "application/json"}
    told = error(client.put("/v1/profiles/p", content=body, headers=headers), 400, code, param)
    assert words in told
    assert client.get("/v1/profiles").json()["data"] == []


def test_a_name_is_no_path(client):
    for name in ("a%20b", ".a", "x" * 65, "%C3%A9", "a%0A"):
        error(client.get(f"/v1/profiles/{name}"), 400, "invalid_value", "name")
        error(client.put(f"/v1/profiles/{name}", json={"knobs": {}}), 400, "invalid_value", "name")
    assert client.get("/v1/profiles/a%2Fb").status_code == 404


def test_responses_are_scored_under_a_setting(client):
    asked = {"prompt": "Why?", "responses": ["ab", "abcd"], "knobs": {"medical": "expert"}}
    found = client.post("/v1/score", json=asked).json()
    assert found["data"] == [
        {"index": 0, "sum": -3, "tokens": 2, "per_token": -1.5},
        {"index": 1, "sum": -5, "tokens": 4, "per_token": -1.25},
    ]
    assert found["alignvec"] == {
        "knobs": {"medical": 1, "legal": 0}, "profile": None, "domain": None, "beyond_safe": [],
    }  # fmt: skip
    client.put("/v1/profiles/p", json={"knobs": {"medical": 2}})
    chat = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    asked = {"messages": chat, "responses": ["a"], "profile": "p", "model": "embedded:legal=1"}
    found = client.post("/v1/score", json=asked).json()
    assert found["data"][0]["sum"] == -4
    assert found["alignvec"]["profile"] == "p"
    assert found["alignvec"]["beyond_safe"] == ["medical"]


def test_a_conversation_is_scored_as_it_is_answered(tmp_path):
    """Roles and parts mean what they mean to a chat."""
    heard = []

    class Hearing:
        async def score(self, messages, responses, setting):
            heard.append(messages)
            return [(-1.0, 1)]

    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": part} for part in ("Why", "?")]},
    ]
    client = TestClient(application(tmp_path, Hearing()))
    assert client.post("/v1/score", json={"messages": turns, "responses": ["a"]}).is_success
    said = ChatRequest.model_validate({"model": "m", "messages": turns}).conversation
    assert heard == [said]
    assert said[0]["role"] == "system"
    assert said[1]["content"] == "Why?"


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"model": "gpt-4"}, 404, "model_not_found", "model"),
        ({"profile": "nobody"}, 400, "unknown_profile", "profile"),
        ({"profile": 1}, 400, "invalid_value", "profile"),
        ({"knobs": {"medical": True}}, 400, "invalid_strength", "knobs"),
        ({"knobs": {"medical": 99}}, 400, "no_likelihood", "knobs"),
        ({"responses": []}, 400, "invalid_value", "responses"),
        ({"responses": ["a", ""]}, 400, "invalid_value", "responses[1]"),
        ({"responses": "a"}, 400, "invalid_value", "responses"),
        ({"responses": ["a"] * 101}, 400, "invalid_value", "responses"),
        ({"messages": [{"role": "user", "content": "a"}]}, 400, "invalid_value", "messages"),
        ({"prompt": None}, 400, "invalid_value", "messages"),
        ({"prompt": None, "messages": []}, 400, "invalid_value", "messages"),
        ({"prompt": None, "messages": [{"role": "x", "content": ""}]}, 400, "unsupported_value",
         "messages[0].role"),
        ({"temperature": 1}, 400, "unknown_parameter", "temperature"),
        ({"prompt": "long"}, 400, "invalid_value", None),
        ({"prompt": "full"}, 500, None, None),
        ({"prompt": "broken"}, 500, None, None),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused_by_its_field(client, change, status, code, param):
    asked = {"prompt": "Why?", "responses": ["a"], **change}
    told = error(client.post("/v1/score", json=asked), status, code, param)
    assert "secret" not in told


def test_an_engine_without_scores_has_no_such_route(tmp_path):
    app = application(tmp_path)
    error(TestClient(app).post("/v1/score", json={}), 404)
    assert "/v1/score" not in app.openapi()["paths"]


def test_the_document_says_how_each_route_refuses(client):
    document = client.get("/openapi.json").json()
    assert "422" not in json.dumps(document)
    for path in document["paths"].values():
        for method in path.values():
            assert {"400", "401", "429", "500"} <= set(method["responses"])
            for status, told in method["responses"].items():
                if not status.startswith("2"):
                    schema = told["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    put = document["paths"]["/v1/profiles/{name}"]["put"]["responses"]
    assert {"200", "201", "412", "413", "428"} <= set(put)
    assert "ETag" in put["201"]["headers"]


def test_whatever_the_document_allows_is_answered_as_it_says(tmp_path):
    """Also what it does not allow: no fault of the server, no body that it does not tell of."""
    app = application(tmp_path, Counting())
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    ways = schema.as_strategy() | schema.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @settings(max_examples=40, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(ways)
    def attempt(case):
        # Which knobs and profiles there are is not in the document: /v1/knobs tells.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    attempt()
