"""The layouts of public preference sets: read as TRL reads them, or refused for what is wrong."""

import csv
import gzip
import json

import pytest

from alignvec.data import preference_pairs, read_records, split_of
from alignvec.data.forms import record_fields
from alignvec.data.records import Record
from alignvec.errors import AlignvecError

PAIR = ["chosen", "rejected"]


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}
EARLIER = [user("Hi"), said("Hello.")]
ASK = user("What is 1?")
YES, NO = said("It is 1."), said("No idea.")
FULL = {"chosen": [ASK, YES], "rejected": [ASK, NO]}


def read(tmp_path, rows, name="d.jsonl"):
    file = tmp_path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return list(read_records(file, PAIR))


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "What is 1?", "chosen": "It is 1.", "rejected": "No idea."}, "What is 1?"),
        ({"prompt": "What is 1?", "prompt_id": "f" * 64, "score_chosen": 8.0,
          "messages": [ASK, YES], **FULL}, "What is 1?"),
        (FULL, "What is 1?"),
        ({"prompt": None, **FULL}, "What is 1?"),
        ({"prompt": [], **FULL}, "What is 1?"),
        ({"prompt": "What is 1?", "query": "1?", "chosen": "It is 1.", "rejected": "No idea."},
         "What is 1?"),
        ({"prompt": [SYSTEM, ASK], "chosen": [YES], "rejected": [NO]}, [SYSTEM, ASK]),
        ({"prompt": [*EARLIER, ASK], "chosen": [YES], "rejected": [NO]}, [*EARLIER, ASK]),
        ({"chosen": [SYSTEM, *EARLIER, ASK, YES], "rejected": [SYSTEM, *EARLIER, ASK, NO]},
         [SYSTEM, *EARLIER, ASK]),
        ({"prompt": [user([{"type": "text", "text": "What "}, {"type": "text", "text": "is 1?"}])],
          "chosen": [said([{"type": "text", "text": "It is 1."}])], "rejected": [NO]},
         "What is 1?"),
        ({"prompt": [{**ASK, "name": None}], "chosen": [YES], "rejected": [NO], "tools": None},
         "What is 1?"),
        ({"prompt": "What is 1?", "chosen": [YES], "rejected": [NO]}, "What is 1?"),
        ({"prompt": "What is 1?", "messages": [ASK], "annotations": [{"rating": 5}],
          "turns": [], "completions": [{"model": "m", "response": "It is."}], **FULL},
         "What is 1?"),
        ({"system": "Be kind.", "question": "What is 1?", "chosen": "It is 1.",
          "rejected": "No idea."}, [SYSTEM, ASK]),
        ({"system": "", "question": "What is 1?", "chosen": "It is 1.", "rejected": "No idea."},
         "What is 1?"),
        ({"system": "Be kind.", **FULL}, [SYSTEM, ASK]),
        ({"chosen": "\n\nHuman: What is 1?\n\nAssistant: It is 1.",
          "rejected": "\n\nHuman: What is 1?\n\nAssistant: No idea."}, "What is 1?"),
        ({level: "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: What is 1?\n\nAssistant: " + answer
          for level, answer in (("chosen", "It is 1."), ("rejected", "No idea."))},
         [*EARLIER, ASK]),
        ({"prompt": "\n\nHuman: What is 1?\n\nAssistant:", "chosen": "It is 1.",
          "rejected": "No idea."}, "What is 1?"),
        ({"prompt": [{**ASK, "tool_calls": None}], "chosen": [{**YES, "tool_calls": []}],
          "rejected": [{**NO, "reasoning_content": ""}], "tools": "[]",
          "chat_template_kwargs": {"enable_thinking": None}}, "What is 1?"),
    ],
)  # fmt: skip
def test_a_public_layout_is_a_prompt_and_two_answers(tmp_path, row, prompt):
    (record,) = read(tmp_path, [row])
    found = record.prompt if isinstance(record.prompt, str) else list(record.prompt)
    assert found == prompt
    assert record.query == "What is 1?"
    assert record.levels["chosen"] == "It is 1."
    assert record.levels["rejected"] == "No idea."
    (pair,) = preference_pairs([record], PAIR)
    assert pair.prompt == record.prompt
    assert pair.record == record.id


@pytest.mark.parametrize("row", [
    FULL,
    {"prompt": "other", **FULL},
    {"chosen": [SYSTEM, *EARLIER, ASK, YES], "rejected": [SYSTEM, *EARLIER, ASK, NO]},
    {"prompt": [SYSTEM, ASK], "chosen": [YES], "rejected": [NO]},
    {"chosen": [ASK, YES], "rejected": [ASK, YES]},
])  # fmt: skip
def test_a_conversation_has_the_prompt_that_trl_takes_out(row):
    from trl.data_utils import maybe_extract_prompt

    theirs, ours = maybe_extract_prompt(row), Record.model_validate(row)
    asked = [user(ours.prompt)] if isinstance(ours.prompt, str) else list(ours.prompt)
    assert asked == theirs["prompt"]
    for level in PAIR:
        assert [said(ours.levels[level])] == theirs[level]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": [user("Is 1 odd?"), YES], "rejected": [user("Is 1 even?"), NO]},
         "no prompt in common"),
        ({"chosen": [SYSTEM, user("a?"), YES], "rejected": [SYSTEM, user("b?"), NO]},
         "part before the last answer: the prompt"),
        ({"chosen": [ASK, YES, user("And?"), YES], "rejected": [ASK, NO]}, "part before the last"),
        ({"prompt": [ASK], "chosen": [ASK, YES], "rejected": [ASK, NO]}, "'chosen' holds 2"),
        ({"prompt": [ASK], "chosen": [], "rejected": [NO]}, "'chosen' holds 0 messages"),
        ({"prompt": [ASK], "chosen": [user("It is 1.")], "rejected": [NO]}, "no answer"),
        ({"prompt": [], "chosen": [YES], "rejected": [NO]}, "'prompt' holds no messages"),
        ({"prompt": [{"from": "human", "value": "a?"}], "chosen": [YES], "rejected": [NO]},
         "a message has a role and content"),
        ({"prompt": [user([{"type": "image"}])], "chosen": [YES], "rejected": [NO]}, "not text"),
        ({"prompt": [user(None)], "chosen": [YES], "rejected": [NO]}, "not text"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "neither text nor messages"),
        ({"chosen": "I like it.", "rejected": "I do not."}, "field 'query' is missing"),
        ({"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"}, "two prompts"),
        ({"prompt": "a?", "chosen": "b", "rejected": "c", "tools": [{"name": "f"}]}, "'tools'"),
        ({"prompt": "a?", "chosen": "b", "rejected": None}, "'rejected' is"),
        ({"prompt": "a?", "chosen": "b", "rejected": "c", "tools": '[{"name": "f"}]'}, "'tools'"),
        ({"prompt": "a?", "chosen": "b", "rejected": "c",
          "chat_template_kwargs": {"enable_thinking": False}}, "'chat_template_kwargs'"),
        ({"prompt": [ASK, {**said(""), "tool_calls": [{"function": {"name": "f"}}]},
                     {"role": "tool", "content": "3"}], "chosen": [YES], "rejected": [NO]},
         "field 'prompt': 'tool_calls' of a message"),
        ({"prompt": [ASK], "chosen": [{**YES, "reasoning_content": "One."}], "rejected": [NO]},
         "field 'chosen': 'reasoning_content' of a message"),
        ({"chosen": [ASK, YES], "rejected": [ASK, {**NO, "thinking": "Hm."}]},
         "field 'rejected': 'thinking' of a message"),
        ({"prompt": "a?", "completion": "b", "label": True}, "judge one answer alone"),
        ({"prompt": [ASK], "completion": [YES], "label": False}, "judge one answer alone"),
        ({"prompt": ["a?", "b?"], "chosen": "c", "rejected": "d"}, "a list of texts"),
        ({"data": [{"prompt": "a?"}]}, "those in 'data', save that list alone"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused_with_its_line(tmp_path, row, message):
    good = {"prompt": "x?", "chosen": "y", "rejected": "z"}
    with pytest.raises(AlignvecError, match="line 2: ") as caught:
        read(tmp_path, [good, row])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_integer_ids_and_null_fields(tmp_path):
    row = {"prompt": "What?", "chosen": "a", "rejected": "b", "topic": None, "domain": None}
    found = read(tmp_path, [{**row, "id": n} for n in range(3)])
    assert [record.id for record in found] == ["0", "1", "2"]
    assert {(record.topic, record.domain) for record in found} == {("", "general")}


def test_several_pairs_of_one_prompt_are_no_double_ids(tmp_path):
    """They share their part of the split, which is that of the prompt alone; equal pairs stay."""
    rows = [{"prompt": "What?", "chosen": f"a {n}", "rejected": "b"} for n in range(3)]
    found = read(tmp_path, [*rows, rows[0]])
    assert len(found) == 4
    assert len({record.id for record in found}) == 3
    assert {record.split for record in found} == {split_of("a4949e2c96de2668")}
    with pytest.raises(AlignvecError, match="'a' is already used"):
        read(tmp_path, [{**row, "id": "a"} for row in rows])


GOOD = [{"prompt": f"{n}?", "chosen": "a", "rejected": "b"} for n in range(3)]
ROWS = [{"prompt": f"What, {n}?", "chosen": f"a, {n}\nb", "rejected": "é"} for n in range(3)]


def as_table(delimiter=","):
    def write(path):
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)

    return write


def as_parquet(path):
    from datasets import Dataset

    Dataset.from_list(ROWS).to_parquet(path)


LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
WRITERS = {
    "d.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.encode()),
    "d.JSONL": lambda path: path.write_text("\n" + LINES),
    "d.json": lambda path: path.write_text(json.dumps(ROWS)),
    "e.json": lambda path: path.write_bytes(
        b"\xef\xbb\xbf\n" + json.dumps(ROWS, indent=2).encode()
    ),
    "record.json": lambda path: path.write_text(json.dumps(ROWS[0], indent=2)),
    "d.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "d.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "d.CSV": as_table(),
    "semicolons.csv": as_table(";"),
    "d.tsv": as_table("\t"),
    "d.parquet": as_parquet,
    "d.Parquet": as_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_as_an_editor_or_a_sheet_saves_it(tmp_path, name):
    WRITERS[name](tmp_path / name)
    found = list(read_records(tmp_path / name, PAIR))
    rows = ROWS[:1] if name.startswith("record") else ROWS
    assert [(r.query, *r.levels.values()) for r in found] == [tuple(r.values()) for r in rows]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.json", '[\n{"prompt": "a"},\n{"prompt" "b"}\n]', "d.json, line 3: not JSON"),
        ("d.json", '[{"prompt": "a?", "chosen": "b"}]', "d.json, line 1: field 'rejected'"),
        ("d.json", json.dumps([*GOOD, {"prompt": "x?"}], indent=1), "line 17: field 'chosen'"),
        ("d.json", json.dumps([*GOOD, {"prompt": "x?"}]), "line 1, item 4: field 'chosen'"),
        ("d.csv", "prompt,chosen,rejected\na?,b,c\na?,b,c,d\n", "d.csv, line 3: more cells"),
        ("d.csv", 'prompt,chosen,rejected\n"a\n?",b,c\na?,,c\n', "d.csv, line 4: field 'chosen'"),
        ("d.csv", "prompt,chosen,chosen\na?,b,c\n", "column 'chosen' comes twice"),
        ("d.csv", "prompt,chosen,rejected\na?,\"[{'role': 'assistant', 'content': 'b'}]\",c\n",
         "d.csv, line 2: field 'chosen' looks like messages"),
        ("d.csv", "prompt,chosen,rejected\n", "holds no records"),
        ("d.jsonl.gz", LINES, "cannot be unpacked"),
        ("d.xlsx", "x", "records are in JSON Lines"),
        ("d.jsonl", LINES.encode("utf-16"), "line 1: not UTF-8 text; save the file as UTF-8"),
        ("d.jsonl", LINES.encode("utf-16-be"), "line 1: not UTF-8 text; save the file as UTF-8"),
        ("d.csv", "prompt,chosen,rejected\ra?,b,c\r", "d.csv: lines end in CR alone"),
        ("d.csv", '"prompt"x,chosen,rejected\na?,b,c\n', "d.csv, line 1: no header of a table"),
        ("d.json", json.dumps({"rows": ROWS}, indent=1), "line 1: field 'query' is missing"),
        ("d.json", '{\n"prompt": "a?",\n}', "d.json, line 2: not JSON"),
        ("d.jsonl", '{"prompt": "a?", "chosen": "b", "chosen": "c", "rejected": "d"}\n',
         "d.jsonl, line 1: field 'chosen' comes twice in one object"),
        ("d.jsonl", LINES + '{"prompt": [{"role": "user", "content": "a", "content": "b"}]}\n',
         "d.jsonl, line 4: field 'content' comes twice"),
        ("d.json", '[{"prompt": "a?", "prompt": "b?"}]', "d.json, line 1: field 'prompt' comes"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_why_and_where(tmp_path, name, content, message):
    as_bytes = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(as_bytes)
    with pytest.raises(AlignvecError) as caught:
        list(read_records(tmp_path / name, PAIR))
    assert message in str(caught.value)


def test_a_folder_without_a_train_part_says_what_there_is(tmp_path):
    (tmp_path / "test.jsonl").write_text(LINES)
    with pytest.raises(AlignvecError, match=r"\['test'\]; records are read of 'train'"):
        list(read_records(tmp_path, PAIR))


def test_a_hub_set_that_is_not_there_is_told_without_a_class_of_pythons():
    with pytest.raises(AlignvecError, match=r"Couldn't reach 'nobody/none' on the Hub$"):
        list(read_records("nobody/none", PAIR))


def test_messages_in_a_cell_are_json(tmp_path):
    with (tmp_path / "d.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FULL)
        writer.writerow(json.dumps(value) for value in FULL.values())
    (record,) = read_records(tmp_path / "d.csv", PAIR)
    assert record.query == "What is 1?"


def test_our_own_form_is_as_it_was():
    row = {"id": "a", "domain": "tea", "query": "how?", "prompt": "a note", "expert": "z"}
    assert record_fields(row) == {
        "id": "a", "domain": "tea", "query": "how?", "messages": (),
        "levels": {"prompt": "a note", "expert": "z"},
    }  # fmt: skip


def test_a_dialogue_after_a_prompt_of_its_own_is_an_answer():
    chosen, rejected = "Human: Hi\n\nAssistant: Hello", "Human: Hi\n\nAssistant: Bye"
    found = record_fields({"prompt": "Write a dialogue", "chosen": chosen, "rejected": rejected})
    assert (found["query"], found["levels"]) == (
        "Write a dialogue", {"chosen": chosen, "rejected": rejected},
    )  # fmt: skip
    found = record_fields({"prompt": "Hi", "chosen": chosen, "rejected": rejected})
    assert (found["query"], found["levels"]) == ("Hi", {"chosen": "Hello", "rejected": "Bye"})


@pytest.mark.parametrize("after", ["\n\nIs this dialogue polite?", " Sure,"])
def test_a_prompt_that_holds_a_dialogue_is_one_text(after):
    prompt = f"Human: Hi\n\nAssistant:{after}"
    found = record_fields({"prompt": prompt, "chosen": "a", "rejected": "b"})
    assert (found["query"], found["messages"]) == (prompt, ())


def test_a_dialogue_with_the_line_ends_of_windows():
    prompt = "\r\n\r\nHuman: Hi\r\n\r\nAssistant:"
    assert record_fields({"prompt": prompt, "chosen": "a", "rejected": "b"})["query"] == "Hi"
