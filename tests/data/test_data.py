import json

import pytest

from alignvec.data import LEVELS, SPLITS, preference_pairs, read_records, split_of
from alignvec.data.pairs import parse_order
from alignvec.data.sources import builtin_files
from alignvec.errors import AlignvecError

GOOD = {
    "id": "a",
    "domain": "tea",
    "query": "how?",
    "avoidance": "x",
    "generic": "y",
    "expert": "z",
}


def read(tmp_path, *lines, **options):
    file = tmp_path / "some.jsonl"
    file.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return list(read_records(file, **options))


def test_builtin_set_is_whole_and_no_query_is_in_two_splits():
    parts = {split: list(read_records("builtin", split=split)) for split in SPLITS}
    assert sum(len(part) for part in parts.values()) == 660
    queries = [record.query for part in parts.values() for record in part]
    assert len(set(queries)) == len(queries)
    for domain in ("medical", "financial", "legal"):
        train = [r for r in parts["train"] if r.domain == domain]
        assert 130 <= len(train) <= 175


def test_split_depends_on_the_id_alone():
    assert [split_of(f"medical-a00{i}") for i in range(1, 6)] == [
        split_of(f"medical-a00{i}") for i in range(1, 6)
    ]
    # Written down once: whoever changes the hash moves test queries into training.
    assert split_of("medical-a001") == GOLDEN["medical-a001"]
    assert split_of("legal-b042") == GOLDEN["legal-b042"]


GOLDEN = {"medical-a001": "train", "legal-b042": "validation"}


def test_safety_pairs_and_look_alikes_are_read_only_where_asked_for():
    assert len(list(read_records("builtin", ["safe", "unsafe"], "safety"))) == 90
    assert len(list(read_records("builtin", ["helpful", "refusal"], "harmless"))) == 60
    domains = {record.domain for record in read_records("builtin")}
    assert domains == {"medical", "financial", "legal"}
    with pytest.raises(AlignvecError, match=r"may be levels .*: helpful, refusal"):
        list(read_records("builtin", domain="harmless"))
    with pytest.raises(AlignvecError, match="its domains: financial, legal, medical"):
        list(read_records("builtin", domain="harm"))


def test_a_file_of_ones_own_may_have_those_domains_too(tmp_path):
    records = [{**GOOD, "domain": "safety"}, {**GOOD, "id": "b", "domain": "harmless"}]
    assert [record.id for record in read(tmp_path, *records, domain="harmless")] == ["b"]


def test_safety_pairs_and_trl_files_are_records_too(tmp_path):
    safety = next(file for file in builtin_files() if file.name == "safety.jsonl")
    assert len(list(read_records(safety, ["safe", "unsafe"]))) == 90
    plain = {"prompt": "hi", "chosen": "good", "rejected": "bad"}
    chat = {
        "chosen": [{"role": "user", "content": "yo"}, {"role": "assistant", "content": "fine"}],
        "rejected": [{"role": "user", "content": "yo"}, {"role": "assistant", "content": "poor"}],
    }
    found = read(tmp_path, plain, chat, levels=["chosen", "rejected"])
    assert [(r.query, r.levels["chosen"]) for r in found] == [("hi", "good"), ("yo", "fine")]
    assert len({r.id for r in found}) == 2


def test_datasets_folder(tmp_path):
    from datasets import Dataset

    Dataset.from_list([GOOD, {**GOOD, "id": "b"}]).to_parquet(tmp_path / "set" / "part.parquet")
    assert [r.id for r in read_records(tmp_path / "set")] == ["a", "b"]
    Dataset.from_list([GOOD]).save_to_disk(tmp_path / "disk")
    assert [r.id for r in read_records(tmp_path / "disk")] == ["a"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, {k: v for k, v in GOOD.items() if k != "expert"}], "line 2: field 'expert'"),
        ([{**GOOD, "generic": "  "}], "line 1: field 'generic' is empty"),
        ([{**GOOD, "generic": 3}], "line 1: field 'generic' is empty or not text"),
        ([{k: v for k, v in GOOD.items() if k != "query"}], "line 1: field 'query'"),
        ([{**GOOD, "query": " "}], "blank"),
        ([{**GOOD, "id": True}], "line 1: field 'id'"),
        ([GOOD, GOOD], "line 2: field 'id': 'a' is already used at some.jsonl, line 1"),
        ([GOOD, "{broken"], "line 2: not JSON"),
        (["[1, 2]"], "line 1, item 1: a record is a JSON object"),
        (["3"], "line 1: a record is a JSON object"),
        (["[" * 100_000], "line 1: nested too deep"),
        ([], "holds no records"),
        (["", "  "], "holds no records"),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_field(tmp_path, lines, message):
    with pytest.raises(AlignvecError, match=message) as caught:
        read(tmp_path, *lines)
    assert "\n" not in str(caught.value)


def test_filters_that_leave_nothing_say_what_there_is(tmp_path):
    with pytest.raises(AlignvecError, match="its domains: tea"):
        read(tmp_path, GOOD, domain="coffee")
    with pytest.raises(AlignvecError, match="unknown split"):
        read(tmp_path, GOOD, split="tset")
    with pytest.raises(AlignvecError, match="no data at"):
        list(read_records(tmp_path / "absent.jsonl"))


def test_pairs_follow_the_order(tmp_path):
    (record,) = read(tmp_path, GOOD)
    order = parse_order("expert, generic,avoidance")
    neighbours = [(p.chosen, p.rejected) for p in preference_pairs([record], order)]
    assert neighbours == [("z", "y"), ("y", "x")]
    every = [(p.chosen, p.rejected) for p in preference_pairs([record], order, all_pairs=True)]
    assert every == [("z", "y"), ("z", "x"), ("y", "x")]
    for wrong in ("expert", "expert,,generic", "expert,expert", ""):
        with pytest.raises(AlignvecError, match="no order of levels"):
            parse_order(wrong)


def test_levels_are_matched_in_length():
    records = list(read_records("builtin"))
    means = [sum(len(r.levels[lv].split()) for r in records) / len(records) for lv in LEVELS]
    assert max(means) / min(means) < 1.1
