"""Files and folders as people have them: none is read for another, and nothing of them is lost."""

import csv
import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from alignvec.data.annotation.agreement import read_ratings
from alignvec.data.annotation.store import Annotations, Answer, items_of
from alignvec.data.quality.clean import clean
from alignvec.data.records import read_records
from alignvec.data.sources import rows
from alignvec.errors import AlignvecError
from conftest import refused

PAIR = ("rejected", "chosen")


def pairs(*names):
    return [{"prompt": f"ask {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in names]


def asked(source):
    return [record.query for record in read_records(source, PAIR)]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_of_a_saved_set_of_splits_the_part_that_is_called_train_is_read(tmp_path):
    parts = {name: Dataset.from_list(pairs(name)) for name in ("train", "train_sft", "test")}
    DatasetDict(parts).save_to_disk(tmp_path / "three")
    (tmp_path / "three" / "train" / "cache-1.arrow").write_bytes(b"what map() leaves behind")
    assert asked(tmp_path / "three") == ["ask train"]
    assert asked(tmp_path / "three" / "train_sft") == ["ask train_sft"]
    DatasetDict({"train_prefs": parts["train"]}).save_to_disk(tmp_path / "prefs")
    with pytest.raises(AlignvecError, match="no part 'train', but train_prefs"):
        asked(tmp_path / "prefs")


def test_of_a_folder_with_two_formats_it_is_said_what_is_left_out(tmp_path, caplog):
    lines(tmp_path / "a.jsonl", *pairs("a"))
    lines(tmp_path / "b.jsonl", *pairs("b"))
    assert asked(tmp_path) == ["ask a", "ask b"]
    assert not caplog.records
    Dataset.from_list(pairs("c")).to_csv(tmp_path / "c.csv")
    assert asked(tmp_path) == ["ask a", "ask b"]
    assert "left out: c.csv" in caplog.text


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_name_is_no_pattern_for_others(tmp_path, kind):
    for name in ("a[1]", "a1", "a*", "ab"):
        made = Dataset.from_list(pairs(name))
        if kind == "parquet":
            made.to_parquet(tmp_path / f"{name}.parquet")
        else:
            made.save_to_disk(tmp_path / f"folder {name}")
            (file,) = (tmp_path / f"folder {name}").glob("*.arrow")
            file.rename(tmp_path / f"{name}.arrow")
    for name in ("a[1]", "a*"):
        assert asked(tmp_path / f"{name}.{kind}") == [f"ask {name}"]
    (tmp_path / "b[1]").mkdir()
    (tmp_path / "b1").mkdir()
    lines(tmp_path / "b[1]" / "train.jsonl", *pairs("x"))
    lines(tmp_path / "b1" / "train.jsonl", *pairs("other"))
    with pytest.raises(AlignvecError, match="stand for other names"):
        asked(tmp_path / "b[1]")


def test_classes_have_their_names(tmp_path):
    kinds = Features({**dict.fromkeys(("prompt", *PAIR), Value("string")),
                      "domain": ClassLabel(names=["medical", "legal"])})  # fmt: skip
    made = Dataset.from_list([{**pairs("x")[0], "domain": 1}], features=kinds)
    made.to_parquet(tmp_path / "classes.parquet")
    made.save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "classes.parquet", tmp_path / "saved"):
        assert [record.domain for record in read_records(source, PAIR)] == ["legal"]


@pytest.mark.parametrize("indent", [None, 1])
def test_messages_in_the_cells_of_a_table(tmp_path, indent):
    said = [{"role": "user", "content": "q"}]
    answers = [{"role": "assistant", "content": text} for text in ("yes", "no")]
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (tmp_path / "t.csv", folder / "train.csv"):
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["prompt", "chosen", "rejected"])
            writer.writerow(
                [" " + json.dumps(said, indent=indent), json.dumps([answers[0]], indent=indent),
                 json.dumps(answers[1], indent=indent)]
            )  # fmt: skip
    for source in (tmp_path / "t.csv", folder):
        (record,) = read_records(source, PAIR)
        assert (record.query, record.levels) == ("q", {"chosen": "yes", "rejected": "no"})


def test_a_line_of_a_table_is_told_by_its_number(tmp_path):
    (tmp_path / "t.csv").write_text('\n\nprompt,chosen,rejected\n\nq,"a\nb",c\n\nq,,b\n')
    assert [place for place, _ in rows(str(tmp_path / "t.csv"))] == [
        "t.csv, line 5",
        "t.csv, line 8",
    ]


def test_a_hub_id_may_have_dots_and_a_folder_a_colon(tmp_path, monkeypatch):
    with pytest.raises(AlignvecError, match="cannot be read as a dataset"):
        asked("allenai/llama-3.1-tulu-3-8b-preference-mixture")
    with pytest.raises(AlignvecError, match="no data at"):
        asked("data/mine.jsonl")
    (tmp_path / "run:2").mkdir()
    lines(tmp_path / "run:2" / "train.jsonl", *pairs("x"))
    assert asked(tmp_path / "run:2") == ["ask x"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert asked("~/run:2") == ["ask x"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:2" / "noext").write_text("{}")
    with pytest.raises(AlignvecError, match="records are in JSON Lines"):
        asked("run:2/noext")


def test_not_a_number_is_nothing(tmp_path):
    nothing = {"id": float("nan"), "domain": float("nan"), "topic": None}
    file = lines(tmp_path / "n.jsonl", *({**one, **nothing} for one in pairs("a", "b")))
    assert [record.domain for record in read_records(file, PAIR)] == ["general", "general"]
    blank = lines(tmp_path / "b.jsonl", {**pairs("a")[0], "domain": " "})
    assert [record.domain for record in read_records(blank, PAIR)] == ["general"]


def test_records_that_are_there_twice_keep_all_answers(tmp_path):
    records = list(read_records(lines(tmp_path / "r.jsonl", *pairs("a", "a", "b")), PAIR))
    store = Annotations(tmp_path / "a.sqlite", items_of(records, PAIR))
    store.add(
        Answer(item=key, annotator="Ann", level=item.level) for key, item in store.items.items()
    )
    ratings = read_ratings(tmp_path / "a.sqlite")
    assert len(ratings.chosen) == 6
    assert all(ratings.intended[item] == said["Ann"] for item, said in ratings.chosen.items())


def test_a_mark_of_direction_does_not_cut_a_sentence_off(tmp_path):
    text = "هذا جواب كامل عن السؤال الذي طرحته."
    rows = [
        {"query": f"سؤال رقم {n}؟", "low": f"{text} {n}.\u200f", "high": f"{text} نعم {n}.\u202c"}
        for n in range(6)
    ]
    found = clean(str(lines(tmp_path / "r.jsonl", *rows)), [], ("low", "high"), [])
    assert "stops in the middle" not in str([line.faults for line in found.lines])


def test_what_is_kept_is_json_lines_by_its_name_too(tmp_path):
    data = lines(tmp_path / "r.jsonl", *pairs("a"))
    assert "call it .jsonl" in refused("data", "clean", data, "-o", tmp_path / "kept.csv")
    assert not (tmp_path / "kept.csv").exists()


@pytest.mark.parametrize("domain", ["../evil", "/abs", "a/b", "..", "training.json", "x" * 300])
def test_a_domain_that_is_no_name_of_a_folder_makes_no_knob(tmp_path, domain):
    one = lines(tmp_path / "one.jsonl", {**pairs("a")[0], "domain": domain})
    two = lines(tmp_path / "two.jsonl", *pairs("b"))
    told = refused("align", "embedded", "--data", one, "--data", two, "-o", tmp_path / "out")
    assert "cannot be the name of a knob's folder" in told
