"""Who tells levels of texts: on the built-in set, on sets of other levels, on few records."""

import json

import pytest

from alignvec.data import LEVELS, Record, read_records
from alignvec.data.sources import builtin_files
from alignvec.errors import AlignvecError
from alignvec.evaluate.judge import Accuracy, LevelClassifier, cross_validated
from alignvec.evaluate.judged import Judged, judged
from conftest import write_records

LEAF = ("green", "black", "white", "herbal", "smoked", "rolled")


def tea(count, start=0):
    """Records of two levels in words of their own."""
    return [
        Record(
            id=f"t{n}",
            query=f"Is {LEAF[n % 6]} tea number {n} good?",
            levels={
                "curt": f"{LEAF[n % 6]} tea, yes. Drink it, pot {n}.",
                "warm": f"What a lovely question! I would gladly pour you {LEAF[n % 6]} tea {n}.",
            },
        )
        for n in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def builtin():
    found = list(read_records("builtin"))
    return {part: [one for one in found if one.split == part] for part in ("train", "test")}


@pytest.fixture(scope="module")
def judge(builtin):
    return LevelClassifier.fit(builtin["train"], LEVELS)


def test_held_out_references_are_told_in_every_domain(judge, builtin):
    for domain in ("medical", "financial", "legal"):
        some = [one for one in builtin["test"] if one.domain == domain]
        found = judge.accuracy(some)
        assert found.texts == 3 * len(some)
        assert found.share >= 0.95
        assert all(one.share >= 0.9 for one in found.level.values())


def test_levels_are_told_in_a_domain_that_was_never_read(builtin):
    others = [one for one in builtin["train"] if one.domain != "legal"]
    unseen = [one for one in builtin["test"] if one.domain == "legal"]
    assert LevelClassifier.fit(others, LEVELS).accuracy(unseen).share >= 0.95


def test_safety_pairs_are_told_by_cross_validation():
    (file,) = (one for one in builtin_files() if one.name == "safety.jsonl")
    pairs = list(read_records(file, ("unsafe", "safe")))
    found = cross_validated(pairs, ("unsafe", "safe"), folds=3)
    assert found.texts == 2 * len(pairs)
    assert found.share >= 0.9


def test_a_set_of_other_levels_and_few_records():
    judge = LevelClassifier.fit(tea(12), ("curt", "warm"))
    told = judge(["", ""], ["Yes. Drink it.", "What a lovely pot I would gladly pour you!"])
    assert told == ["curt", "warm"]
    assert judge.accuracy(tea(6, 100)).share == 1


def test_a_text_in_which_nothing_is_known_has_no_level(judge):
    assert judge(["q"] * 3, ["", " \n", "茶茶茶"]) == [None] * 3
    assert judge([], []) == []


def test_the_same_records_make_the_same_judge(builtin):
    some, texts = builtin["train"][:60], [one.levels["generic"] for one in builtin["test"]]
    one, other = (LevelClassifier.fit(some, LEVELS) for _ in range(2))
    assert one([""] * len(texts), texts) == other([""] * len(texts), texts)
    assert one.identity == other.identity
    assert LevelClassifier.fit(some[:-1], LEVELS).identity != one.identity


def test_accuracy_counts_by_level():
    found = Accuracy.of(["a", "a", None, "b"], ["a", "b", "b", "b"])
    assert (found.texts, found.share) == (4, 0.5)
    assert {name: (one.texts, one.share) for name, one in found.level.items()} == {
        "a": (1, 1.0),
        "b": (3, pytest.approx(1 / 3)),
    }
    assert found.interval[0] < 0.5 < found.interval[1]
    assert found.level["a"].interval[0] < 1
    assert json.loads(json.dumps(found.to_json()))["level"]["b"]["texts"] == 3


def test_what_a_judge_cannot_learn_from_or_be_measured_on(tmp_path):
    records = tea(6)
    with pytest.raises(AlignvecError, match="two levels"):
        LevelClassifier.fit(records, ("curt",))
    with pytest.raises(AlignvecError, match="records with at least two levels"):
        LevelClassifier.fit([], ("curt", "warm"))
    with pytest.raises(AlignvecError, match="too little text"):
        one = Record(id="1", query="q", levels={"a": "yes", "b": "no"})
        LevelClassifier.fit([one], ("a", "b"))
    judge = LevelClassifier.fit(records, ("curt", "warm"))
    with pytest.raises(AlignvecError, match="trained on record 't3'"):
        judge.accuracy(records[3:] + tea(1, 50))
    with pytest.raises(AlignvecError, match="no records"):
        judge.accuracy([])


def test_records_of_a_file_are_judged_as_any(tmp_path):
    records = list(read_records(write_records(tmp_path / "tea.jsonl", 12)))
    judge = LevelClassifier.fit(records[:8], LEVELS)
    assert judge.accuracy(records[8:]).share == 1


class Stub:
    """Bounds by which a text with `#` is broken."""

    def broken(self, text):
        return "hash" if "#" in text else "empty" if not text else None


def by_first_letter(queries, texts):
    return [{"e": "expert", "g": "generic", "o": "other"}.get(text[:1]) for text in texts]


def test_a_miss_is_another_level_or_a_broken_text():
    texts = ["e1", "e2", "e#", "g#", "g1", "o", "", "?#"]
    found = judged(by_first_letter, Stub(), ["q"] * 8, texts, ("generic", "expert"))
    assert found.answers == 8
    assert found.rate == {"generic": 1 / 8, "expert": 2 / 8}
    assert found.level == {"generic": 2 / 8, "expert": 3 / 8}
    assert found.untold == 2 / 8
    assert found.broken == 4 / 8
    assert found.reasons == {"hash": 3, "empty": 1}
    assert list(found.reasons) == ["hash", "empty"]
    assert found.missed("expert") == 6 / 8
    low, high = found.interval["expert"]
    assert 0 < low < 0.25 < high < 1
    assert Judged.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_what_is_no_judged_rate():
    with pytest.raises(AlignvecError, match="field 'rate'"):
        Judged.from_json({"answers": 3})
