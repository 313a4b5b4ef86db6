"""The whole study on a tiny random model: every part, each result once, whatever the data."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from alignvec.data.synthesis.endpoint import Endpoint
from alignvec.errors import AlignvecError
from alignvec.report.study import write_report
from alignvec.reproduce import baselines, behaviours, inference, run, training
from alignvec.reproduce.item import Item, Work
from alignvec.reproduce.run import PARTS, items_of
from alignvec.reproduce.scale import PRESETS, Scale
from alignvec.reproduce.study import Study
from alignvec.search import behaviours as combinations
from chat_server import chat, serving

TINY = Scale(
    train=5, passes=1, rank=4, queries=3, answers=2, tokens=8, strengths=(-1.0, 0.0, 1.0),
    few=(0.0, 1.0), grid=(-1.0, 1.0), searched=2, targets=2, retrained=1, steering=2,
)  # fmt: skip
LEVELS = ["curt", "plain", "rich"]
TOLD = {
    "curt": "no idea at all, ask someone else",
    "plain": "a few minutes will usually do it",
    "rich": "brew {} at ninety degrees for three minutes",
}


@pytest.fixture(scope="module")
def base(tiny):
    return str(tiny(max_position_embeddings=2048))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two domains with levels of other names than ours."""
    file = tmp_path_factory.mktemp("data") / "drinks.jsonl"
    with file.open("w") as lines:
        for domain in ("tea", "rum"):
            for number in range(40):
                told = {level: text.format(domain) for level, text in TOLD.items()}
                query = f"how about {domain} number {number}?"
                line = {"id": f"{domain}{number}", "domain": domain, "query": query, **told}
                lines.write(json.dumps(line) + "\n")
    return str(file)


@pytest.fixture(scope="module")
def whole(base, data, tmp_path_factory):
    """A study that has run to its end."""
    study = Study(base, tmp_path_factory.mktemp("study") / "s", TINY, data, LEVELS, reader=base)
    with study.opened():
        run.run(study)
    return study


def test_every_part_gives_its_results(whole):
    for part, item in items_of(whole):
        assert whole.done(item), f"{part}: {item.name}"
    found = whole.result("single/tea/along/1")
    assert sum(found["rates"]["rate"].values()) == pytest.approx(1)
    assert len(found["answers"]) == found["judged"]["answers"] == TINY.answers
    assert found["text"]["likelihood"] < 0  # under the reader


def test_results_are_those_of_the_ways_that_they_are_named_after(whole):
    """At 0 nothing is turned: the base. Added and routed differ in what acts alone."""
    base = whole.result("base/tea")["answers"]
    assert whole.result("single/tea/along/0")["answers"] == base
    assert whole.result("transfer/tea/along/base/0")["tea"]["answers"] == base
    target = next(combinations(whole.domains, whole.levels))
    name = ",".join(f"{domain}={level}" for domain, level in target.items())
    added, grid = (whole.result(f"behaviours/{way}/{name}") for way in ("added", "grid"))
    assert added["target"] == grid["target"] == target
    assert set(added["domains"]) == {"tea", "rum"}
    assert whole.result("together/1/tea")["tea"] == whole.result("single/tea/along/1")


def test_energy_is_that_of_the_device_that_answers(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.power_draw", lambda device: {1: 300_000}[device.index])
    assert inference._watts(torch.device("cpu")) is None
    assert inference._watts(torch.device("cuda:1")) == 300
    assert inference._watts(torch.device("cuda:0")) is None


def test_both_judges_of_safety_are_measured_on_what_they_have_not_read(whole):
    found = whole.result("safety/judges")
    assert {kind: one["texts"] for kind, one in found.items()} == {
        "safety": 2 * TINY.queries, "harmless": 2 * TINY.queries,
    }  # fmt: skip


def test_what_a_baseline_took_to_make_is_what_its_trainings_took(whole):
    """Whether they were run just now, or by another part."""
    one_sided = whole.result("training/one-sided-tea")["seconds"]
    bank = whole.result("training/along-bank")["seconds"]
    low = training.record_of(whole, "low-tea")["seconds"]
    made = {way: whole.result(f"baselines/tea/{way}")["seconds"] for way in baselines.WAYS}
    assert made["dera"] == made["scaled"] == round(one_sided, 1)
    assert made["soup"] == round(low + one_sided, 1)
    assert made["along"] == round(bank / 2, 1)


def test_the_report_has_every_part(whole, tmp_path):
    write_report([whole.out], tmp_path)
    page = (tmp_path / "report.html").read_text()
    told = json.loads((tmp_path / "report.json").read_text())
    assert "results are missing" not in page
    assert page.count("<svg") > 10
    rate = whole.result("single/tea/along/1")["rates"]["rate"]["rich"]
    assert json.dumps(rate) in json.dumps(told)


def test_nothing_is_computed_twice(whole):
    for part in PARTS.values():
        for item in part.items(whole):
            whole.once(Item(item.name, lambda: 1 / 0, Work()))


def test_a_second_judge_reads_what_was_written(whole, base, data):
    with serving(lambda body, n: (200, chat("rich"))) as (url, seen):
        endpoint = Endpoint(url, "m", 0.0)
        study = Study(base, whole.out, TINY, data, LEVELS, reader=base, chat=endpoint)
        with study.opened():
            run.run(study, ["judging"])
            asked = len(seen)
            run.run(study, ["judging"])
    assert len(seen) == asked > 0
    told = study.result("judging/single/tea/along/1")
    written = sum(bool(text.strip()) for text in whole.result("single/tea/along/1")["answers"])
    assert told["judged"]["level"]["rich"] == written / TINY.answers
    assert set(study.result("judging/baselines/tea/dera")) == set(LEVELS)
    other = Study(base, whole.out, TINY, data, LEVELS, base, Endpoint(url, "n", 0.0))
    with pytest.raises(AlignvecError, match="what the judge 'm' read"), other.opened():
        pass
    with whole.opened():  # without a judge it is the same study
        pass


def test_a_judge_that_is_not_there_is_told_before_anything_is_written(base, data, tmp_path):
    with serving(lambda body, n: (404, {"error": {"message": "no such model"}})) as (url, _):
        study = Study(base, tmp_path / "s", TINY, data, LEVELS, chat=Endpoint(url, "m", 0.0))
        with pytest.raises(AlignvecError, match="no such model"), study.opened():
            pass
    assert not study.out.exists()


def test_without_a_template_an_answer_ends_at_a_blank_line(whole, base, data, tmp_path):
    text = "So. \n\nAnd why?\n\nThat."
    assert whole.shown(text) == text
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    (bare / "chat_template.jinja").unlink()
    assert Study(str(bare), tmp_path / "s", TINY, data, LEVELS).shown(text) == "So."


def test_another_study_in_the_folder_is_refused(whole, base, data):
    other = Study(base, whole.out, TINY, data, LEVELS, seed=1)
    with pytest.raises(AlignvecError, match="holds a study of other models"), other.opened():
        pass


@pytest.fixture(scope="module")
def tea(data, tmp_path_factory):
    """One of the domains alone."""
    lines = [line for line in Path(data).read_text().splitlines() if '"tea"' in line]
    file = tmp_path_factory.mktemp("data") / "tea.jsonl"
    file.write_text("\n".join(lines))
    return str(file)


def test_one_domain_has_no_combinations(base, tea, tmp_path):
    study = Study(base, tmp_path / "s", TINY, tea, LEVELS)
    names = [item.name for _, item in items_of(study)]
    assert not [name for name in names if name.startswith(("behaviours", "change", "together"))]
    with study.opened():
        run.run(study, ["training", "leak", "ability"])
    assert study.result("leak/along")[0]["normalised"] == dict.fromkeys(LEVELS)


def test_a_folder_of_data_is_told_of_as_its_file_is(base, data, tmp_path):
    folder = tmp_path / "drinks"
    folder.mkdir()
    shutil.copy(data, folder / "train.jsonl")
    found = []
    for place, source in enumerate((data, str(folder))):
        study = Study(base, tmp_path / f"{place}", TINY, source, LEVELS)
        with study.opened():
            run.run(study, ["data"])
        found.append({name: study.result(name) for name in study.names()})
    assert found[0] == found[1]
    assert found[0]["data/statistics"]["records"] == 80


def test_a_domain_too_small_to_be_split_is_refused(base, tmp_path):
    file = tmp_path / "few.jsonl"
    file.write_text("\n".join(json.dumps({"query": f"q{n}", "a": "x", "b": "y"}) for n in range(2)))
    with pytest.raises(AlignvecError, match=r"has \d of at least \d records in the \w+ part"):
        Study(base, tmp_path / "s", TINY, str(file), ["a", "b"])


@pytest.mark.parametrize("name", ["safety", "harmless"])
def test_a_domain_called_as_one_of_ours_is_refused(name, base, data, tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text(Path(data).read_text().replace('"domain": "tea"', f'"domain": "{name}"'))
    with pytest.raises(AlignvecError, match=f"a domain '{name}' of its own"):
        Study(base, tmp_path / "s", TINY, str(file), LEVELS)


def test_retrained_models_are_told_apart_whatever_the_levels_are_called(whole):
    names = [
        behaviours.retrained_name({"tea": one, "rum": other})
        for one, other in (("a", "a-a"), ("a-a", "a"))
    ]
    assert names[0] != names[1]


def test_an_unknown_part_is_refused_before_anything_runs(whole):
    with pytest.raises(AlignvecError, match="unknown part 'singel'; did you mean 'single'"):
        list(items_of(whole, ["singel"]))


def test_retrained_behaviours_stand_for_all(whole):
    """Of three domains at three levels each domain takes each level once."""
    three = [dict(zip("abc", turn, strict=True)) for turn in ("xyz", "yzx", "zxy")]

    class Told:
        domains, levels, scale = ["a", "b", "c"], ["x", "y", "z"], PRESETS["paper"]

    assert behaviours.retrained(Told)[:3] == three
    assert len(behaviours.retrained(Told)) == 27


def test_vectors_are_trained_once(whole, monkeypatch):
    monkeypatch.setattr(training, "align", None)
    for way in training.WAYS:
        for domain in (*whole.domains, "safety"):
            assert training.vector(whole, way, domain).is_dir()
