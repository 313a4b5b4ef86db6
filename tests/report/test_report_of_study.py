"""The report of a study, from folders whose results nobody measured (`made_up`)."""

import csv
import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from made_up import DOMAINS, LEVELS, measured, results, write_study

from alignvec.errors import AlignvecError
from alignvec.report.study import write_report
from alignvec.report.study.claims import claims_table
from alignvec.report.study.document import Share, Verdict
from alignvec.report.study.lines import rate_panel
from alignvec.report.study.paper import CLAIMS
from alignvec.report.study.results import Results, difference, reached
from alignvec.report.study.svg import svg
from alignvec.report.study.verdicts import above_zero, deciding, in_every
from alignvec.report.study.write import PARTS

HOSTILE = '<script>document.title="run"</script><img src=x onerror=alert(1)>"\'&|`*[a](b)\n=1+1\x07'


class Page(HTMLParser):
    """Tags, ids, addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.said = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.said.append(data)


def report_of(folder, *studies):
    write_report(list(studies), folder)
    return Page((folder / "report.html").read_text("utf-8"))


def verdicts(study):
    """Claim -> (of, by) -> verdict, and why."""
    found = {}
    for row in claims_table(CLAIMS, [Results(study)]).rows:
        told = {name: cell for (_, name), cell in row.items()}
        found.setdefault(told["claim"], {})[told["of"], told["by"]] = told["verdict"], told["why"]
    return found


def claim(name):
    return next(one.text for one in CLAIMS if one.name == name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("made-up") / "study")


@pytest.fixture(scope="module")
def written(whole):
    write_report([whole], whole / "report")
    return whole / "report"


def test_a_report_is_one_page_that_loads_and_runs_nothing(written):
    page = Page((written / "report.html").read_text("utf-8"))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    places = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert places
    assert all(place.startswith("#") for place in places)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))  # of many drawings on a page, too
    assert {place[1:] for place in places} <= set(ids)
    assert {f"#{part.name}" for part in PARTS} <= set(places)
    assert page.tags.count("svg") == len(list((written / "figures").glob("*.svg"))) > 20


def test_what_is_drawn_is_well_formed_and_has_its_text(written):
    figures = sorted((written / "figures").glob("*.svg"))
    for file in figures:
        ElementTree.parse(file)
    assert "expert, judged" in (written / "figures" / "single-rates-1.svg").read_text()


def test_every_form_says_the_same_unrounded(whole, written):
    report = json.loads((written / "report.json").read_text())
    one = json.loads((whole / "results/single/legal/one-sided/0.5.json").read_text())["result"]
    place = DOMAINS.index("legal") + 1
    tables = {name: rows for part in report["sections"] for name, rows in part["tables"].items()}
    said = next(
        row for row in tables[f"single-{place}"] if row["at"] == 0.5 and "paper" in row["by"]
    )
    assert said["judged: expert"]["value"] == one["judged"]["rate"]["expert"]
    assert said["its texts: perplexity"] == pytest.approx(10.4395, abs=1e-3)
    with (written / f"tables/single-{place}.csv").open() as file:
        rows = list(csv.DictReader(file))
    line = next(row for row in rows if row["at"] == "0.5" and "paper" in row["by"])
    assert float(line["judged: expert low"]) == one["judged"]["interval"]["expert"][0]
    told = (written / "report.md").read_text()
    assert f"{one['judged']['rate']['expert']:.2f} (" in told
    assert all(f"tables/{name}.csv" for name in tables)
    assert {file.stem for file in (written / "tables").iterdir()} == set(tables)
    assert all((written / line.split("(")[-1].rstrip(")")).is_file()
               for line in told.splitlines() if line.startswith("!["))  # fmt: skip
    queries = [one["query"] for part in report["sections"] for one in part["answers"]]
    assert queries == ["Is it 0?", "Is it 1?"] * 2


def test_hostile_names_and_answers_are_only_read(tmp_path, browser):
    level, domain = f"top{HOSTILE}", f"law{HOSTILE}"
    levels, domains = ("low", level), (domain, "money")
    found = results(domains, levels, query=HOSTILE + "{n}", answer=HOSTILE)
    found = {name: one for name, one in found.items() if "one-sided" not in name}  # sooner drawn
    told = {"base": HOSTILE, "reader": HOSTILE, "data": HOSTILE}
    page = report_of(tmp_path / "out", write_study(tmp_path / "in", found, domains, levels, **told))
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert any("<script>document.title" in one for one in page.said)  # it is there to read
    for file in (tmp_path / "out/figures").glob("*.svg"):
        tags = {one.tag.rpartition("}")[2] for one in ElementTree.parse(file).iter()}
        assert not {"script", "img", "image"} & tags
    told = (tmp_path / "out/report.md").read_text()
    assert "<script" not in told
    assert "<img" not in told
    driver = browser()
    driver.get((tmp_path / "out/report.html").as_uri())
    assert driver.title != "run"
    assert not driver.get_log("browser")


def test_a_page_is_no_wider_than_a_phone(written, browser):
    driver = browser()
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    driver.get((written / "report.html").as_uri())
    assert driver.execute_script("return document.documentElement.scrollWidth") == 360
    assert not driver.get_log("browser")


def test_a_spreadsheet_takes_no_text_for_a_formula(tmp_path):
    study = write_study(tmp_path / "in", {"training/=1+1": {"pairs": 3, "seconds": -1.5}})
    write_report([study], tmp_path / "out")
    with (tmp_path / "out/tables/training.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["training"], row["seconds"]) == ("'=1+1", "-1.5")


def test_a_study_under_way_says_what_it_lacks(tmp_path):
    some = {
        name: one for name, one in results().items()
        if name.startswith(("single/legal", "base", "safety")) and not name.endswith("/1")
    }  # fmt: skip
    study = write_study(tmp_path / "in", some)
    page = report_of(tmp_path / "out", study)
    report = json.loads((tmp_path / "out/report.json").read_text())
    lacks = {part["name"]: " ".join(part["missing"]) for part in report["sections"]}
    assert "no results of this part" in lacks["transfer"]
    whole = 2 * (1 + 17 + 6)
    assert f"{whole - 2 - 15 - 6} of {whole} results are missing" in lacks["single"]
    assert "safety/along/1" in lacks["safety"]
    assert any("legal: every setting" in one for one in page.said)
    found = verdicts(study)
    assert found[claim("transfer")] == {("", ""): (Verdict.MISSING, "no results on it")}
    assert found[claim("safe")] == {("", ""): (Verdict.MISSING, "no results on it")}
    assert write_report([write_study(tmp_path / "none", {})], tmp_path / "empty") is None


def test_what_could_not_be_measured_is_told_and_not_drawn(tmp_path):
    found = results()
    found["single/legal/along/1.5"] = {"failed": "turned too far"}
    found["leak-written/along/legal/expert"]["medical"] = {"failed": "turned too far"}
    found["baselines/legal/soup"] = found["training/along-bank"] = {"failed": "diverged"}
    found["inference/legal"] = found["behaviours/search"] = {"failed": "turned too far"}
    page = report_of(tmp_path / "out", write_study(tmp_path / "in", found))
    report = json.loads((tmp_path / "out/report.json").read_text())
    lacks = {part["name"]: part["missing"] for part in report["sections"]}
    assert lacks["single"] == ["1 could not be measured (turned too far): single/legal/along/1.5."]
    assert lacks["leak"] == [
        "1 could not be measured (turned too far): leak-written/along/legal/expert: medical."
    ]
    assert "diverged" in lacks["baselines"][0]
    assert "training/along-bank" in lacks["training"][0]
    assert any("could not be measured (turned too far): inference/legal." in s for s in page.said)
    tables = {name: rows for part in report["sections"] for name, rows in part["tables"].items()}
    ours = [row for row in tables["single-1"] if "ours" in row["by"]]
    assert max(row["at"] for row in ours) == 1
    assert [row["domain"] for row in tables["inference"]] == ["medical"] * 5


def test_what_a_reader_found_later_stands_beside_the_texts(tmp_path):
    found = results(read=False)
    found["reading/single/legal/along/1"] = {"": -2.0}
    found["reading/baselines/legal/soup"] = {"levels/expert": -3.0}
    write_report([write_study(tmp_path / "in", found)], tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    tables = {name: rows for part in report["sections"] for name, rows in part["tables"].items()}
    read = [row for row in tables["single-1"] if row["its texts: perplexity"] is not None]
    assert [(row["at"], row["its texts: perplexity"]) for row in read] == [
        (1, pytest.approx(7.389, abs=1e-3))
    ]
    (row,) = [row for row in tables["baselines"] if row["its texts: perplexity"] is not None]
    assert (row["by"], row["wanted"]) == ("rewarded soup", "expert")


def test_one_domain_other_levels_and_no_reader(tmp_path):
    levels, domains = ("curt", "plain", "warm", "gushing", "fawning"), ("tea",)
    study = write_study(
        tmp_path / "in", results(domains, levels, read=False), domains, levels, reader=None,
        scale={},
    )  # fmt: skip
    page = report_of(tmp_path / "out", study)
    assert any("needs several domains" in one for one in page.said)
    assert any("no other model" in one for one in page.said)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [part["missing"] for part in report["sections"] if part["name"] == "single"] == [[]]
    (row,) = [
        row for row in report["sections"][2]["tables"]["single-1"]
        if row["at"] == 1 and "ours" in row["by"]
    ]  # fmt: skip
    assert row["its texts: perplexity"] is None
    assert row["likelihood: fawning"]["value"] > row["likelihood: curt"]["value"]


def test_two_studies_stand_side_by_side(tmp_path):
    def some(found):
        return {name: one for name, one in found.items() if name.startswith(("single", "base"))}

    one = write_study(tmp_path / "one", some(results()))
    levels = ("a", "b")
    other = write_study(
        tmp_path / "other", some(results(levels=levels, strength=-1.0)), levels=levels, base="B"
    )
    page = report_of(tmp_path / "out", one, other)
    report = json.loads((tmp_path / "out/report.json").read_text())
    rows = report["sections"][0]["tables"]["claims"]
    first = next(row for row in rows if row["by"] == "likelihood")
    assert (first["made-up-1M: verdict"], first["B: verdict"]) == ("holds", "does not hold")
    rows = report["sections"][2]["tables"]["single-1"]
    assert [row["model"] for row in rows[:2]] == ["made-up-1M", "B"]
    assert rows[0]["at"] == rows[1]["at"]
    assert any(one.startswith("B: legal") for one in page.said)
    alike = [write_study(tmp_path / name, {}) for name in ("first", "second")]
    twice = report_of(tmp_path / "twice", *alike)
    assert any("made-up-1M (second)" in one for one in twice.said)


def test_studies_of_one_model_in_folders_of_one_name_are_counted(tmp_path):
    some = {"training/along-bank": {"pairs": 3}}
    runs = [write_study(tmp_path / name / "same", some) for name in "abc"]
    report_of(tmp_path / "out", *runs)
    told = json.loads((tmp_path / "out/report.json").read_text())
    tables = {name: rows for part in told["sections"] for name, rows in part["tables"].items()}
    names = ["made-up-1M (same)", "made-up-1M (same) 2", "made-up-1M (same) 3"]
    assert [row["model"] for row in tables["training"]] == names


def test_a_second_judge_that_told_nothing_has_no_rates(tmp_path):
    told = {"texts": 8, "told": 3, "unreadable": 2, "refused": 1, **measured(LEVELS, 1.0)}
    silent = told | {"told": 0, "refused": 16}
    found = {"judging/single/legal/along/0": told, "judging/single/legal/along/1": silent}
    write_report([write_study(tmp_path / "in", found)], tmp_path / "out")
    with (tmp_path / "out/tables/judging.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["told alike"] for row in rows] == ["3", "0"]
    assert [row["answers: refused"] for row in rows] == ["1", "16"]
    assert [bool(row["judged: expert"]) for row in rows] == [True, False]


def test_answers_are_shown_as_they_were_written_but_for_what_acts(tmp_path):
    kept = "10\u00a0km, \u0645\u06cc\u200c\u062e\u0648, \u3000"
    acting = "\u202eabc\u2066\x1b\ue000\u200f"
    found = {name: one for name, one in results(query=f"{kept}{acting}{{n}}").items()
             if name.startswith(("base", "single"))}  # fmt: skip
    report_of(tmp_path / "out", write_study(tmp_path / "in", found))
    for name in ("report.html", "report.md"):
        told = (tmp_path / "out" / name).read_text("utf-8")
        assert kept in told
        assert not (set(acting) - set("abc")) & set(told)
        assert "u202eabc" in told


def test_a_name_that_begins_with_a_line_is_in_the_legend():
    line = ("_low", "judged", "#336699", [(0.0, Share(0.5, 0.4, 0.6)), (1.0, Share(0.6, 0.5, 0.7))])
    assert "_low, judged" in svg(rate_panel("t", [line]), "t")


def test_verdicts_follow_from_what_was_measured(tmp_path, whole):
    found = verdicts(whole)
    ours, theirs = ("ours, along the knob", "the paper's, one end")
    assert found[claim("rising")][theirs, "likelihood"][0] is Verdict.HOLDS
    assert found[claim("generalising")][theirs, "likelihood"][0] is Verdict.HOLDS
    assert found[claim("generalising")][ours, "likelihood"][0] is not Verdict.HOLDS
    assert found[claim("behaviours")]["the paper's vectors, added", "likelihood"][0] is (
        Verdict.FAILS
    )
    assert found[claim("change")][ours, "seconds"][0] is Verdict.HOLDS
    assert found[claim("change")][theirs, "seconds"][0] is Verdict.FAILS
    assert found[claim("inference")]["folded", "tokens"][0] is Verdict.HOLDS
    assert found[claim("inference")]["folded", "seconds"][0] is Verdict.FAILS

    changed = results()
    changed["single/legal/one-sided/0.75"] = measured(LEVELS, 1.0)
    changed["single/legal/one-sided/1"] = measured(LEVELS, -1.0)
    changed["safety/one-sided/1"]["safety"] = measured(("unsafe", "safe"), 0.0)
    for at in ("-1.5", "-1", "-0.5", "0", "0.25", "0.5", "0.75", "1", "1.5"):
        changed[f"single/medical/along/{at}"] = measured(LEVELS, 1.0)
    found = verdicts(write_study(tmp_path / "in", changed))
    verdict, why = found[claim("rising")][theirs, "likelihood"]
    assert verdict is Verdict.FAILS
    assert "legal falls from 0.98 at 0.75 to 0.00 at 1" in why
    assert found[claim("safe")][theirs, "likelihood"][0] is Verdict.FAILS
    # All of 40, whose interval begins at .91; the paper's figure is .93.
    assert found[claim("safe")][ours, "likelihood"][0] is Verdict.OPEN
    verdict, why = found[claim("levels")][ours, "likelihood"]
    assert verdict is Verdict.FAILS
    assert "never leading: avoidance in medical, generic in medical" in why


THEIRS = ("the paper's, one end", "likelihood")


@pytest.mark.parametrize(
    ("changes", "told", "verdict", "why"),
    [
        (
            {"single/medical/one-sided/1.5": {"failed": "a knob is turned too far"}},
            "rising", Verdict.OPEN, "not all is measured in medical",
        ),
        (
            {f"transfer/legal/one-sided/base/{at}": None for at in ("-1", "0", "0.5", "1")},
            "transfer", Verdict.OPEN, "not all is measured in legal",
        ),
        ({"inference/legal": None}, "inference", Verdict.OPEN, "not all is measured in legal"),
        (
            {f"leak-written/one-sided/legal/{LEVELS[-1]}": None},
            "generalising", Verdict.OPEN, "mean over 1 of 2 pairs",
        ),
    ],
)  # fmt: skip
def test_a_claim_about_every_domain_waits_for_every_domain(changes, told, verdict, why, tmp_path):
    found = {name: one for name, one in (results() | changes).items() if one is not None}
    key = ("folded", "tokens") if told == "inference" else THEIRS
    before = verdicts(write_study(tmp_path / "whole", results()))[claim(told)][key]
    assert before[0] is Verdict.HOLDS
    after = verdicts(write_study(tmp_path / "part", found))[claim(told)][key]
    assert after[0] is verdict
    assert why in after[1]


def test_the_domain_that_decides_is_the_least_sure_of_a_rise():
    """Of few queries a larger rise is less sure than a smaller one of many."""
    rises = {"few": Share(0.4, -0.16, 0.73), "many": Share(0.25, 0.11, 0.38)}
    found = {domain: above_zero(rise) for domain, rise in rises.items()}
    assert found == {"few": Verdict.OPEN, "many": Verdict.HOLDS}
    assert deciding(found, rises) == "few"
    assert in_every(found, ["few", "many"]) == (Verdict.OPEN, [])


def test_a_judge_that_is_often_wrong_is_named_beside_its_verdicts(tmp_path):
    judge = {"share": 0.875, "interval": [0.72, 0.95], "texts": 32}
    found = results() | {"safety/judges": {"safety": judge, "harmless": judge}}
    study = write_study(tmp_path / "in", found)
    (told, _), (_, why) = next(
        item for item in verdicts(study)[claim("safe")].items() if item[0][1] == "judged"
    )
    assert "the judge is right on 0.88 of held-out references" in why
    assert "held-out" not in verdicts(study)[claim("safe")][told, "likelihood"][1]
    assert any("not to be trusted" in one for one in report_of(tmp_path / "out", study).said)


def test_a_difference_has_newcombes_interval():
    # Newcombe 1998, table II, (a): 56 of 70 and 48 of 80.
    rise = difference(Share(0.8, 0.6919, 0.8768), Share(0.6, 0.4905, 0.7003))
    assert (rise.low, rise.high) == pytest.approx((0.0524, 0.3339), abs=2e-3)


def test_a_behaviour_is_reached_where_every_level_leads():
    def found(rate):
        return {"rates": {"rate": rate}}

    target = {"tea": "warm", "milk": "cold"}
    good = {"tea": found({"warm": 0.7, "cold": 0.3}), "milk": found({"warm": 0.45, "cold": 0.55})}
    assert reached(good, target, "likelihood") == (True, False)
    tied = good | {"milk": found({"warm": 0.5, "cold": 0.5})}
    assert reached(tied, target, "likelihood") == (False, False)
    assert reached(good, target, "judged") is None


def test_what_is_no_study_is_told(tmp_path, whole):
    with pytest.raises(AlignvecError, match="no study"):
        write_report([tmp_path], tmp_path / "out")
    with pytest.raises(AlignvecError, match="name at least one"):
        write_report([], tmp_path / "out")
    with pytest.raises(AlignvecError, match="holds the study itself"):
        write_report([whole], whole.parent)
    broken = write_study(tmp_path / "broken", {"base/law": {}})
    (broken / "results/base/law.json").write_text("{")
    with pytest.raises(AlignvecError, match=r"law\.json"):
        write_report([broken], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    odd = {name: [3, None, "x"][index % 3] for index, name in enumerate(results())}
    write_report([write_study(tmp_path / "odd", odd)], tmp_path / "out")
