"""Who is let in, and what is told to whom."""

import logging
import re

import openai
import pytest
from live import live, tea_model

from alignvec.base.identity import BaseId
from alignvec.serve.address import is_local
from alignvec.serve.dial import Dial
from alignvec.serve.keys import Keys
from alignvec.serve.playground.site import mount
from alignvec.serve.process import log_requests
from alignvec.serve.request import Piece
from alignvec.serve.security import Access, check_bind
from alignvec.vector.alignment_vector import AlignmentVector
from conftest import refused

ASK = {"model": "tea", "messages": [{"role": "user", "content": "a secret question"}],
       "max_tokens": 2}  # fmt: skip
GUARDED = ("/v1/models", "/v1/knobs", "/v1/profiles", "/metrics", "/openapi.json")


@pytest.fixture(scope="module")
def model(tiny, nudged):
    return tea_model(tiny(), nudged())


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    with live(model, tmp_path_factory.mktemp("open")) as here:
        yield here


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_asked_for_as_soon_as_there_is_one(model, tmp_path):
    keys = Keys(tmp_path / "state.sqlite")
    with live(model, tmp_path, keys=keys) as here:
        assert here.post(body=ASK).status_code == 200
        ann, bob = keys.add("ann"), keys.add("bob")
        for path in GUARDED:
            for headers in (
                {},
                bearer("wrong"),
                {"Authorization": "Bearer"},
                {"Authorization": ann},
            ):
                answer = here.http.get(path, headers=headers)
                assert answer.status_code == 401, path
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
            assert here.http.get(path, headers=bearer(ann)).status_code == 200
        assert here.post(body=ASK).status_code == 401
        assert here.client(bob).models.list().data
        for path in ("/health", "/ready"):
            assert here.http.get(path).status_code == 200
        # As others write it: the paths that lead nowhere are no way around.
        for path in ("//v1/models", "/V1/models", "/v1//models", "/./v1/models", "/%761/models"):
            assert here.http.get(path).status_code in (401, 404)
        keys.revoke("ann")
        keys._until = 0.0  # within a second, elsewhere
        assert here.http.get("/v1/models", headers=bearer(ann)).status_code == 401
        keys.revoke("bob")
        keys._until = 0.0
        with pytest.raises(openai.AuthenticationError):
            here.client(bob).models.list()
        assert here.post(body=ASK).status_code == 401  # the last is gone: nobody is let in


def test_the_key_of_the_environment_is_one_more(model, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNVEC_API_KEY", "sesame")
    with live(model, tmp_path, keys=Keys(tmp_path / "state.sqlite")) as here:
        assert here.client("sesame").models.list().data
        with pytest.raises(openai.AuthenticationError):
            here.client("open").models.list()


def test_a_name_that_points_here_is_not_this_machine(served):
    port = served.url.rsplit(":", 1)[1]
    for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", "[::1]", f"[::1]:{port}"):
        assert served.http.get("/v1/models", headers={"Host": host}).status_code == 200
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.x"):
        for path in ("/v1/models", "/metrics", "/health"):
            answer = served.http.get(path, headers={"Host": host})
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "unknown_host"


def test_other_pages_are_closed_out_unless_they_are_named(model, served, tmp_path):
    ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST",
           "Access-Control-Request-Headers": "content-type"}  # fmt: skip
    closed = served.http.options("/v1/chat/completions", headers=ask)
    assert closed.status_code == 405
    assert not any(name.startswith("access-control") for name in closed.headers)
    named = served.http.get("/v1/models", headers={"Origin": "https://page.example"})
    assert "access-control-allow-origin" not in named.headers
    keys = Keys(tmp_path / "state.sqlite")
    key = keys.add("page")
    with live(model, tmp_path, keys=keys, origins=["https://page.example"]) as here:
        opened = here.http.options("/v1/chat/completions", headers=ask)
        assert opened.headers["access-control-allow-origin"] == "https://page.example"
        other = here.http.options(
            "/v1/chat/completions", headers={**ask, "Origin": "https://other.example"}
        )
        assert "access-control-allow-origin" not in other.headers
        told = {"Origin": "https://page.example"}
        assert here.post(body=ASK, headers=told).status_code == 401
        assert here.post(body=ASK, headers={**told, **bearer(key)}).status_code == 200


def test_the_page_is_no_way_around_the_limits(model, tmp_path):
    """Neither of the body nor of who may read it in a browser, whatever the host is called."""

    def page(app):
        mount(app, "http://127.0.0.1:9")

    with live(model, tmp_path, page=page, local=False, body=2000) as here:
        long = here.post("/gradio_api/queue/join", {"data": ["a" * 2000], "session_hash": "a"})
        assert long.status_code == 413
        other = {"Host": "models.example", "Origin": "https://page.example"}
        for path in ("/", "/config"):
            shown = here.http.get(path, headers=other)
            assert shown.status_code == 200
            assert "access-control-allow-origin" not in shown.headers
        asked = here.http.options(
            "/gradio_api/queue/join", headers={**other, "Access-Control-Request-Method": "POST"}
        )
        assert "access-control-allow-origin" not in asked.headers


def test_others_are_not_served_without_a_key(tmp_path):
    for address in ("127.0.0.1", "127.9.9.9", "::1"):
        assert is_local(address)
    for address in ("0.0.0.0", "::", "10.0.0.1", "fe80::1%eth0"):
        assert not is_local(address)
    line = refused("serve", "nowhere", "--host", "0.0.0.0", "--state", tmp_path / "s.sqlite")
    logging.getLogger().handlers.clear()  # the command's, which is over
    assert "there is no key" in line
    assert "keys add" in line
    keys = Keys(tmp_path / "s.sqlite")
    check_bind("0.0.0.0", "0.0.0.0", Access(keys), insecure=True)
    keys.add("ann")
    check_bind("0.0.0.0", "0.0.0.0", Access(keys), insecure=False)


def test_the_documentation_loads_no_scripts_from_elsewhere(served):
    for path in ("/docs", "/redoc"):
        assert served.http.get(path).status_code == 404
    assert served.http.get("/openapi.json").json()["info"]["title"] == "alignvec"


def logged(caplog):
    lines = (one.getMessage() for one in caplog.records if one.name.startswith("alignvec.serve"))
    return [line for line in lines if line.startswith("POST")]  # others may still be running


def test_a_request_is_logged_without_a_word_of_it(model, tmp_path, caplog):
    caplog.set_level(logging.INFO, "alignvec.serve")
    keys = Keys(tmp_path / "state.sqlite")
    key = keys.add("ann")
    with live(model, tmp_path, keys=keys) as here:
        for body in (
            ASK,
            {**ASK, "stream": True, "knobs": {"tea": 0.5}},
            {**ASK, "temperature": 9},
            {**ASK, "messages": [{"role": "user", "content": "secret" * 200}]},
        ):
            here.post(body=body, headers=bearer(key))
        scored = {"prompt": "a secret", "responses": ["secret"], "knobs": {"tea": 0.5}}
        here.post("/v1/score", scored, headers=bearer(key))
        here.post("/v1/completions", body={"model": "tea", "prompt": ["a secret", "b secret"]})
        here.http.get("/health")
    lines = logged(caplog)
    assert len(lines) == 6
    assert re.fullmatch(
        r"POST /v1/chat/completions 200 \d\.\d{3}s first=\d\.\d{3}s key=ann knobs=tea=0 "
        r"tokens=20\+[12]",
        lines[0],
    )
    assert "knobs=tea=0.5" in lines[1]
    assert re.fullmatch(r"POST /v1/score 200 \d\.\d{3}s key=ann knobs=tea=0\.5", lines[4])
    assert "secret" not in caplog.text
    assert key not in caplog.text


def test_what_is_asked_is_logged_where_that_is_wanted(model, tmp_path, caplog):
    caplog.set_level(logging.INFO, "alignvec.serve")
    with live(model, tmp_path, log_prompts=True) as here:
        body = {**ASK, "messages": [{"role": "user", "content": "a secret\nline"}]}
        here.post(body=body)
    (line,) = logged(caplog)
    assert line.endswith(r"prompt='a secret\nline'")


def test_a_fault_is_logged_by_its_place_alone(served, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError("terces a"[::-1])  # a traceback shows the line

    monkeypatch.setattr(served.engine, "generate", broken)
    answer = served.post(body=ASK)
    assert answer.status_code == 500
    assert set(answer.json()) == {"error"}
    assert "ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text
    assert "secret" not in answer.text
    streamed = served.post(body={**ASK, "stream": True})
    assert streamed.status_code == 500


def test_a_fault_in_a_stream_is_logged_no_more_than_that(served, monkeypatch, caplog):
    async def broken(*_):
        yield Piece(0, "a", [], 1, None)
        raise ZeroDivisionError("terces a"[::-1])

    monkeypatch.setattr(served.engine, "generate", broken)
    answer = served.post(body={**ASK, "stream": True})
    assert answer.status_code == 200
    assert "the server failed" in answer.text
    assert "secret" not in answer.text + caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_knobs_beyond_their_range_fill_no_log(caplog):
    loggers = [logging.getLogger(name) for name in ("alignvec.serve", "alignvec.knobs.setting")]
    before = [(one.level, one.propagate, one.handlers[:]) for one in loggers]
    try:
        log_requests()
        far = AlignmentVector({}, BaseId("base", ""), calibration={
            "levels": {"plain": -1.0, "fine": 1.0}, "safe": [-1.0, 1.0]})  # fmt: skip
        turned = Dial("tea", {"tea": far}).read("tea", {"tea": 1.2345}, None, "")
    finally:
        for one, (level, propagate, handlers) in zip(loggers, before, strict=True):
            one.level, one.propagate, one.handlers[:] = level, propagate, handlers
            one.manager._clear_cache()
    assert turned.beyond == ("tea",)
    assert not caplog.text
