"""What counts as broken: on what models wrote, on references, and on texts broken by hand."""

import json
import random
from pathlib import Path

import pytest

from alignvec.data import read_records
from alignvec.errors import AlignvecError
from alignvec.evaluate.broken import Bounds
from alignvec.evaluate.text import variety

WRITTEN = Path(__file__).parents[2] / "benchmarks" / "results" / "lines-given.json"


@pytest.fixture(scope="module")
def written():
    """Level, or None of the base, -> what was written after a training on given texts alone."""
    run = next(iter(json.loads(WRITTEN.read_text())["runs"].values()))
    return {check["level"]: check["answers"] for check in run["levels"]}


@pytest.fixture(scope="module")
def references():
    found: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for record in read_records("builtin"):
        found[record.split] += record.levels.values()
    return found


@pytest.fixture(scope="module")
def bounds(written, references):
    return Bounds.of(written[None], references["train"])


def share(bounds, texts):
    return sum(bounds.broken(text) is not None for text in texts) / len(texts)


def test_sentences_of_made_up_numbers_are_broken_and_sound_answers_are_not(bounds, written):
    assert share(bounds, written["expert"]) >= 0.75
    assert share(bounds, written["avoidance"]) == 0
    assert share(bounds, written["generic"]) == 0


def test_the_loops_of_the_base_itself_are_broken(bounds, written):
    found = {text[:20]: bounds.broken(text) for text in written[None]}
    assert found["This is a rare and u"] == "repeats itself"
    assert 0 < share(bounds, written[None]) < 0.3


def test_no_reference_is_broken_read_before_or_not(bounds, references):
    assert share(bounds, references["train"][::5]) == 0
    assert share(bounds, references["validation"] + references["test"]) < 0.01


def test_broken_by_hand(bounds, references):
    chance = random.Random(0)
    every = [word for text in references["train"] for word in text.split()]
    salad = [" ".join(chance.choices(sorted(set(every)), k=50)) for _ in range(40)]
    letters = " ".join("".join(chance.choices("abcdefghijklm", k=6)) for _ in range(50))
    sound = references["test"][0]
    assert share(bounds, salad) > 0.9
    assert bounds.broken(letters) == "few common words"
    assert bounds.broken("") == bounds.broken(" \n ") == bounds.broken("...") == "empty"
    assert bounds.broken("It is so. " * 20) == "repeats itself"
    assert bounds.broken(" ".join(sound.split()[:12])) == "too short"
    assert bounds.broken(sound) is None
    assert bounds.broken(" ".join(references["test"][:9])) == "too long"
    mixed = sound.split()
    mixed[1::2] = [f"{n}%" for n in range(len(mixed[1::2]))]
    assert bounds.broken(" ".join(mixed)) in ("few different words", "numbers")


PLAIN = [
    "The kettle is hot, so pour the water over the leaves and wait for three minutes.",
    "You can wait for the water to cool, and then pour it over the leaves in the pot.",
    "Leaves of the plant are dried in the sun and then put into the pot with water.",
]


def test_a_text_must_be_finished_where_the_base_finishes_its_own():
    cut = PLAIN[0][:-9]
    assert Bounds.of(PLAIN * 20).broken(cut) == "unfinished"
    assert Bounds.of([*PLAIN * 3, cut]).broken(cut) is None


def test_references_widen_the_bounds_and_never_narrow_them():
    digits = "In 1990 a pot of 2 leaves had 3 cups, in 1995 it had 4, then 5 and 6, or 7 or 8."
    alone, together = Bounds.of(PLAIN), Bounds.of(PLAIN, [digits])
    assert alone.broken(digits)
    assert together.broken(digits) is None
    assert together.words[0] <= alone.words[0]
    assert together.variety <= alone.variety
    assert Bounds.of(PLAIN, [PLAIN[0]]).variety == alone.variety


def test_a_base_that_goes_round_in_circles_sets_no_standard_for_that():
    loop = "it is what it is and " * 20
    bounds = Bounds.of([loop] * 10)
    assert bounds.broken(loop) == "repeats itself"
    assert bounds.variety >= 0.4


def test_bounds_are_stated(bounds):
    found = json.loads(json.dumps(bounds.to_json()))
    assert found["repeated"] == pytest.approx(1 / 3, abs=1e-4)
    assert len(found["commonest"]) == 100
    assert "more than 33% of its 4-grams" in found["stated"]
    assert "does not end" not in found["stated"]
    assert "does not end" in Bounds.of(PLAIN).stated


def test_a_base_that_writes_nothing_sets_no_bounds():
    with pytest.raises(AlignvecError, match="empty"):
        Bounds.of(["", " "], PLAIN)


def test_variety_is_of_different_words_that_are_no_numbers():
    assert variety("") == 0
    assert variety("The cat saw the dog.") == pytest.approx(4 / 5)
    assert variety("10% of 1,000 is 5") == pytest.approx(2 / 5)
    assert variety("a b c a", stretch=3) == 1  # a b c, b c a
    assert variety("a a b", stretch=2) == pytest.approx((1 + 2) / 4)
