"""Which levels and records a study takes of the data that people have."""

import json
import logging

import pytest

from alignvec.errors import AlignvecError
from alignvec.reproduce.records import Records

WORST, MIDDLE, BEST = "avoidance", "generic", "expert"


@pytest.fixture
def data(tmp_path):
    """`data(field=text)` is a file of 40 records; `{}` in a text is the record's number."""

    def of(count=40, turned=0, **fields):
        file = tmp_path / "d.jsonl"
        lines = []
        for n in range(count):
            texts = [(name, text.format(n)) for name, text in fields.items()]
            order = -1 if n < turned else 1
            lines.append({"id": f"q{n}", "query": f"What is {n}?", **dict(texts[::order])})
        file.write_text("\n".join(map(json.dumps, lines)))
        return str(file)

    return of


def test_levels_of_known_names_stand_in_their_order_whatever_that_of_the_fields(data):
    told = {"chosen": "Take {} now.", "rejected": "Not {}."}
    assert Records.read(data(**told)).levels == ["rejected", "chosen"]
    told = {BEST: "{} is best.", "source": "the web", MIDDLE: "It is {}.", WORST: "Ask {}."}
    assert Records.read(data(**told)).levels == [WORST, MIDDLE, BEST]
    assert Records.read(data(**told), [BEST, WORST]).levels == [BEST, WORST]


def test_levels_of_other_names_stand_as_the_fields_do_and_that_is_said(data, caplog):
    told = {"rude": "Go away, {}.", "kind": "Dear {}.", "author": "someone"}
    with caplog.at_level(logging.WARNING):
        assert Records.read(data(**told)).levels == ["rude", "kind"]
    assert "from low to high: rude, kind, as its fields stand" in caplog.text
    with pytest.raises(AlignvecError, match=r"in different orders.*--levels"):
        Records.read(data(**told, turned=3))


def test_one_level_is_no_study(data):
    file = data(kind="Dear {}.")
    for levels in (None, ["kind"], ["kind", "kind"]):
        with pytest.raises(AlignvecError, match=r"two levels or more.*has kind.*--levels"):
            Records.read(file, levels)


def test_fewer_records_than_prompting_shows_are_refused(data):
    with pytest.raises(AlignvecError, match=r"has \d of at least 3 records in the train part"):
        Records.read(data(3, rude="Go away, {}.", kind="Dear {}."))
