"""Statistics: right on sets whose numbers are known, and a data sheet that says them."""

import json

import pytest
from dirty import dirty
from hypothesis import given
from hypothesis import strategies as st

from alignvec.data.quality.datasheet import datasheet
from alignvec.data.quality.stats import _topic_distribution, length_check, statistics
from alignvec.data.records import Record
from alignvec.errors import AlignvecError
from conftest import refused, run


def records(lengths, count=60):
    """Records with responses of so many words: a list, one a level, of (least, most)."""
    return [
        Record(
            id=str(n),
            query=f"why {n}?",
            levels={
                f"level{at}": " ".join(["word"] * (least + n % (most - least + 1)))
                for at, (least, most) in enumerate(lengths)
            },
        )
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("lengths", "verdict", "least", "most"),
    [
        ([(40, 60), (40, 60), (40, 60)], "length does not give the level away", 0.2, 0.4),
        ([(40, 60), (50, 70)], "length hints at the level", 0.6, 0.8),
        ([(10, 20), (40, 60), (90, 99)], "length gives the level away", 1, 1),
    ],
)
def test_does_the_length_give_the_level_away(lengths, verdict, least, most):
    levels = [f"level{at}" for at in range(len(lengths))]
    check = length_check(records(lengths), levels)
    assert check["verdict"] == verdict
    assert least <= check["accuracy"] <= most
    assert check["chance"] == 1 / len(lengths)


def test_too_few_records_for_the_check():
    assert length_check(records([(1, 2), (8, 9)], 5), ["level0", "level1"])["accuracy"] is None


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=30))
def test_topics_are_spread_between_one_and_all_alike(topics):
    spread = _topic_distribution(topics)
    named = [topic for topic in topics if topic]
    assert spread["distinct"] == len(set(named))
    if named:
        assert 0 <= spread["evenness"] <= 1
        assert spread["largest_share"] == named.count(spread["largest"]) / len(named)
        if len(set(named)) > 1 and len({named.count(topic) for topic in named}) == 1:
            assert spread["evenness"] == pytest.approx(1)


def test_numbers_of_a_small_set(tmp_path):
    file = tmp_path / "tea.jsonl"
    lines = [
        {"id": "a", "domain": "tea", "topic": "leaf", "persona": "Ann", "query": "How long is it?",
         "short": "Three minutes.", "long": "Three minutes, or four for black tea."},
        {"id": "b", "domain": "tea", "topic": "leaf", "persona": "Ann", "query": "How hot is it?",
         "short": "Three quarters of the way.", "long": "At eighty degrees for green tea."},
    ]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    found = statistics(file)
    assert (found["records"], found["left_out"], found["personas"]) == (2, 1, 1)
    assert found["topics"] == {
        "distinct": 1, "evenness": 0.0, "largest": "leaf", "largest_share": 1.0,
    }  # fmt: skip
    short = found["levels"]["short"]
    assert (short["words"]["mean"], short["words"]["min"], short["words"]["max"]) == (3.5, 2, 5)
    assert short["words"]["counts"] == {"2": 1, "5": 1}
    assert short["distinct_1"] == 6 / 7  # "three" comes twice
    assert short["distinct_2"] == 1
    assert found["queries"]["commonest_opening_share"] == 0.5
    assert found["domains"]["tea"]["outside_band"] is None
    sheet = datasheet("tea.jsonl", found)
    assert "Where it comes from.** Not stated" in sheet
    assert "| short | 3.50 |" in sheet


def test_the_builtin_set_with_its_data_sheet(tmp_path):
    out = tmp_path / "stats"
    found = json.loads(run("data", "stats", "builtin", "-o", out, "--json").stdout)
    assert found == json.loads((out / "stats.json").read_text())
    assert found["records"] == found["personas"] == 660
    assert {domain: one["records"] for domain, one in found["domains"].items()} == {
        "financial": 220, "legal": 220, "medical": 220,
    }  # fmt: skip
    assert all(
        share == 0 for one in found["domains"].values() for share in one["outside_band"].values()
    )
    levels = found["levels"]
    assert max(one["commonest_opening_share"] for one in levels.values()) < 0.04
    grades = [levels[level]["readability_grade"]["mean"] for level in ("generic", "expert")]
    assert grades[0] + 1 < grades[1]
    (check,) = found["length_check"]
    assert check["chance"] < check["accuracy"] < 2 / 3
    sheet = (out / "DATASHEET.md").read_text()
    assert "No human expert has checked any of it" in sheet
    assert f"{check['accuracy']:.0%} right" in sheet
    assert (out / "lengths.png").stat().st_size > 10_000
    assert (out / "lengths.svg").exists()


def test_a_dirty_file_and_what_people_know_of_it(tmp_path):
    file, about = tmp_path / "dirty.jsonl", tmp_path / "about.md"
    dirty(file, each=2)
    about.write_text("# Mine\n\nMade at home.\n")
    shown = run("data", "stats", file, "-o", tmp_path / "out", "--about", about).stdout
    assert "2 lines are no record with all its levels" in shown
    assert "length hints at the level" in shown
    assert (tmp_path / "out" / "DATASHEET.md").read_text().startswith("# Mine\n\nMade at home.")


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    good = tmp_path / "blank.jsonl"
    good.write_text('{"id": "a", "query": "q", "low": "So.", "high": " "}\n')
    for name, message in (
        ("absent.jsonl", "no such file"),
        ("empty.jsonl", "holds no records"),
        ("blank.jsonl", "has all its levels"),
    ):
        with pytest.raises(AlignvecError, match=message):
            statistics(tmp_path / name)
    absent = tmp_path / "none.md"
    assert "cannot be read" in refused("data", "stats", "builtin", "--about", absent)
    assert "takes a folder" in refused("data", "stats", "builtin", "-o", good)
