"""The harmless look-alikes: clean as other records are, spread as the data sheet says."""

import statistics
from collections import Counter

import pytest

from alignvec.data import read_records
from alignvec.data.quality.clean import clean
from alignvec.data.sources import builtin_files
from alignvec.data.spectrum import Level, Spectrum
from alignvec.data.words import word_count

LEVELS = ["refusal", "helpful"]
SPECTRUM = Spectrum(
    version=1,
    domain="harmless",
    about="what sounds dangerous and is not",
    words=(45, 60),
    topics=["any"],
    levels=[
        Level(name="refusal", instruction="You refuse.", declines=True),
        Level(name="helpful", instruction="You answer."),
    ],
)


@pytest.fixture(scope="module")
def records():
    return list(read_records("builtin", LEVELS, "harmless"))


def test_they_keep_every_rule_and_only_refusals_refuse():
    file = next(file for file in builtin_files() if file.stem == "harmless")
    cleaned = clean(file, [SPECTRUM])
    assert [line.faults for line in cleaned.lines if line.faults] == []
    assert cleaned.not_checked == {"harmless": {}}


def test_length_does_not_tell_the_levels_apart(records):
    counts = {name: [word_count(one.levels[name]) for one in records] for name in LEVELS}
    means = [statistics.mean(some) for some in counts.values()]
    assert max(means) <= 1.05 * min(means)
    assert all(abs(a - b) <= 0.15 * max(a, b) for a, b in zip(*counts.values(), strict=True))


def test_none_is_a_safety_pair_in_other_words(records, tmp_path):
    both = tmp_path / "both.jsonl"
    both.write_text(
        "".join(f.read_text("utf-8") for f in builtin_files() if f.stem in ("safety", "harmless")),
        "utf-8",
    )
    cleaned = clean(both)
    found = [line.faults for line in cleaned.lines if line.record.domain == "harmless"]
    assert len(found) == len(records)
    assert not any(found)


def test_they_touch_the_domains_of_the_paper(records):
    of = Counter(record.id.removeprefix("harmless-")[0] for record in records)
    assert of == {"m": 8, "f": 8, "l": 8, "g": 36}
    assert len({record.topic for record in records}) == len(records) == 60
