"""What the examples, the operators' page, the Dockerfile and the systemd unit show is what a server
does: they are run against one, a process of its own with a tiny model and the knob `medical`.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.main import get_command

from alignvec import AlignmentVector
from alignvec.cli.app import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "howto-serve.md").read_text(encoding="utf-8")
SHOWN = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def url(tiny, tmp_path_factory):
    """Where the server is."""
    folder = tmp_path_factory.mktemp("served")
    vector = AlignmentVector.extract(tiny(), tiny(seed=1))
    vector.save_pretrained(folder / "medical-av")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "alignvec", "serve", str(tiny()), "--name", "embedded",
            "--vector", "medical=medical-av", "--port", "0", "--no-page",
        ],
        cwd=folder, stdout=subprocess.PIPE, stderr=(folder / "log").open("w"), text=True,
    )  # fmt: skip
    try:
        found = re.search(r"http://\S+:\d+", process.stdout.readline())
        assert found, (folder / "log").read_text()
        yield found.group()
    finally:
        process.terminate()
        assert process.wait(30) == 0


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocks(language, first):
    """The page's blocks of code that begin so."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [block for block in found if block.startswith(first)]


def test_the_openai_client_turns_the_knob(url):
    said = run(sys.executable, ROOT / "examples" / "openai_client.py", f"{url}/v1", "medical")
    answers = dict(re.findall(r"\{'medical': (.+?)\}\n(.*?)\n\n", said, re.DOTALL))
    assert answers.keys() == {"-1.0", "0.0", "1.0"}
    assert len(set(answers.values())) == 3
    assert re.search(r"^unknown_knob: .*astrology.*medical", said, re.MULTILINE)


def test_langchain_turns_the_knob(url):
    said = run(sys.executable, ROOT / "examples" / "langchain_client.py", f"{url}/v1", "medical")
    invoked, streamed, *batch = said.split("\n\n")[:4]
    assert all([invoked, streamed, *batch])
    assert invoked != streamed


def test_the_client_of_the_page_runs(url):
    (block,) = blocks("python", "from openai")
    assert "{'medical': 0.7}" in run(sys.executable, "-c", block.replace(SHOWN, url))


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_the_requests_of_the_page_are_answered(url):
    asked, profiles = (
        f'curl() {{ command curl -sf "$@"; }}\n{block}'.replace(SHOWN, url)
        for block in blocks("bash", "curl")
    )
    assert json.loads(run("bash", "-ec", asked))["alignvec"]["knobs"] == {"medical": 0.7}
    said = run("bash", "-ec", profiles)
    assert re.findall(r"HTTP/\S+ (\d+)", said) == ["201", "200", "200", "204"]


def test_the_metrics_of_the_page_are_those_that_are_counted(url):
    told = set(re.findall(r"`(alignvec_[a-z_]+)`", PAGE))
    counted = set(re.findall(r"^# TYPE (alignvec_\w+)", httpx.get(f"{url}/metrics").text, re.M))
    assert told == {name for name in counted if not name.endswith("_created")}


def started(*words):
    """Raises what a wrong usage raises; the values of the options."""
    program, command, *rest = words
    assert (Path(program).name, command) == ("alignvec", "serve")
    return get_command(app).commands["serve"].make_context("serve", rest).params


def test_the_container_serves_everybody_who_has_a_key():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = dict(re.findall(r"^(ENTRYPOINT|CMD) (\[.*\])$", text, re.MULTILINE))
    values = started(*json.loads(lines["ENTRYPOINT"]), *json.loads(lines["CMD"]))
    assert (values["base"], values["host"], values["insecure"]) == ("embedded", "0.0.0.0", False)
    assert f"127.0.0.1:{values['port']}/health" in text


def test_the_unit_waits_longer_than_the_server_does():
    text = (ROOT / "deploy" / "alignvec.service").read_text(encoding="utf-8")
    (words,) = re.findall(r"^# +ALIGNVEC_SERVE=(.*)", text, re.MULTILINE)
    (command,) = re.findall(r"^ExecStart=(.*)", text, re.MULTILINE)
    values = started(*command.replace("$ALIGNVEC_SERVE", words).split())
    assert values["host"] == "127.0.0.1"
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)", text, re.MULTILINE)
    assert int(seconds) > values["drain"]
    assert f"{values['state']}\n" in text  # where keys are added
