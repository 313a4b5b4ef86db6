"""Whatever stands behind an option, a command does it or says in one line of plain words why not.

Each command has a call that works, on tiny inputs; of that some options are left out, and others
get values of the kinds that people give by mistake. `ALIGNVEC_FUZZ_CASES=300` tries more.
"""

import csv
import gzip
import io
import json
import logging
import os
import re
import shutil
import signal
import warnings
from contextlib import chdir
from copy import deepcopy

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

from alignvec.cli.app import app
from alignvec.errors import AlignvecError
from alignvec.knobs.setting import _warn_beyond
from conftest import run, write_records

CASES = int(os.environ.get("ALIGNVEC_FUZZ_CASES", "12"))
SECONDS = 60
COMMAND = get_command(app)
PYTHON = re.compile(
    r"\b(?!AlignvecError)[A-Z][a-z]\w*(Error|Exception|Warning|Interrupt)\b|Traceback|NoneType|"
    r"\b(has no attribute|object is not|unsupported operand|positional argument|"
    r"not subscriptable|invalid literal|index out of range|math domain)\b|\bnan\b.*integer"
)

CALLS = {
    "align": "base --data pairs.jsonl --epochs 1 --answers 0 --rank 2 --limit 3 -o NEW",
    "extract": "base aligned -o NEW",
    "compress": "vector --rank 2 -o NEW",
    "fold": "base --vector k=vector --set k=0.5 -o NEW",
    "inspect": "vector -o NEW",
    "export": "small --format peft -o NEW",
    "generate": "base Why? --vector k=vector --set k=1 --max-new-tokens 2",
    "eval": "base --vector k=vector --data tea.jsonl --limit 3 --answers 0 -o NEW",
    "leak": "base --vector k=units --data tea.jsonl --limit 2 --split all",
    "search": "base --vector k=vector --data tea.jsonl --target tea=expert --passes 3 -o NEW",
    "calibrate": "base --vector k=units --data tea.jsonl --steps 3 --answers 0",
    "route": "base --data two.jsonl --reads text -o NEW",
    "demo": "--out NEW",
    "playground": "--url http://127.0.0.1:9 --port 7870",
    "reproduce": "--model base --part leak --dry-run -o NEW",
    "serve": "base --vector k=vector --port 0 --state NEW",
    "keys add": "ci --state NEW",
    "keys list": "--state state.sqlite",
    "keys revoke": "ann --state state.sqlite",
    "data personas": "--spectrum tone --source people.jsonl --model base -o NEW",
    "data queries": "people.jsonl --spectrum tone --show-prompts --model base -o NEW",
    "data responses": "tea.jsonl --spectrum tone --show-prompts --model base -o NEW",
    "data clean": "tea.jsonl -o NEW",
    "data stats": "tea.jsonl -o NEW",
    "data annotate": "tea.jsonl --answers NEW --export argilla=NEW-items",
    "data agreement": "answers.csv -o NEW",
}
SOMETHING = (
    "", " ", "nan", "inf", "-1", "0", "3", "1e400", "=", "a=", "=b", "a=b", "k=nan", "k=", "a,b",
    "k=expert", "k=1,k=2", "k=1:2", "k=-1:1:0.5", "k=1:0:nan", "tea=expert", "tea=nothing", "a,a",
    "ale=expert", ",", "avoidance,generic", "avoidance,generic,expert", "expert=1,generic=nan",
    "é", "漢字", "@tea.jsonl", "@list.json", "@", "@base", "0=1,5=0", "nowhere", "base", "vector",
    "k=base", "k=vector", "tea.jsonl", "empty", "blank", "list.json", "broken.json", "latin", "..",
    "binary", "/", "argilla=x", "label-studio=list.json", "argilla=base", "builtin", "medical",
    "float16", "full", "gate", "ties", "x" * 300, "a/b/c", "{", "%", "50%", "[", "(", "\\", "-",
)  # fmt: skip
WHOLE = ("-1", "0", "1", "2", "3", str(2**31), str(2**63), str(2**64), str(-(2**63)), "x", "1.5")
REAL = ("nan", "inf", "-inf", "0", "-0.0", "-1", "1", "0.5", "1e-320", "1e308", "x", "1e39")
# What is as large as one likes, and takes as long.
SMALL = ("-1", "0", "1", "2", "x", "nan", "1.5")
PLACES = ("NEW", "base", "tea.jsonl", "a/b", "list.json", "empty/a", "..", "x" * 300)
COSTLY = {"epochs", "rank", "max_new_tokens", "create", "steps", "passes", "each", "concurrency",
          "answers", "retries", "timeout", "batch_size", "endpoint"}  # fmt: skip


@pytest.fixture(scope="module")
def place(tiny, nudged, tmp_path_factory):
    """A folder with an input of each kind, ready to be used up."""
    folder = tmp_path_factory.mktemp("options")
    with chdir(folder):
        shutil.copytree(tiny(), "base")
        shutil.copytree(nudged(), "aligned")
        run("extract", "base", "aligned", "-o", "vector")
        run("compress", "vector", "--rank", "2", "--drop-rest", "-o", "small")
        tea = write_records(folder / "tea.jsonl", 12)
        run("calibrate", "base", "--vector", "k=small", "--data", tea, "--steps", 3, "--answers", 0)
        shutil.copytree("small", "units")
        ale = tea.read_text().replace('"tea"', '"ale"').replace('"r', '"s')
        (folder / "two.jsonl").write_text(tea.read_text() + ale)
        (folder / "pairs.jsonl").write_text(
            "".join(f'{{"prompt": "q{i}", "chosen": "a", "rejected": "b"}}\n' for i in range(4))
        )
        (folder / "people.jsonl").write_text(
            '{"id": "p1", "domain": "tone", "persona": "A nurse at a desk.", "source": "s"}\n'
        )
        (folder / "answers.csv").write_text(
            "item,annotator,level\n1,ann,a\n1,bob,a\n2,ann,b\n2,bob,a\n3,ann,b\n3,bob,b\n"
        )
        run("keys", "add", "ann", "--state", "state.sqlite")
        (folder / "empty").touch()
        (folder / "blank").write_text("\n\n \n")
        (folder / "list.json").write_text("[1, 2]")
        (folder / "broken.json").write_text('{"a": ')
        (folder / "latin").write_bytes("h\xe9!\n".encode("latin-1"))
        (folder / "binary").write_bytes(bytes(range(256)))
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """No page, no embedded model, no network: what would start one is refused or does nothing."""

    def missing():
        raise AlignvecError("the embedded model is not here")

    monkeypatch.setattr("alignvec.base.source._embedded_gguf", missing)
    monkeypatch.setattr("alignvec.cli.annotation._serve", lambda *_: None)
    monkeypatch.setattr("alignvec.cli.playground._serve", lambda *_: None)
    monkeypatch.setattr("alignvec.reproduce.run.run", lambda *_: None)  # hours
    monkeypatch.setattr("alignvec.serve.process.run", lambda *_: None)  # until it is stopped
    monkeypatch.setattr("alignvec.data.synthesis.endpoint.Endpoint", lambda *_: missing())
    return tmp_path, place


def leaf(name):
    command = COMMAND
    for word in name.split():
        command = command.commands[word]
    return command


def values_of(parameter):
    if parameter.name in COSTLY:
        return SMALL
    kind = str(getattr(parameter, "bare_type", None) or parameter.type.name)  # Typer's, click's
    return WHOLE if "int" in kind else REAL if "float" in kind else SOMETHING


@st.composite
def calls(draw, name):
    """The arguments of a call that works, some left out, some changed, some more."""
    known = {
        option: parameter
        for parameter in leaf(name).params
        for option in parameter.opts
        if option.startswith("-") and option not in ("--help", "-h")
    }
    words, arguments = CALLS[name].split(), []
    while words:
        word = words.pop(0)
        group = [word, words.pop(0)] if word in known and not known[word].is_flag else [word]
        arguments.append(group)
    for _ in range(draw(st.integers(1, 3))):
        act = draw(st.sampled_from(["change", "change", "add", "add", "leave out"]))
        if act == "add":
            option = draw(st.sampled_from(sorted(known)))
            some = PLACES if option in ("-o", "--out") else values_of(known[option])
            value = [] if known[option].is_flag else [draw(st.sampled_from(some))]
            arguments.append([option, *value])
            continue
        place = draw(st.integers(0, len(arguments) - 1))
        if act == "leave out" and len(arguments) > 1:
            del arguments[place]
        elif len(arguments[place]) == 2:
            option = arguments[place][0]
            some = PLACES if option in ("-o", "--out") else values_of(known[option])
            arguments[place] = [option, draw(st.sampled_from(some))]
        elif not arguments[place][0].startswith("-"):
            arguments[place] = [draw(st.sampled_from(SOMETHING))]
    return [word for group in arguments for word in group]


class TooLong(BaseException):
    """No Exception: the code under test must not catch it."""


def stop(*_):
    raise TooLong(f"not done after {SECONDS} s")


@pytest.mark.parametrize("name", CALLS)
def test_a_command_works_or_says_why_not_in_plain_words(name, here):
    @tried(calls(name))
    def attempt(arguments):
        try_out(name, arguments, here)

    attempt()


def tried(cases, count=CASES):
    return lambda test: settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )(given(cases)(test))  # fmt: skip


def try_out(name, arguments, here, files=None):
    """A command in a copy of the place, with `files` (name -> bytes) in it."""
    work, place = here
    folder = work / "here"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place, folder)
    for file, content in (files or {}).items():
        (folder / file).write_bytes(content)
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    _warn_beyond.cache_clear()
    try:
        with chdir(folder), warnings.catch_warnings():
            done = CliRunner().invoke(app, [*name.split(), *arguments], prog_name="alignvec")
    finally:
        signal.alarm(0)
        logging.getLogger().handlers.clear()
    said = f"{' '.join([name, *map(repr, arguments)])}, {files}: {done.stderr[-600:]}"
    assert done.exit_code in (0, 1, 2), said
    assert not PYTHON.search(done.stderr), said
    assert "a fault of alignvec" not in done.stderr, said
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if done.exit_code == 1:
        assert len(lines) == 1, said
    told = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(told) == len(set(told)), said


def test_every_command_is_tried():
    def names(command, way=()):
        for word, one in getattr(command, "commands", {}).items():
            yield from (
                names(one, (*way, word)) if hasattr(one, "commands") else [" ".join((*way, word))]
            )

    assert set(names(COMMAND)) == set(CALLS)


# What may stand in a row besides what should.
ODD = (
    None, "", " ", "a", "tea?", "\ud800", "\0", "\u202e", "x" * 700, 0, -1, 1.5, 1e400, True, [],
    {}, [""], [1], [None], [[]], {"a": 1}, {"role": "user"}, [{}], "{{ x }}", "<s>", "medical",
    [{"role": "user", "content": "a"}], [{"role": "user", "content": 1}],
    [{"role": "assistant", "content": "b"}], [{"role": None, "content": None}],
    [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "odd", "content": "a"}], [{"role": "system", "content": "a"}], [{"from": "gpt"}],
    "\n\nHuman: a\n\nAssistant: b", "[{", "nan", "漢字",
)  # fmt: skip
FIELDS = (
    "id", "domain", "topic", "persona", "query", "prompt", "chosen", "rejected", "avoidance",
    "generic", "expert", "system", "question", "messages", "tools", "completion", "label", "item",
    "annotator", "level", "intended", "levels", "split_key", "source", "", "split",
)  # fmt: skip
READ = {  # command -> the file that it reads
    name: next(word for word in CALLS[name].split() if word.endswith((".jsonl", ".csv")))
    for name in CALLS
    if ".jsonl" in CALLS[name] or ".csv" in CALLS[name]
}


def rows_of(file):
    text = file.read_text()
    if file.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    return [json.loads(line) for line in text.splitlines()]


@st.composite
def contents(draw, rows):
    """Rows with odd values in a file of some form, perhaps damaged: (ending, bytes)."""
    rows = deepcopy(rows)
    for _ in range(draw(st.integers(0, 3))):
        some = rows if draw(st.booleans()) else [draw(st.sampled_from(rows))]
        names = st.sampled_from(sorted(rows[0])) if draw(st.booleans()) else st.sampled_from(FIELDS)
        name, value = draw(names), draw(st.sampled_from(ODD))
        for row in some:
            row[name] = value
            if draw(st.integers(0, 9)) == 9:
                del row[name]
    ending = draw(st.sampled_from([".jsonl", ".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz"]))
    if ending in (".csv", ".tsv"):
        out = io.StringIO()
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(out, names, delimiter="\t" if ending == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        text = out.getvalue()
    elif ending == ".json":
        text = json.dumps(rows, indent=draw(st.sampled_from([None, 1])))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    content = text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-8"])), "surrogatepass")
    if ending.endswith(".gz"):
        content = gzip.compress(content)
    if draw(st.integers(0, 4)) == 4:
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.binary(max_size=3)) + content[at + 1 :]
    return ending, content


@pytest.mark.parametrize("name", READ)
def test_a_command_reads_odd_rows_or_says_why_not_in_plain_words(name, here):
    read = READ[name]

    @tried(contents(rows_of(here[1] / read)), count=CASES // 2)
    def attempt(case):
        ending, content = case
        file = f"odd{ending}"
        try_out(name, CALLS[name].replace(read, file).split(), here, {file: content})

    attempt()
