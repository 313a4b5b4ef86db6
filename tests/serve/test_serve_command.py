"""`alignvec serve` as a process: its start, its one line, its end."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import openai
import pytest
from live import ASK

from conftest import refused, run


@pytest.fixture(scope="module")
def place(tiny, nudged, tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    run("extract", tiny(), nudged(), "-o", folder / "vector")
    return tiny(), folder / "vector", folder


@contextmanager
def serving(place, *options):
    """The process, and where it says it is."""
    base, vector, folder = place
    process = subprocess.Popen(
        [sys.executable, "-m", "alignvec", "serve", str(base), "--vector", f"tea={vector}",
         "--port", "0", "--state", str(folder / "state.sqlite"), "--name", "tea", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert select.select([process.stdout], [], [], 120)[0]
        line = process.stdout.readline()
        found = re.fullmatch(r"tea at (http://\S+)/v1, knobs: tea \(Ctrl\+C stops\)\n", line)
        assert found, line + process.stderr.read()
        if "--no-page" not in options:
            assert process.stdout.readline() == f"a page with a slider for each at {found[1]}/\n"
        yield process, found[1]
    finally:
        process.kill()
        process.wait(10)
        for pipe in (process.stdout, process.stderr):
            pipe.close()


def client_of(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def long(client, **options):
    return client.chat.completions.create(
        model="tea", messages=ASK, stream=True, logit_bias={"2": -100}, **options
    )


def test_a_server_is_stopped_when_it_has_finished(place):
    with serving(place, "--set", "tea=0.5", "--drain", "20") as (process, url):
        client = client_of(url)
        answer = client.chat.completions.create(model="tea", messages=ASK, max_tokens=2)
        assert answer.alignvec["knobs"] == {"tea": 0.5}
        assert "text/html" in httpx.get(url).headers["content-type"]  # the playground
        stream = long(client, max_tokens=440)
        next(stream)
        process.send_signal(signal.SIGTERM)
        while httpx.get(f"{url}/ready").status_code != 503:
            time.sleep(0.005)
        # Nothing new is taken while what runs is finished.
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="tea", messages=ASK, max_tokens=2)
        assert (caught.value.status_code, caught.value.code) == (503, "server_stopping")
        assert list(stream)[-1].choices[0].finish_reason == "length"
        assert process.wait(20) == 0
        log = process.stderr.read()
        assert "Traceback" not in log
        assert "POST /v1/chat/completions 200" in log
        assert ASK[0]["content"] not in log


def test_a_page_that_is_open_does_not_keep_a_server_from_its_end(place):
    with (
        serving(place) as (process, url),
        httpx.stream("GET", f"{url}/gradio_api/heartbeat/abc", timeout=60) as open_page,
    ):
        pieces = open_page.iter_text()
        assert "ALIVE" in next(pieces)
        process.send_signal(signal.SIGINT)
        assert "".join(pieces) == ""  # ended, not torn off
        assert process.wait(4) == 0  # before uvicorn gives up on requests
        log = process.stderr.read()
        assert "Traceback" not in log
        assert "Cancel" not in log


def test_who_is_not_finished_in_time_is_told(place):
    with serving(place, "--drain", "0.2", "--no-page") as (process, url):
        stream = long(client_of(url), max_tokens=440, n=8)
        next(stream)
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="going down") as caught:
            list(stream)
        assert caught.value.code == "server_stopping"
        assert process.wait(20) == 0


def test_a_second_signal_ends_it_at_once(place):
    with serving(place, "--drain", "60", "--no-page") as (process, url):
        stream = long(client_of(url), max_tokens=440, n=16)
        next(stream)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        stream.close()


def test_what_cannot_be_served_is_said_in_one_line(place, tmp_path, monkeypatch):
    base, vector, _ = place
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}: Address already in use" in refused("serve", base, "--port", port)
    assert "cannot serve on nowhere.invalid" in refused("serve", base, "--host", "nowhere.invalid")
    given = ("serve", base, "--vector", f"tea={vector}", "--port", 0)
    assert "unknown knob 'ale'" in refused(*given, "--set", "ale=1")
    hidden = {"domains": ["a", "b"], "sure": 0.5, "reads": "hidden", "base": None}
    (tmp_path / "router").mkdir()
    (tmp_path / "router" / "router.json").write_text(json.dumps(hidden))
    import torch
    from safetensors.torch import save_file

    save_file(
        {"weight": torch.zeros(2, 32), "bias": torch.zeros(2)},
        tmp_path / "router" / "router.safetensors",
    )
    assert "--reads text" in refused(*given, "--router", "router")


def test_a_missing_extra_is_named(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "alignvec.serve.process", raising=False)
    line = refused("serve", place[0])
    assert line == "error: the server needs uvicorn: pip install 'alignvec[serve]'"
