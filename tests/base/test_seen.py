"""What a training saw: told of queries whatever became of the vector; not known is not unseen."""

import json

import pytest

from alignvec.base.seen import SEEN, count_seen, queries_told, seen_by_all, seen_prompts
from alignvec.vector.alignment_vector import AlignmentVector
from conftest import run, write_records

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How long?"}]


def test_a_record_knows_its_prompts_and_no_others():
    training = {SEEN: seen_prompts([f"query {n}?" for n in range(500)])}
    assert len(training[SEEN]) == 500 * 8
    asked = [f"query {n}?" for n in range(490, 510)]
    assert count_seen([training], asked) == 10
    assert count_seen([training, {SEEN: seen_prompts(["query 505?"])}], asked) == 11
    assert count_seen([{SEEN: seen_prompts([])}], asked) == 0
    assert count_seen([], asked) == 0


@pytest.mark.parametrize("asked", ["how  long?", [CHAT[1]], CHAT, "How long?\n"])
def test_what_the_user_says_counts_in_any_spacing_and_case(asked):
    assert count_seen([{SEEN: seen_prompts(["How long?"])}], [asked]) == 1
    assert count_seen([{SEEN: seen_prompts([asked])}], ["How long?"]) == 1
    assert count_seen([{SEEN: seen_prompts(["Un cafe\u0301?"])}], ["un caf\u00e9?"]) == 1


@pytest.mark.parametrize("training", [{}, {SEEN: None}, {SEEN: 3}, {SEEN: "no base 64!"}])
def test_what_is_not_told_is_not_known(training):
    known = {SEEN: seen_prompts(["a?"])}
    assert count_seen([known, training], ["a?"]) is None
    assert seen_by_all([known, training]) == {}
    assert "unseen" not in queries_told(3, None)


def test_it_is_told_in_words():
    assert queries_told(3, 0) == "3 unseen queries"
    assert queries_told(3, 2) == "3 queries, 2 of them seen in training"
    assert queries_told(3, 3) == "3 queries, all of them seen in training"


def test_a_sum_saw_what_its_parts_saw(tiny, nudged):
    one = AlignmentVector.extract(tiny(), nudged())
    told = [{SEEN: seen_prompts([query])} for query in ("a?", "b?")]
    one.training.update(told[0])
    other = 2 * one
    assert other.training[SEEN] == told[0][SEEN]
    other.training.update(told[1])
    assert count_seen([(one - 0.5 * other).training], ["a?", "b?", "c?"]) == 2
    del other.training[SEEN]
    assert count_seen([(one + other).training], ["a?"]) is None


def test_whoever_reports_on_queries_says_which_were_trained_on(tiny, tmp_path):
    """Trained on a file's train part, and on all of it; then searched, measured, calibrated."""
    data = write_records(tmp_path / "tea.jsonl", 40)
    for name, split in (("part", "train"), ("all", "all")):
        told = ("align", tiny(), "--data", data, "--split", split, "--answers", "2")
        trained = run(*told, "--epochs", "1", "-o", tmp_path / name).stdout
        assert ("unseen queries" in " ".join(trained.split())) == (split == "train")
        run("extract", tiny(), tmp_path / name, "-o", tmp_path / f"{name}-av")
        run("compress", tmp_path / f"{name}-av", "--rank", "2", "-o", tmp_path / f"{name}-small")
    for name, unseen in (("part", True), ("all", False)):
        knob = ("--vector", f"tea={tmp_path / f'{name}-small'}", "--data", data)
        out = tmp_path / f"{name}.json"
        said = run("search", tiny(), *knob, "--target", "tea=expert", "--passes", "2", "-o", out)
        assert ("unseen" in said.stdout) == unseen
        found = json.loads(out.read_text())["verified"]
        assert found["seen_in_training"] == (0 if unseen else found["queries"])
        folder = tmp_path / f"{name}-eval"
        said = run("eval", tiny(), *knob, "--set", "tea=1", "--answers", "0", "-o", folder).stdout
        assert "unseen" not in said  # the file holds both
        found = json.loads((folder / "rates.json").read_text())
        assert (found["seen_in_training"] < 40) == unseen
        sweep = run("eval", tiny(), *knob, "--sweep", "tea=0:1:1", "--answers", "0", "-o", folder,
                    "--json")  # fmt: skip
        assert json.loads(sweep.stdout)["seen_in_training"] == found["seen_in_training"]
        measured = run("calibrate", tiny(), *knob, "--steps", "3", "--answers", "0", "--json")
        assert json.loads(measured.stdout)["seen"] == found["seen_in_training"]
