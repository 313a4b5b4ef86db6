"""Agreement: against hand calculations, published examples, scikit-learn, and what always holds."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignvec.data.annotation import agreement as measures
from alignvec.data.annotation.agreement import Ratings, agreement, disagreements, read_ratings
from alignvec.errors import AlignvecError
from conftest import refused, run

LEVELS = ("avoidance", "generic", "expert")
A, G, E = LEVELS


def ratings(levels, *answers, intended=()):
    """The answers of each annotator, an item after the other; None is no answer."""
    chosen = {
        str(item): {f"rater {n}": level for n, level in enumerate(given) if level is not None}
        for item, given in enumerate(zip(*answers, strict=True))
    }
    return Ratings(
        levels,
        {item: given for item, given in chosen.items() if given},
        {str(item): level for item, level in enumerate(intended)},
    )


def values(found):
    """Only the values, at the same places."""
    if isinstance(found, dict):
        return found["value"] if "value" in found else {k: values(v) for k, v in found.items()}
    return [values(one) for one in found] if isinstance(found, list) else found


def test_two_annotators_by_hand():
    """Ten items:       second says A  G  E
    first says A              3  1  0   4
               G              0  2  1   3
               E              0  0  3   3
                              3  3  4
    """
    first = [A] * 4 + [G] * 3 + [E] * 3
    second = [A] * 3 + [G] + [G] * 2 + [E] + [E] * 3
    found = values(agreement(ratings(LEVELS, first, second)))
    (pair,) = found["pairs"]
    assert pair["raw"] == pytest.approx(8 / 10)
    chance = (4 * 3 + 3 * 3 + 3 * 4) / 100
    assert pair["kappa"] == pytest.approx((0.8 - chance) / (1 - chance))  # .47 / .67
    # Two answers are one step apart. By chance: A-G 4 x 3, A-E 4 x 4 ...
    apart = 12 + 2 * 16 + 9 + 12 + 2 * 9 + 9  # of 100
    assert pair["linear"] == pytest.approx(1 - 0.2 / (apart / 100))
    apart = 12 + 4 * 16 + 9 + 12 + 4 * 9 + 9
    assert pair["quadratic"] == pytest.approx(1 - 0.2 / (apart / 100))
    # Both together chose A 7, G 6, E 7 times.
    together = found["together"]
    assert together["raw"] == pytest.approx(0.8)
    chance = (49 + 36 + 49) / 400
    assert together["fleiss"] == pytest.approx((0.8 - chance) / (1 - chance))
    assert together["alpha"] == pytest.approx(1 - 0.2 / (1 - (42 + 30 + 42) / 380))  # 1 - .2/.7
    # Ordinal distance: what lies between, with half of the ends. A-G and G-E 6.5, A-E 13.
    observed = 4 * 6.5**2 / 20
    expected = 2 * (2 * 7 * 6 * 6.5**2 + 7 * 7 * 13**2) / 380
    assert together["alpha_ordinal"] == pytest.approx(1 - observed / expected)


def test_against_the_intended_level_by_hand():
    """Six items, two of each level. The first misses one, the second two, the third three."""
    intended = [A, A, G, G, E, E]
    first, second, third = [A, G, G, G, E, E], [A, G, G, E, E, E], [G, G, A, G, E, E]
    found = agreement(ratings(LEVELS, first, second, third, intended=intended))
    against = values(found["with_intended"])
    # Chance is a third each time: every level is intended twice of six.
    for name, right in (("rater 0", 5), ("rater 1", 4), ("rater 2", 3)):
        kappa = (right / 6 - 1 / 3) / (1 - 1 / 3)
        assert against["annotators"][name]["kappa"] == pytest.approx(kappa)
    # Most say A G G G E E: one miss.
    assert against["majority"]["kappa"] == pytest.approx((5 / 6 - 1 / 3) / (2 / 3))
    assert found["confusion"] == {
        A: {A: 2, G: 4, E: 0},
        G: {A: 1, G: 4, E: 1},
        E: {A: 0, G: 0, E: 6},
    }


def test_a_tie_is_no_majority():
    found = ratings(LEVELS, [A, A], [G, G], [None, G], intended=[A, G])
    assert found.majority == {"1": G}
    assert agreement(found)["with_intended"]["majority"]["kappa"]["items"] == 1


def test_cohens_example():
    """Fifty grant applications; yes-yes 20, yes-no 5, no-yes 10, no-no 15 give 0.4."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    (pair,) = agreement(ratings(("no", "yes"), first, second))["pairs"]
    assert pair["kappa"]["value"] == pytest.approx(0.4)


def test_fleiss_example():
    """Ten subjects, fourteen raters, five categories: 0.210 (Fleiss' kappa in Wikipedia)."""
    counts = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    subjects = [[str(c) for c, n in enumerate(row) for _ in range(n)] for row in counts]
    found = agreement(ratings("01234", *zip(*subjects, strict=True)))
    assert found["together"]["fleiss"]["value"] == pytest.approx(0.210, abs=5e-4)


def test_krippendorffs_example():
    """Four observers, twelve units, some missing: .743, ordinal .815 (Krippendorff 2011)."""
    rows = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    answers = [[cell and str(cell) for cell in row] for row in rows]
    together = agreement(ratings("12345", *answers))["together"]
    assert together["alpha"]["value"] == pytest.approx(0.743, abs=5e-4)
    assert together["alpha_ordinal"]["value"] == pytest.approx(0.815, abs=5e-4)
    assert together["fleiss"]["items"] == 8  # that all four rated


def test_intervals():
    """Of 400 items 80% agree: by the normal approximation 0.8 +- 1.96 x 0.02."""
    first = [A, G] * 200
    second = [A, G] * 160 + [G, A] * 40
    found = agreement(ratings(LEVELS, first, second))
    (pair,) = found["pairs"]
    assert pair["raw"]["interval"] == pytest.approx([0.761, 0.839], abs=0.008)
    for measure in (pair["kappa"], *found["together"].values()):
        low, high = measure["interval"]
        assert low < measure["value"] < high
    assert agreement(ratings(LEVELS, first, second)) == found
    assert agreement(ratings(LEVELS, first, second), seed=1) != found


@pytest.mark.parametrize(
    ("answers", "intended", "remark", "defined"),
    [
        ([[A, G, E]], [], "one annotator", {}),
        ([[A, None], [None, G]], [A, G], "no item was answered by two", {}),
        ([[A, A], [A, A]], [A, A], "the same level", {"raw": 1.0}),
        ([[A, G, None], [A, None, E], [None, G, E]], [A, G, E], "no item was answered by all 3",
         {"raw": 1.0, "alpha": 1.0, "alpha_ordinal": 1.0}),
        ([[A], [G]], [A], "", {"raw": 0.0, "fleiss": -1.0, "alpha": 0.0, "alpha_ordinal": 0.0}),
    ],
)  # fmt: skip
def test_what_is_not_defined_is_null_and_explained(answers, intended, remark, defined):
    found = agreement(ratings(LEVELS, *answers, intended=intended))
    json.dumps(found, allow_nan=False)
    together = values(found["together"])
    assert {name: value for name, value in together.items() if value is not None} == defined
    assert remark in "; ".join(found["remarks"])
    if not intended:
        assert found["with_intended"] is found["confusion"] is None


@st.composite
def some_ratings(draw):
    levels = "abcd"[: draw(st.integers(2, 4))]
    items = draw(st.integers(1, 12))
    answer = st.sampled_from([*levels, None])
    one = st.lists(answer, min_size=items, max_size=items).filter(any)
    return levels, draw(st.lists(one, min_size=2, max_size=4))


def quick(levels, answers):
    """The values, and a check that all of it is JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "_RESAMPLES", 20)
        found = agreement(ratings(levels, *answers))
    json.dumps(found, allow_nan=False)
    return values(found)


def same(one, other):
    assert set(one) == set(other)
    for name, value in one.items():
        assert other[name] == (value if value is None else pytest.approx(value, abs=1e-9)), name


@given(some_ratings())
@settings(max_examples=40, deadline=None)
def test_identical_annotators_agree_wholly(case):
    levels, (first, *_) = case
    found = quick(levels, [first, first])
    for measure in (*found["pairs"][0].items(), *found["together"].items()):
        if measure[0] != "annotators":
            assert measure[1] in (None, pytest.approx(1)), measure


@given(some_ratings(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_names_of_levels_and_order_of_annotators_do_not_matter(case, chance):
    levels, answers = case
    found = quick(levels, answers)
    shuffled = chance.sample(answers, len(answers))
    same(found["together"], quick(levels, shuffled)["together"])
    new = dict(zip(levels, chance.sample(levels, len(levels)), strict=True)) | {None: None}
    renamed = quick(levels, [[new[level] for level in row] for row in answers])
    for name in ("raw", "fleiss", "alpha"):
        same({name: found["together"][name]}, {name: renamed["together"][name]})
    for one, other in zip(found["pairs"], renamed["pairs"], strict=True):
        same({"kappa": one["kappa"]}, {"kappa": other["kappa"]})


@given(some_ratings())
@settings(max_examples=40, deadline=None)
def test_kappas_are_those_of_scikit_learn(case):
    import warnings

    from sklearn.metrics import cohen_kappa_score

    levels, (first, second, *_) = case
    both = [(a, b) for a, b in zip(first, second, strict=True) if a and b]
    (pair,) = quick(levels, [first, second])["pairs"]
    for name, weights in (("kappa", None), ("linear", "linear"), ("quadratic", "quadratic")):
        expected = float("nan")
        if both:
            with warnings.catch_warnings(action="ignore"):
                expected = cohen_kappa_score(
                    *zip(*both, strict=True), labels=list(levels), weights=weights
                )
        if expected != expected:
            assert pair[name] is None
        else:
            assert pair[name] == pytest.approx(expected, abs=1e-9)


TABLE = "item,annotator,level,intended\n1,Ada,a,a\n1,bob,b,a\n2, ada ,b,b\n2,bob,b,b\n3,bob,a,\n"


def test_a_table_is_read_and_written_up(tmp_path):
    file = tmp_path / "answers.csv"
    file.write_text("\ufeff" + TABLE)
    line = refused("data", "agreement", file)
    assert "line 2: 'a' is no level; name them with --levels" in line
    shown = run("data", "agreement", file, "--levels", "a,b", "-o", tmp_path / "out").stdout
    assert "ada, bob" in shown
    assert "majority, intended" in shown
    found = json.loads((tmp_path / "out" / "agreement.json").read_text())
    # Two items: a-b, b-b. Chance: ada a 1 b 1, bob a 0 b 2: half.
    assert found["pairs"][0]["kappa"]["value"] == 0
    assert found["annotators"] == {"ada": 2, "bob": 3}
    assert found["confusion"] == {"a": {"a": 1, "b": 1}, "b": {"a": 0, "b": 2}}
    (differing,) = (tmp_path / "out" / "disagreements.jsonl").read_text().splitlines()
    assert json.loads(differing) == {
        "item": "1", "intended": "a", "answers": {"ada": "a", "bob": "b"}
    }  # fmt: skip
    assert (tmp_path / "out" / "confusion.png").stat().st_size > 5_000
    assert "<svg" in (tmp_path / "out" / "confusion.svg").read_text()
    lines = tmp_path / "answers.jsonl"
    header, *rows = (line.split(",") for line in TABLE.splitlines())
    lines.write_text("".join(json.dumps(dict(zip(header, r, strict=True))) + "\n" for r in rows))
    again = run("data", "agreement", lines, "--levels", "a,b", "--json").stdout
    assert json.loads(again) == found


ROWS = [
    {"item": item, "annotator": who, "level": (item + (who and item == 5)) % 3, "intended": 0}
    for item in range(6)
    for who in range(2)
]


@pytest.mark.parametrize("form", ["csv", "CSV", "semicolons", "tsv", "jsonl", "floats", "blanks"])
def test_a_table_counted_from_nought(tmp_path, form):
    """Item 0, annotator 0 and level 0 are an item, an annotator and a level."""
    separator = {"semicolons": ";", "tsv": "\t"}.get(form, ",")
    ending = {"semicolons": "csv", "blanks": "csv", "floats": "jsonl"}.get(form, form)
    file = tmp_path / f"a.{ending}"
    rows = [{name: float(value) for name, value in row.items()} for row in ROWS]
    if ending == "jsonl":
        given = rows if form == "floats" else ROWS
        file.write_text("".join(json.dumps(row) + "\n" for row in given))
    else:
        header = " Item,Annotator,LEVEL,intended" if form == "blanks" else ",".join(ROWS[0])
        lines = [header, *(",".join(map(str, row.values())) for row in ROWS)]
        if form == "blanks":
            lines[3:3] = ["", ",,,"]
        file.write_text("".join(line.replace(",", separator) + "\n" for line in lines))
    found = read_ratings(file, ["0", "1", "2"])
    assert list(found.chosen) == ["0", "1", "2", "3", "4", "5"]
    assert found.annotators == ["0", "1"]
    assert found.chosen["0"] == {"0": "0", "1": "0"}
    assert found.chosen["5"] == {"0": "2", "1": "0"}
    assert found.intended == dict.fromkeys(found.chosen, "0")
    assert agreement(found)["together"]["raw"]["value"] == pytest.approx(5 / 6)


def test_levels_of_a_table_in_another_case_and_spacing(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("item,annotator,level,intended\n1.0,a, Very  Good,GOOD\n1,b,very good,good\n")
    found = read_ratings(file, ["Good", "Very good"])
    assert found.chosen == {"1": {"a": "Very good", "b": "Very good"}}
    assert found.intended == {"1": "Good"}
    with pytest.raises(AlignvecError, match="'VERY GOOD' is no level"):
        file.write_text("item,annotator,level\n1,a,VERY GOOD\n")
        read_ratings(file, ["very good", "Very Good"])


def test_one_annotators_misses_are_listed_too():
    (missed,) = disagreements(ratings(LEVELS, [A, G, E], intended=[A, G, G]))
    assert missed["item"] == "2"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "holds no answers yet"),
        ("a.csv", "item,annotator,level\n", "holds no answers yet"),
        ("a.csv", "item,level\n1,expert\n", "line 2: no column 'annotator'; there are: item, "),
        ("a.csv", "item,annotator,level\n1,a,expert\n1,A,expert\n",
         "line 3: 'a' has answered item '1' at a.csv, line 2; keep one of the two rows"),
        ("a.csv", "item,annotator,level\n0,0,expert\n0,1,generic\n0,0,generic\n",
         "line 4: '0' has answered item '0' at a.csv, line 2"),
        ("a.csv", "item,annotator,level\n1,,expert\n", "line 2: 'annotator' is empty"),
        ("a.csv", "item,annotator,level\n ,b,expert\n", "line 2: 'item' is empty"),
        ("a.csv", "item,annotator,level\n1,b\n", "line 2: 'level' is empty"),
        ("a.jsonl", '{"item": 0, "annotator": null, "level": "expert"}\n', "'annotator' is empty"),
        ("a.jsonl", '{"item": NaN, "annotator": 0, "level": "expert"}\n', "'item' is empty"),
        ("a.jsonl", '{"item": 0, "annotator": 0, "level": "expert"}\n'
         '{"item": 0.0, "annotator": "0", "level": "expert"}\n', "line 2: '0' has answered"),
        ("a.csv", "item,annotator,level\n1,a\x1b,expert\n", "line 2: a name has"),
        ("a.csv", "item,annotator,level,intended\n1,a,expert,expert\n1,b,expert,generic\n",
         "line 3: item '1' had another intended level"),
        ("a.csv", "\xff".encode("latin-1"), "line 1: not UTF-8 text"),
        ("a.jsonl", "[1]\n", "line 1: a row is a JSON object"),
        ("a.jsonl", '{"item": 1, "annotator": "a", "level": ["expert"]}\n', "'level' is neither"),
        ("a.sqlite", "item,annotator,level\n" * 100, "is neither a file of `alignvec data ann"),
        ("a.csv", "item,annotator,level,Level\n1,a,expert,generic\n",
         "line 2: two columns are called 'level'"),
        ("a.csv", "item,annotator,level\n1,a,expert,really\n", "line 2: more cells than"),
        ("a.csv", "item,ada,bob\n1,expert,expert\n", "a row for each answer, with item, annot"),
        ("a.csv", "item,annotator,level\n1.0,a,expert\n1,a,expert\n", "line 3: 'a' has answered"),
        ("a.json", '[{"item": 1, "annotator": "a", "level": "best"}]', "'best' is no level"),
    ],
)  # fmt: skip
def test_a_bad_table_is_one_line(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AlignvecError, match=message) as caught:
        read_ratings(file)
    assert "\n" not in str(caught.value)


def test_a_figure_of_somebody_elses_stays_and_nothing_is_written(tmp_path):
    (tmp_path / "answers.csv").write_text(TABLE)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "confusion.png").write_text("mine")
    line = refused(
        "data", "agreement", tmp_path / "answers.csv", "--levels", "a,b", "-o", tmp_path / "out"
    )
    assert "confusion.png is not of alignvec's making" in line
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["confusion.png"]


def test_missing_files_and_usage(tmp_path):
    assert "no answers at" in refused("data", "agreement", tmp_path / "none.sqlite")
    assert "no data at" in refused("data", "agreement", tmp_path / "none.csv")
    assert "Example: alignvec data agreement" in run("data", "agreement", "--help").stdout
    run("data", "agreement", code=2)
