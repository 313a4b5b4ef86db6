"""Texts from a writer: endpoints that fail in every way, killed runs, budgets, the three stages."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from alignvec.data import read_records
from alignvec.data.spectrum import SHIPPED, read_spectrum
from alignvec.data.synthesis.chat import Completion, Task, tokens_in
from alignvec.data.synthesis.journal import Journal, key_of
from alignvec.data.synthesis.personas import as_persona, create, from_hub
from alignvec.data.synthesis.prompts import PEOPLE, Prompt
from alignvec.data.synthesis.queries import as_query
from alignvec.data.synthesis.responses import as_response
from alignvec.data.synthesis.writing import Budget, write_texts
from alignvec.errors import AlignvecError
from conftest import refused, run

HERE = Path(__file__).parent
FAULTS = ("429=.1", "500=.05", "hang=.01", "truncated=.03", "malformed=.03", "empty=.03",
          "latin1=.03", "closed=.03")  # fmt: skip


@contextmanager
def serving(*faults):
    """The port of a chat server with these faults, and a function that reads its counts."""
    process = subprocess.Popen(
        [sys.executable, HERE / "fault_server.py", "0", *faults], stdout=subprocess.PIPE, text=True
    )
    try:
        port = int(process.stdout.readline())

        def stats():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats") as answer:
                return json.load(answer)

        yield f"http://127.0.0.1:{port}/v1", stats
    finally:
        process.kill()
        process.wait()


def write_queries(path, count):
    lines = [
        {"id": f"q{n}", "domain": "medical", "persona": "A nurse.", "query": f"Is {n} mg too much?"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Scripted:
    """A writer that answers at once, and counts."""

    name, temperature = "scripted", 0.0

    def __init__(self):
        self.asked = []

    async def complete(self, task):
        self.asked.append(task)
        await asyncio.sleep(0)
        return Completion(f"answer to {task.messages[-1][1]}", 10, 10, False)

    async def close(self):
        pass


def tasks(count):
    return [Task((("user", f"question {n}"),), 20) for n in range(count)]


def test_faults_of_every_kind_lose_nothing_and_cost_nothing_twice(tmp_path):
    queries, out = write_queries(tmp_path / "queries.jsonl", 60), tmp_path / "records.jsonl"
    with serving(*FAULTS) as (url, stats):
        done = run("data", "responses", queries, "--spectrum", "medical", "--endpoint", url,
                   "--model", "m", "--timeout", "1", "-o", out, "--json")  # fmt: skip
        counted = stats()
    result = json.loads(done.stdout)
    assert result["wanted"] == result["there"] == 60
    assert result["written"] == 180
    assert len(counted["delivered"]) == 180
    assert set(counted["delivered"].values()) == {1}
    assert all(counted["faults"].get(kind) for kind in ("429", "500", "truncated", "latin1"))
    records = list(read_records(out))
    assert [record.id for record in records] == [f"q{n}" for n in range(60)]
    assert not any(
        "\N{REPLACEMENT CHARACTER}" in text for r in records for text in r.levels.values()
    )
    spent = sum(entry["completion"]["prompt_tokens"] for entry in lines_of(Path(f"{out}.journal")))
    assert result["prompt_tokens"] == spent


def test_a_killed_run_goes_on_and_pays_only_for_what_was_in_flight(tmp_path):
    queries, out = write_queries(tmp_path / "queries.jsonl", 120), tmp_path / "records.jsonl"
    at_once, kills, chance = 8, 3, random.Random(0)
    with serving("hang=.002", "500=.05") as (url, stats):
        command = ["data", "responses", queries, "--spectrum", "medical", "--endpoint", url,
                   "--model", "m", "--timeout", 1, "--concurrency", at_once,
                   "-o", out]  # fmt: skip
        for _ in range(kills):
            process = subprocess.Popen([sys.executable, "-m", "alignvec", *map(str, command)],
                                       stderr=subprocess.DEVNULL)  # fmt: skip
            seen = len(stats()["delivered"])
            while len(stats()["delivered"]) < seen + chance.randrange(10, 60):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not out.exists()  # nothing half-written under the final name
        run(*command)
        counted = stats()["delivered"]
    assert [record["id"] for record in lines_of(out)] == [f"q{n}" for n in range(120)]
    assert len(counted) == 360
    assert sum(counted.values()) - 360 <= kills * at_once
    again = json.loads(run(*command, "--json").stdout)  # the server is gone
    assert (again["written"], again["known"]) == (0, 360)


def test_a_line_cut_in_half_is_cut_off(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path)
    write_texts(lambda: tasks(3), Scripted(), journal)
    journal.close()
    whole = path.read_bytes()
    for cut in range(1, len(whole), 17):
        path.write_bytes(whole[:cut])
        journal, writer = Journal(path), Scripted()
        write_texts(lambda: tasks(3), writer, journal)
        journal.close()
        assert len(writer.asked) == 3 - whole[:cut].count(b"\n")
        assert len(lines_of(path)) == 3


def test_what_somebody_made_of_an_output_is_not_lost(tmp_path):
    queries, out = write_queries(tmp_path / "queries.jsonl", 4), tmp_path / "records.jsonl"
    with serving() as (url, _):
        command = ("data", "responses", queries, "--spectrum", "medical", "--endpoint", url,
                   "--model", "m", "-o", out)  # fmt: skip
        run(*command)
        write_queries(queries, 6)
        run(*command)  # two more: nothing is lost
        whole = out.read_text()
        out.write_text(whole + '{"hand": "made"}\n')
        assert "holds other lines" in refused(*command)
        assert out.read_text() == whole + '{"hand": "made"}\n'
        run(*command, "--overwrite")
    assert out.read_text() == whole


def test_nothing_is_written_where_there_is_nothing(tmp_path):
    queries, out = write_queries(tmp_path / "queries.jsonl", 4), tmp_path / "records.jsonl"
    with serving("refused=1") as (url, _):
        line = refused("data", "responses", queries, "--spectrum", "medical", "--endpoint", url,
                       "--model", "m", "-o", out)  # fmt: skip
    assert "none of 4: 12 could not be had" in line
    assert not out.exists()


def test_a_damaged_line_of_a_journal_is_named(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path)
    write_texts(lambda: tasks(3), Scripted(), journal)
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage {{\n" + lines[1] + lines[2])
    with pytest.raises(AlignvecError, match="journal, line 2: no entry of a journal"):
        Journal(path)


def test_a_foreign_file_is_no_journal(tmp_path):
    (tmp_path / "journal").write_text("dear diary\n")
    with pytest.raises(AlignvecError, match="line 1: no entry of a journal"):
        Journal(tmp_path / "journal")
    assert (tmp_path / "journal").read_text() == "dear diary\n"


@pytest.mark.parametrize("content", ["dear diary", '{"key": "of my heart"}', '{"kettle": 1}\n{"k'])
def test_a_foreign_file_is_not_emptied(content, tmp_path):
    """A last line without its end is cut off of a journal alone."""
    queries, out = write_queries(tmp_path / "queries.jsonl", 1), tmp_path / "records.jsonl"
    journal = tmp_path / "records.jsonl.journal"
    journal.write_text(content)
    assert "records.jsonl.journal" in refused("data", "responses", queries, "--spectrum", "medical",
        "--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "-o", out)  # fmt: skip
    assert journal.read_text() == content
    journal.unlink()
    out.write_text(content)
    for options in ((), ("--overwrite",)):
        refused("data", "responses", queries, "--spectrum", "medical", "--endpoint",
                "http://127.0.0.1:9/v1", "--model", "m", "-o", out, *options)  # fmt: skip
    assert out.read_text() == content
    assert not journal.exists()


def test_two_runs_do_not_share_a_journal(tmp_path):
    journal = Journal(tmp_path / "journal")
    with pytest.raises(AlignvecError, match="another process"):
        Journal(tmp_path / "journal")
    journal.close()


def test_a_full_disk_is_one_line_and_the_journal_stays_whole(tmp_path):
    queries, out = write_queries(tmp_path / "queries.jsonl", 40), tmp_path / "records.jsonl"
    with serving() as (url, _):
        command = ("data", "responses", queries, "--spectrum", "medical", "--endpoint", url,
                   "--model", "m", "-o", out)  # fmt: skip
        limit = "ulimit -f 8; exec"  # blocks of a kibibyte
        shell = ["bash", "-c", f'{limit} "$0" "$@"', sys.executable, "-m", "alignvec"]
        full = subprocess.run([*shell, *map(str, command)], capture_output=True, text=True)
        assert full.returncode == 1
        assert "records.jsonl.journal cannot be written" in full.stderr
        assert "Traceback" not in full.stderr
        assert all("completion" in entry for entry in lines_of(Path(f"{out}.journal")))
        run(*command)
    assert len(lines_of(out)) == 40


def test_a_budget_is_kept(tmp_path):
    for budget, bought in (
        (Budget(tokens=100), 4),  # 24 at most for the fifth, and 20 are left
        (Budget(money=0.0001, prices=(1.0, 1.0)), 4),
        (Budget(), 10),
    ):
        journal, writer = Journal(tmp_path / f"{bought}{budget.tokens}"), Scripted()
        outcome = write_texts(lambda: tasks(10), writer, journal, budget, concurrency=1)
        assert outcome.written == len(writer.asked) == bought
        assert outcome.written + outcome.beyond == 10
        assert budget.covers(journal.prompt_tokens, journal.completion_tokens)
        again = write_texts(lambda: tasks(10), writer, journal, budget, concurrency=1)
        assert (again.known, len(writer.asked)) == (bought, bought)
        journal.close()


def test_requests_in_flight_count_against_the_budget(tmp_path):
    journal, writer = Journal(tmp_path / "journal"), Scripted()
    write_texts(lambda: tasks(50), writer, journal, Budget(tokens=100), concurrency=50)
    assert journal.prompt_tokens + journal.completion_tokens <= 100
    journal.close()


def test_the_same_question_is_asked_once(tmp_path):
    journal, writer = Journal(tmp_path / "journal"), Scripted()
    outcome = write_texts(lambda: tasks(5) * 3, writer, journal)
    assert (outcome.written, outcome.known, len(writer.asked)) == (5, 10, 5)
    other = Task((("user", "question 0"),), 20, sample=1)
    assert key_of(other, writer) not in journal
    assert journal[key_of(tasks(1)[0], writer)].text == "answer to question 0"
    journal.close()


def test_what_the_server_refuses_is_named_and_the_rest_is_there(tmp_path):
    queries, out = write_queries(tmp_path / "queries.jsonl", 30), tmp_path / "records.jsonl"
    with serving("refused=.1") as (url, _):
        line = refused("data", "responses", queries, "--spectrum", "medical", "--endpoint", url,
                       "--model", "m", "-o", out)  # fmt: skip
    missing = int(line.split()[1])
    assert 0 < missing < 30
    assert len(lines_of(out)) == 30 - missing
    assert "content policy" in line


def test_a_server_that_refuses_everything_is_not_asked_for_all(tmp_path):
    queries, out = write_queries(tmp_path / "queries.jsonl", 100), tmp_path / "records.jsonl"
    with serving("refused=1") as (url, _):
        line = refused("data", "responses", queries, "--spectrum", "medical", "--endpoint", url,
                       "--model", "m", "--concurrency", 4, "-o", out)  # fmt: skip
    assert "the first 20 all failed: " in line
    assert "content policy" in line
    assert not Path(f"{out}.journal").exists()  # nothing to keep: a mended server is asked again


def test_a_dead_endpoint_is_one_line(tmp_path):
    queries = write_queries(tmp_path / "queries.jsonl", 3)
    line = refused("data", "responses", queries, "--spectrum", "medical", "--endpoint",
                   "http://127.0.0.1:9/v1", "--model", "m", "--retries", 1,
                   "-o", tmp_path / "out.jsonl")  # fmt: skip
    assert "127.0.0.1:9" in line


def test_wrong_usage_is_one_line(tmp_path):
    queries = write_queries(tmp_path / "queries.jsonl", 3)
    out = tmp_path / "out.jsonl"
    common = ("data", "responses", queries, "-o", out)
    assert "no spectrum 'tea'" in refused(*common, "--spectrum", "tea")
    medical = (*common, "--spectrum", "medical")
    assert "are no prices" in refused(*medical, "--prices", "cheap")
    assert "needs --prices" in refused(*medical, "--money-budget", 1)
    assert "'q0' is of domain 'medical'" in refused(*common, "--spectrum", "tone")
    assert "give --model" in refused(*medical, "--endpoint", "http://localhost:1/v1")
    assert "the endpoint is no URL" in refused(*medical, "--endpoint", "x", "--model", "m")
    broken = tmp_path / "broken.yaml"
    broken.write_text("version: 1\nlevels: [")
    assert "not readable YAML" in refused(*common, "--spectrum", broken)
    broken.write_text("version: 1\nlevels: []\ntopics: [z]\nlevels: [a]\n")
    assert "'levels' comes twice" in refused(*common, "--spectrum", broken)
    broken.write_text("version: 1\ndomain: x\nabout: y\ntopics: [z]\nlevels: []\n")
    assert "field 'levels'" in refused(*common, "--spectrum", broken)
    for levels, message in (
        ("[{name: id, instruction: a}, {name: b, instruction: b}]", "cannot be called 'id'"),
        ("[{name: a, instruction: a}, {name: a, instruction: b}]", "two levels share a name"),
    ):
        broken.write_text(f"version: 1\ndomain: x\nabout: y\ntopics: [z]\nlevels: {levels}\n")
        assert message in refused(*common, "--spectrum", broken)
    queries.write_text(queries.read_text() * 2)
    assert "line 4: field 'id': 'q0' is used before" in refused(*medical)
    queries.write_text('{"id": "a", "domain": "medical", "query": "\\ud800"}\n')
    assert "line 1: half of a surrogate pair" in refused(*medical)
    queries.write_text("")
    assert "queries.jsonl is empty" in refused(*medical)
    queries.write_text('{"id": "a", "domain": "tea"}\n')
    assert "line 1: field 'query'" in refused(*common, "--spectrum", "tone")


def test_prompts_are_shown_and_can_be_replaced(tmp_path):
    queries = write_queries(tmp_path / "queries.jsonl", 3)
    show = ("data", "responses", queries, "--spectrum", "medical", "-o", tmp_path / "x",
            "--show-prompts")  # fmt: skip
    shown = run(*show).stdout
    assert "Is 0 mg too much?" in shown
    for level in read_spectrum("medical").levels:
        assert level.instruction in shown
    (tmp_path / "response.txt").write_text("# version 7\nBe $mood.\n---\n$query\n")
    assert "nothing to fill in for 'mood'" in refused(*show, "--prompts", tmp_path)
    (tmp_path / "response.txt").write_text("# version 7\nBe brief.\n---\n$query\n")
    assert Prompt("response", tmp_path).version == 7
    assert "Be brief." in run(*show, "--prompts", tmp_path).stdout
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", SHIPPED)
def test_the_examples_of_a_shipped_spectrum_keep_to_its_bands(name):
    spectrum = read_spectrum(name)
    for example in spectrum.examples:
        for level, response in example.responses.items():
            least, most = spectrum.band(level)
            assert least <= len(response.split()) <= most


def test_what_comes_around_an_answer_is_taken_off():
    assert as_query('1. "Is it  safe?"') == "Is it safe?"
    assert as_query("Question: is it?\n") == "is it?"
    assert as_persona("Persona: A baker in Leeds who gets up at two every day.\n\nAnd more") == (
        "A baker in Leeds who gets up at two every day."
    )
    assert as_persona("I cannot help with that, as an AI language model.") is None
    assert as_persona("") is None


def test_a_cut_answer_ends_with_its_last_whole_sentence():
    text = "One is here. Two, at 3.5 mg, is 'here'! Three is\nhere? And four was cut"
    assert as_response(Completion(text, 1, 1, cut_off=False), 9) == " ".join(text.split())
    cut = Completion(text, 1, 1, cut_off=True)
    assert as_response(cut, 99) == "One is here. Two, at 3.5 mg, is 'here'! Three is here?"
    assert as_response(cut, 9) == "One is here. Two, at 3.5 mg, is 'here'!"
    assert as_response(Completion("no end", 1, 1, cut_off=True), 9) == "no end"
    chinese = Completion("水温八十度。泡三分钟“即可”！再泡的时", 1, 1, cut_off=True)
    assert as_response(chinese, 20) == "水温八十度。泡三分钟“即可”！"


def test_tokens_are_counted_where_a_server_does_not():
    task = Task((("system", "a" * 40), ("user", "b" * 40)), 20)
    assert task.prompt_tokens == 2 * tokens_in("a" * 40) == 22


def test_from_personas_to_records_with_a_model_on_this_machine(tiny, tmp_path):
    hub = tmp_path / "hub.jsonl"
    said = ["A nurse on a night ward in Hull.", "A pilot who paints.", "A patient at a clinic."]
    hub.write_text("".join(json.dumps({"persona": text}) + "\n" for text in said))
    people, asked = tmp_path / "personas.jsonl", tmp_path / "queries.jsonl"
    run("data", "personas", "--spectrum", "medical", "--source", hub, "-o", people)
    assert [person["persona"] for person in lines_of(people)] == [said[0], said[2]]
    local = ("--spectrum", "medical", "--model", tiny())
    run("data", "queries", people, *local, "--each", 2, "-o", asked)
    queries = lines_of(asked)
    assert len({query["id"] for query in queries}) == 4
    assert len({(query["persona"], query["topic"]) for query in queries}) == 4


class Inventive(Scripted):
    """Invents people from the traits that it is asked for; every fourth answer is an old one."""

    async def complete(self, task):
        number = len(self.asked)
        self.asked.append(task)
        wish = task.messages[-1][1].split("medicine: ")[1].rstrip(".")
        old = number % 4 == 3
        text = "A baker who bakes and bakes the same bread in the same town every single day."
        if not old:
            own = " ".join(str(number * prime) for prime in (1, 7, 13, 17, 19, 23, 29))
            text = f"A person number {own} who is {wish} and asks."
        return Completion(text, 10, 10, False)


def created(journal, writer, count=30, concurrency=8):
    return create(count, read_spectrum("medical"), [], writer, journal, Prompt("persona"),
                  concurrency=concurrency)  # fmt: skip


def test_created_personas_differ_and_are_spread_over_people(tmp_path):
    journal, writer = Journal(tmp_path / "journal"), Inventive()
    people, outcome = created(journal, writer)
    assert len({person.id for person in people}) == len(people) == 30
    assert sum("the same bread" in person.persona for person in people) == 1
    assert outcome.written == len(writer.asked) > 30
    for trait, values in PEOPLE.items():
        counts = Counter(person.traits[trait] for person in people)
        assert max(counts.values()) <= -(-len(writer.asked) // len(values))
    again, cost = created(journal, Inventive(), concurrency=3)
    assert again == people
    assert (cost.written, cost.known) == (0, outcome.written)
    journal.close()


def test_a_writer_without_ideas_is_not_asked_for_ever(tmp_path):
    class Dull(Scripted):
        async def complete(self, task):
            self.asked.append(task)
            return Completion("A baker who bakes the same bread every single day.", 10, 10, False)

    journal, writer = Journal(tmp_path / "journal"), Dull()
    people, _ = created(journal, writer)
    assert len(people) == 1
    assert len(writer.asked) <= 16 * 7
    journal.close()


def test_personas_of_the_hub_are_a_fair_sample_without_doubles(tmp_path):
    hub = tmp_path / "hub.jsonl"
    said = [f"A nurse from ward {n}, bed {7 * n}, who asks {13 * n} things" for n in range(100)]
    hub.write_text("".join(json.dumps({"persona": text}) + "\n" for text in [*said, *said[:20]]))
    spectrum = read_spectrum("medical")
    everyone = from_hub(str(hub), spectrum, 1000)
    assert {person.persona for person in everyone} == set(said)
    some = from_hub(str(hub), spectrum, 25, seed=1)
    assert len(some) <= 25
    assert some == from_hub(str(hub), spectrum, 25, seed=1)
    assert some != from_hub(str(hub), spectrum, 25, seed=2)
    with pytest.raises(AlignvecError, match="no persona of domain 'legal'"):
        from_hub(str(hub), read_spectrum("legal"), 10)
    hub.write_text('{"text": "x"}\n')
    with pytest.raises(AlignvecError, match="line 1: field 'persona'"):
        from_hub(str(hub), spectrum, 10)


def test_keywords_are_words(tmp_path):
    """Whole ones, in any case; with a star what begins so; within scripts without spaces."""
    hub = tmp_path / "hub.jsonl"
    people = {
        "A man who mows lawns": False, "A courteous florist": False, "A taxi driver": False,
        "A student of LAW.": True, "A mother-in-law": True, "An immigration officer": True,
        "An illegal miner": False, "法律系的律师助理": True, "厨师": False,
    }  # fmt: skip
    hub.write_text("".join(json.dumps({"persona": text}) + "\n" for text in people))
    spectrum = read_spectrum("legal").model_copy(update={"keywords": ["law", "immigra*", "律师"]})
    found = {person.persona for person in from_hub(str(hub), spectrum, 100)}
    assert found == {text for text, belongs in people.items() if belongs}
    shipped = {person.persona for person in from_hub(str(hub), read_spectrum("legal"), 100)}
    assert shipped == found - {"法律系的律师助理"}
