"""Annotation: the file of answers, other tools' formats, and the page as two people use it."""

import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager

import pytest

from alignvec.data.annotation.formats import export_items, import_answers
from alignvec.data.annotation.store import Annotations, Answer, annotator_name, items_of, sample
from alignvec.data.records import Record, read_records
from alignvec.errors import AlignvecError
from conftest import refused, run, write_records

LEVELS = ["low", "middle", "high"]
HOSTILE = (
    '<img src=x onerror="window.broken=1"> **bold** ${window.broken=1} {{7*7}} <b>&amp;</b>\nend'
)


def some_records(count=3):
    return [
        Record(
            id=f"secret-{i}",
            domain="tea" if i % 2 else "coffee",
            query=f"query {i}? {HOSTILE}",
            levels={level: f"{word} text of {i} {HOSTILE}" for level, word in WORDS.items()},
        )
        for i in range(count)
    ]


WORDS = {"low": "dim", "middle": "plain", "high": "bright"}  # the page must not say the level


@pytest.fixture
def answers(tmp_path):
    return Annotations(tmp_path / "answers.sqlite", items_of(some_records(), LEVELS))


def test_a_new_answer_replaces_the_old_and_lasts(answers):
    answers.add([Answer(item=1, annotator="ada", level="low", note="dose")])
    answers.add([Answer(item=1, annotator="bob", level="low")])
    answers.add([Answer(item=1, annotator="ada", level="high")])
    again = Annotations(answers.path, items_of(some_records(), LEVELS))
    assert [(a.annotator, a.level, a.note) for a in again.answers()] == [
        ("ada", "high", ""),
        ("bob", "low", ""),
    ]
    assert again.levels == LEVELS
    assert [a.level for a in Annotations(answers.path).answers("bob")] == ["low"]
    assert [file.name for file in answers.path.parent.iterdir()] == ["answers.sqlite"]


def test_orders_are_random_and_an_annotators_own(tmp_path):
    many = Annotations(tmp_path / "many.sqlite", items_of(some_records(40), LEVELS))
    ada, bob = many.order("ada"), many.order("bob")
    assert sorted(ada) == sorted(bob) == sorted(many.items)
    assert ada != bob
    assert ada == many.order("ada")
    ranks = [many.items[number].rank for number in sorted(many.items)]
    assert ranks != [0, 1, 2] * 40  # an item's number does not tell its level


def test_names_that_look_alike_are_one():
    assert annotator_name("  Ada \t Lovelace ") == annotator_name("ada lovelace")
    for wrong in ("", " \n", "x" * 81, "a\x1b[31m"):
        with pytest.raises(AlignvecError, match="a name has 1 to 80"):
            annotator_name(wrong)


def test_other_data_and_other_files_are_refused(answers, tmp_path):
    for other in (some_records(2), some_records(4)):
        with pytest.raises(AlignvecError, match="holds answers on other items"):
            Annotations(answers.path, items_of(other, LEVELS))
    with pytest.raises(AlignvecError, match="holds answers on other items"):
        Annotations(answers.path, items_of(some_records(), LEVELS[::-1]))
    text, foreign = tmp_path / "text", tmp_path / "foreign"
    text.write_text("no database " * 100)
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE item (id)")
    connection.close()
    for items in ((), items_of(some_records(), LEVELS)):
        for path, message in (
            (text, "file is not a database"),
            (foreign, "is no file of answers"),
            (tmp_path, "no answers at|unable to open"),
        ):
            before = path.read_bytes() if path.is_file() else None
            with pytest.raises(AlignvecError, match=message) as caught:
                Annotations(path, items)
            assert "\n" not in str(caught.value)
            assert before is None or path.read_bytes() == before
    with pytest.raises(AlignvecError, match="no answers at"):
        Annotations(tmp_path / "none" / "such")
    assert not (tmp_path / "none").exists()


def test_a_conversation_is_shown_whole(tmp_path):
    """Also where an older file, which goes on being used, holds only what was asked last."""
    chat = [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And tea?"},
    ]  # fmt: skip
    texts = {level: f"{word} text" for level, word in WORDS.items()}
    record = Record(id="a", query="And tea?", messages=chat, levels=texts)
    items = items_of([record], LEVELS)
    assert {item.query for item in items} == {
        "[system] Be kind.\n\n[user] Hi\n\n[assistant] Hello.\n\n[user] And tea?"
    }
    old = items_of([record.model_copy(update={"messages": ()})], LEVELS)
    store = Annotations(tmp_path / "old.sqlite", old)
    store.add([Answer(item=1, annotator="ada", level="low")])
    assert len(Annotations(store.path, items).answers()) == 1
    other = items_of([record.model_copy(update={"messages": (), "query": "Tea?"})], LEVELS)
    Annotations(tmp_path / "other.sqlite", other)
    with pytest.raises(AlignvecError, match="holds answers on other items"):
        Annotations(tmp_path / "other.sqlite", items)


def test_a_start_that_was_killed_is_begun_again(tmp_path):
    (tmp_path / "a.sqlite").touch()  # what is left of one
    assert len(Annotations(tmp_path / "a.sqlite", items_of(some_records(), LEVELS)).items) == 9


def test_a_file_is_opened_beside_one_who_reads_it(tmp_path):
    """SQLite does not wait for a reader when it changes how a file is written."""
    path = tmp_path / "a.sqlite"
    items = items_of(some_records(), LEVELS)
    Annotations(path, items)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    with sqlite3.connect(path, isolation_level=None) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        assert len(Annotations(path, items).items) == 9


WRITER = """
import sys
from pathlib import Path
from alignvec.data.annotation.store import Annotations, Answer, items_of
from alignvec.data.records import LEVELS, read_records
data, path, name = sys.argv[1:]
store = Annotations(Path(path), items_of(read_records(data), LEVELS))
for number in store.order(name):
    store.add([Answer(item=number, annotator=name, level="expert")])
    print(number, flush=True)
"""


def test_several_write_at_once_and_one_is_killed(tmp_path):
    """Three start on a file that is not there yet; one is killed in the middle of its answers."""
    data, path = write_records(tmp_path / "tea.jsonl", 30), tmp_path / "answers.sqlite"
    writers = {
        name: subprocess.Popen(
            [sys.executable, "-c", WRITER, data, path, name], stdout=subprocess.PIPE, text=True
        )
        for name in ("ada", "bob", "cy")
    }
    confirmed = [int(writers["cy"].stdout.readline()) for _ in range(5)]
    writers["cy"].kill()
    confirmed += [int(line) for line in writers["cy"].stdout]
    for name in ("ada", "bob"):
        writers[name].communicate(timeout=60)
        assert writers[name].returncode == 0
    writers["cy"].wait()
    store = Annotations(path)
    count = Counter(answer.annotator for answer in store.answers())
    assert (count["ada"], count["bob"]) == (90, 90)
    assert {answer.item for answer in store.answers("cy")} >= set(confirmed)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_sample_is_the_same_every_time_and_even():
    records = list(read_records("builtin"))
    chosen = sample(records, 30)
    assert Counter(record.domain for record in chosen) == dict.fromkeys(
        ("medical", "financial", "legal"), 10
    )
    assert chosen == sample(records, 30) != sample(records, 30, seed=1)
    assert len({record.id for record in sample(records, 30, stratified=False)}) == 30
    few = [record for record in records if record.domain == "legal"][:2] + records[:50]
    assert Counter(r.domain for r in sample(few, 20))["legal"] == 2  # as far as they go
    assert len(sample(few, 1000)) == 52


def test_items_go_out_blind_and_answers_come_in(answers, tmp_path):
    """What the tools make of our files (checked against their own libraries) comes back."""
    about = {"high": 'as "bright" & clear'}
    tasks, config = export_items(answers, "label-studio", tmp_path / "tasks.json", about)
    records, settings = export_items(answers, "argilla", tmp_path / "records.json", about)
    for file in (tasks, records):
        assert not re.search("secret|low|middle|high", file.read_text())
    assert '<Choice value="high" hotkey="3" hint="as &quot;bright&quot; &amp; clear" />' in (
        config.read_text()
    )
    level, note = json.loads(settings.read_text())["questions"]
    assert [option["value"] for option in level["settings"]["options"]] == LEVELS
    assert not note["required"]

    done = json.loads(tasks.read_text())
    by = [{"completed_by": 7}, {"completed_by": {"email": "Bob@example.org", "id": 8}}]
    for number, task in enumerate(done):
        said = [
            {"from_name": "level", "to_name": "response", "type": "choices", "id": "x",
             "value": {"choices": [LEVELS[number % 3]]}},
            {"from_name": "note", "to_name": "response", "type": "textarea", "id": "y",
             "value": {"text": ["wrong", "dose"]}},
        ]  # fmt: skip
        skipped = {"result": [], "was_cancelled": True}
        task["annotations"] = [
            by[0] | {"result": said},
            by[1] | {"result": said[:1]},
            by[0] | skipped,
        ]
    export = tmp_path / "export.json"
    export.write_text(json.dumps(done))
    found = import_answers(answers, "label-studio", export)
    assert Counter(a.annotator for a in found) == {"7": 9, "bob@example.org": 9}
    assert {a.note for a in found if a.annotator == "7"} == {"wrong\ndose"}
    assert [a.level for a in found if a.annotator == "7"] == LEVELS * 3

    done = json.loads(records.read_text())
    user, other = "0b9c3f7e-0000-4000-8000-000000000001", "0b9c3f7e-0000-4000-8000-000000000002"
    for number, record in enumerate(done):
        record["responses"] = {
            "level": [
                {"value": LEVELS[number % 3], "user_id": user},
                {"value": "low", "user_id": other, "status": "draft"},
            ],
            "note": [{"value": "odd", "user_id": user}],
        }
    export.write_text(json.dumps(done))
    run("data", "annotate", "--answers", answers.path, "--import", f"argilla={export}")
    kept = answers.answers()
    assert {(a.annotator, a.note) for a in kept} == {(user, "odd")}
    item = {item.response: number for number, item in answers.items.items()}
    assert {a.item: a.level for a in kept} == {
        item[record["fields"]["response"]]: LEVELS[number % 3] for number, record in enumerate(done)
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: task["annotations"][0]["result"][0]["value"].update(choices=["best"]),
         "entry 2: 'best' is no level here"),
        (lambda task: task["data"].update(response="another"), "entry 2: this is no item of"),
        (lambda task: task["data"].update(item=99), "entry 2: this is no item of"),
        (lambda task: task.pop("annotations"), "entry 2: field 'annotations'"),
        (lambda task: task["annotations"][0].update(completed_by=""), "'completed_by' is empty"),
        (lambda task: task["annotations"][0].update(completed_by=None), "'completed_by' is empty"),
        (lambda task: task["annotations"][0].update(completed_by={"email": "", "id": None}),
         "entry 2: 'completed_by' is empty"),
        (lambda task: task["annotations"].append(
            {"completed_by": 1, "result": [{"from_name": "level", "value": {"choices": ["high"]}}]}
         ), "entry 2: '1' says 'low' and 'high' of item 2; delete one"),
    ],
)  # fmt: skip
def test_answers_that_do_not_fit_are_refused_whole(answers, tmp_path, change, message):
    said = {"from_name": "level", "value": {"choices": ["low"]}}
    tasks = [
        {
            "data": {"item": number, "response": item.response},
            "annotations": [{"completed_by": 1, "result": [json.loads(json.dumps(said))]}],
        }
        for number, item in answers.items.items()
    ]
    change(tasks[1])
    file = tmp_path / "export.json"
    file.write_text(json.dumps(tasks))
    assert message in refused(
        "data", "annotate", "--answers", answers.path, "--import", f"label-studio={file}"
    )
    assert answers.answers() == []


def test_an_export_with_what_label_studio_puts_into_it(answers, tmp_path):
    """Annotator 0, one without an address, the same answer twice, a relation, nulls."""
    number, item = next(iter(answers.items.items()))
    said = {"from_name": "level", "value": {"choices": ["low"]}}
    relation = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"}
    by = [0, {"id": 9, "email": ""}, "ada", 0, {"email": "Bob@example.org", "first_name": None}]
    annotations = [
        {"completed_by": one, "result": [said, relation], "was_cancelled": None} for one in by
    ]
    task = {"data": {"item": str(number), "response": item.response}, "annotations": annotations}
    file = tmp_path / "export.json"
    file.write_text(json.dumps([task]))
    found = import_answers(answers, "label-studio", file)
    assert [one.annotator for one in found] == ["0", "9", "ada", "bob@example.org"]


def test_an_export_with_what_argilla_puts_into_it(answers, tmp_path):
    number, item = next(iter(answers.items.items()))
    responses = [
        {"value": "low", "user_id": 0}, {"value": None, "user_id": "b", "status": "draft"},
        {"value": "high", "user_id": "c", "status": "discarded"},
        {"value": "high", "user_id": "d", "status": None},
    ]  # fmt: skip
    record = {"id": str(number), "fields": {"query": "q", "response": item.response}}
    found = [record | {"responses": {"level": responses, "note": None}}, record, record]
    found[1] = record | {"responses": None}
    file = tmp_path / "export.json"
    file.write_text(json.dumps(found))
    read = import_answers(answers, "argilla", file)
    assert {one.annotator: one.level for one in read} == {"0": "low", "d": "high"}
    responses[0]["user_id"] = None
    file.write_text(json.dumps(found))
    with pytest.raises(AlignvecError, match="entry 1: 'user_id' is empty"):
        import_answers(answers, "argilla", file)


def test_fields_beside_the_levels_are_nothing_to_annotate(tmp_path):
    data = write_records(tmp_path / "tea.jsonl", 4, source="a forum", url="https://example.org")
    file = tmp_path / "answers.sqlite"
    run("data", "annotate", data, "--answers", file, "--export", f"argilla={tmp_path / 'out.json'}")
    assert Annotations(file).levels == ["avoidance", "generic", "expert"]


def test_bad_usage_is_one_line(answers, tmp_path):
    annotate = ("data", "annotate", "--answers", answers.path)
    text = tmp_path / "text.json"
    text.write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in (
            (("--port", port), f"cannot serve on 127.0.0.1, port {port}: Address already in use"),
            (("--export", f"argilla={answers.path}"), "already exists"),
            (("--export", "csv=x"), "is not FORMAT=FILE; formats: label-studio, argilla"),
            (("--import", f"argilla={text}"), "is no export of argilla"),
            (("--import", f"argilla={tmp_path / 'none'}"), "is missing"),
            (("--spectrum", "none"), "no spectrum 'none'"),
        ):
            assert message in refused(*annotate, *arguments)
    assert "no answers at" in refused("data", "annotate", "--answers", tmp_path / "none.sqlite")
    data = write_records(tmp_path / "tea.jsonl", 2)
    assert "other items" in refused(*annotate[:2], data, *annotate[2:])
    help_text = run("data", "annotate", "--help").stdout
    assert "Example: alignvec data annotate" in help_text
    run("data", "annotate", "--port", "0", code=2)


@contextmanager
def page(*arguments):
    """The address of `alignvec data annotate`, which is stopped as by Ctrl+C afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "alignvec",
            "data",
            "annotate",
            *map(str, arguments),
            "--port",
            str(port),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = server.stdout.readline()
    try:
        assert f"http://127.0.0.1:{port}/" in first, server.stderr.read()
        yield f"http://127.0.0.1:{port}/"
        server.send_signal(signal.SIGINT)
        last, errors = server.communicate(timeout=20)
        assert server.returncode == 0, errors
        assert errors == ""
        assert "next: alignvec data agreement" in last
    finally:
        server.kill()
        server.wait()


class Person:
    """Somebody at the page."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)

    def find(self, css):
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 30, 0.05).until(
            lambda driver: next(iter(driver.find_elements(By.CSS_SELECTOR, css)), None)
        )

    def enter(self, name):
        self.find("#name textarea, #name input").send_keys(name + "\n")

    def until(self, text, css="#where"):
        """Wait until this is to be read, by default a place, as '2 of 9'."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 20, 0.05).until(lambda _: text in self.find(css).text)

    @property
    def response(self):
        return self.find("#text p:last-child").text

    def click(self, css):
        self.find(css).click()

    def press(self, keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(keys).perform()


def test_two_annotators_at_the_page(browser, tmp_path):
    """One clicks, one presses keys, both at once; what they clicked is worked out by hand."""
    data, answers = tmp_path / "data.jsonl", tmp_path / "answers.sqlite"
    records = some_records()
    lines = ({"id": r.id, "query": r.query, **r.levels} for r in records)
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    true = {text: level for record in records for level, text in record.levels.items()}
    place = {
        text: (record.id, level) for record in records for level, text in record.levels.items()
    }
    # Both take one 'low' for 'middle'; the second also takes one 'high' for 'middle'.
    ada_says = {**true, records[0].levels["low"]: "middle"}
    bob_says = {**ada_says, records[1].levels["high"]: "middle"}

    with page(data, "--answers", answers) as address:
        ada, bob = Person(browser(), address), Person(browser(), address)
        ada.enter("Ada")
        bob.enter("bob")
        seen = []
        for number in range(1, 10):
            if number == 4:  # she skips one, and looks back at the one before
                skipped = ada.response
                ada.click("#skip")
                ada.until("5 of 9")
                ada.click("#back")
                ada.until("4 of 9")
                ada.click("#back")
                ada.until("3 of 9")
                assert ada.response == seen[-1]
                assert ada.find(".level.primary").text == ada_says[seen[-1]]
                assert ada.find("#note textarea").get_attribute("value") == "dose 3"
                ada.click("#skip")
                ada.until("4 of 9")
                ada.click("#skip")
            else:
                ada.until(f"{number} of 9")
                seen.append(ada.response)
                if number == 3:
                    ada.find("#note textarea").send_keys("dose 3")
                ada.click(f"#level-{LEVELS.index(ada_says[ada.response]) + 1}")

            bob.until(f"{number} of 9")
            if number == 5:
                bob.press("n123")  # into the note
                assert bob.find("#note textarea").get_attribute("value") == "123"
                bob.press("\n")  # leaves it
                bob.press("\ue012")  # left
                bob.until("4 of 9")
                bob.press("\ue014")  # right
                bob.until("5 of 9")
                bob.driver.refresh()  # and comes back, spelled otherwise
                bob.enter(" BOB ")
                bob.until("5 of 9")
            bob.press(str(LEVELS.index(bob_says[bob.response]) + 1))
        ada.until("The end")
        bob.until("The end")
        assert "8 answered as ada" in ada.find("#progress").text
        ada.click("#skip")  # answers the rest
        ada.until("4 of 9")
        assert ada.response == skipped
        ada.click(f"#level-{LEVELS.index(ada_says[skipped]) + 1}")
        ada.until("The end")
        assert "9 of 9 are answered" in ada.find("#progress").text
        for person in (ada, bob):
            check_blind_and_alone(person.driver, address)

    ours = {item.id: (item.record, item.level) for item in Annotations(answers).items.values()}
    kept = {(a.annotator, ours[a.item]): a.level for a in Annotations(answers).answers()}
    assert kept == {
        (name, place[text]): level
        for name, says in (("ada", ada_says), ("bob", bob_says))
        for text, level in says.items()
    }
    found = json.loads(run("data", "agreement", answers, "--json", "-o", tmp_path / "out").stdout)
    (pair,) = found["pairs"]
    # Nine responses, three of each level. Ada says low 2, middle 4, high 3; Bob 2, 5, 2.
    assert pair["raw"]["value"] == pytest.approx(8 / 9)
    chance = (2 * 2 + 4 * 5 + 3 * 2) / 81
    assert pair["kappa"]["value"] == pytest.approx((8 / 9 - chance) / (1 - chance))
    # Against three of each, chance is a third for anybody.
    against = found["with_intended"]["annotators"]
    assert against["ada"]["kappa"]["value"] == pytest.approx((8 / 9 - 1 / 3) / (2 / 3))
    assert against["bob"]["kappa"]["value"] == pytest.approx((7 / 9 - 1 / 3) / (2 / 3))
    # Both: low 4, middle 9, high 5 of 18.
    chance = (4**2 + 9**2 + 5**2) / 18**2
    fleiss = (8 / 9 - chance) / (1 - chance)
    assert found["together"]["fleiss"]["value"] == pytest.approx(fleiss)
    assert found["confusion"]["low"] == {"low": 4, "middle": 2, "high": 0}
    assert found["confusion"]["high"] == {"low": 0, "middle": 1, "high": 5}
    listed = [json.loads(x) for x in (tmp_path / "out" / "disagreements.jsonl").open()]
    assert {item["item"] for item in listed} == {"secret-0:low", "secret-1:high"}


def check_blind_and_alone(driver, address):
    """Nothing on the page tells an item; hostile text did nothing; nobody else was asked."""
    assert not driver.execute_script("return window.broken")
    assert "secret" not in driver.page_source
    served = driver.execute_script(
        "return JSON.stringify(window.gradio_config) + document.documentElement.outerHTML"
    )
    assert "secret" not in served
    assert not [one for one in driver.get_log("browser") if one["level"] == "SEVERE"]
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            assert url.startswith((address, "data:", "blob:")), url
        if message["method"] == "Network.webSocketCreated":
            pytest.fail("a web socket")


def test_hostile_text_and_double_clicks_at_the_page(browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains

    level, name = "<b>low</b>", "<img src=x onerror=window.broken=1>"
    data, spectrum = tmp_path / "data.jsonl", tmp_path / "spectrum.yaml"
    record = {"id": "a", "query": f"q {HOSTILE}", level: f"x {HOSTILE}", "high": f"y {HOSTILE}"}
    data.write_text(json.dumps(record) + "\n")
    told = [{"name": one, "instruction": f"{one} {HOSTILE}"} for one in ("low", "high")]
    about = {"version": 1, "domain": "tea", "about": "tea", "topics": ["leaf"], "levels": told}
    spectrum.write_text(json.dumps(about))
    levels = ("--levels", f"{level},high", "--spectrum", spectrum)
    with page(data, "--answers", tmp_path / "a.sqlite", *levels) as address:
        person = Person(browser(), address)
        person.enter(" ")
        person.until("a name has 1 to 80 characters", ".toast-body")
        person.enter(name)
        person.until("1 of 2")
        texts = person.driver.find_elements("css selector", "#text p")
        assert texts[0].text == f"q {HOSTILE}"
        assert texts[1].text in (f"x {HOSTILE}", f"y {HOSTILE}")
        assert person.find("#level-1").text == level
        assert f"as {name}" in person.find("#progress").text
        person.click("#about button")
        person.until("**bold** ${window.broken=1} {{7*7}}", "#about p")
        ActionChains(person.driver).double_click(person.find("#level-1")).perform()
        person.until("2 of 2")
        person.click("#level-2")
        person.until("The end")
        assert not person.driver.execute_script("return window.broken")
    assert len(Annotations(tmp_path / "a.sqlite").answers()) == 2
