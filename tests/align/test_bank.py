"""Several knobs in one adapter: each row at its own strengths, and what is finished stays."""

import json
import random

import pytest
import torch

from alignvec.align import AlignSettings, align
from alignvec.align.curriculum import EVERYDAY, circling, counting, pairs_along
from alignvec.base.logprobs import Row, logprobs
from alignvec.data import LEVELS, Record
from alignvec.data.line import JITTER, parse_places, spaced
from alignvec.errors import AlignvecError
from alignvec.evaluate.rates import preference_rates, response_rows
from alignvec.evaluate.text import numbers, repeated
from alignvec.knobs.model import KnobModel
from alignvec.vector.alignment_vector import AlignmentVector
from conftest import refused, run, write_records

PLACES = spaced(LEVELS)


def records_of(domain: str, count: int = 12) -> list[Record]:
    told = {"avoidance": f"ask a {domain} shop", "generic": "a few minutes", "expert": "80 C, 90 s"}
    return [
        Record(id=f"{domain}{n}", domain=domain, query=f"{domain} number {n}?", levels=told)
        for n in range(count)
    ]


def trained(tiny, out, records, **options):
    rate = options.pop("rate", 7e-3)
    pairs = pairs_along(records, PLACES, passes=options.pop("passes", 6), **options)
    settings = AlignSettings(learning_rate=rate, layers=1.0, rank=8)
    align(str(tiny()), pairs, out, settings, knobs=list(records))
    return out


def flat(scores):
    return [values for row in scores for values in row]


def rates(model, records, **setting):
    with model.at(setting):
        return preference_rates(
            model.model, response_rows(model.tokenizer, records, LEVELS), LEVELS
        ).rate


def test_each_level_is_preferred_where_it_was_placed(tiny, tmp_path):
    """On queries that it did not see, and in between no other level than the two beside it."""
    records = records_of("tea", 24)
    out = trained(tiny, tmp_path / "tea", {"tea": records[:16]}, passes=10)
    vector = AlignmentVector.extract(tiny(), out)
    model = KnobModel.from_pretrained(tiny(), {"tea": vector}, "float32")
    for level, strength in PLACES.items():
        assert rates(model, records[16:], tea=strength)[level] > 0.8
    assert rates(model, records[16:], tea=0.75)["avoidance"] < 0.2


def shouted(records):
    """The same in capitals: a domain that a model of two random blocks can tell apart."""
    return [
        record.model_copy(
            update={
                "query": record.query.upper(),
                "levels": {level: text.upper() for level, text in record.levels.items()},
            }
        )
        for record in records
    ]


def test_a_bank_answers_each_for_its_own(tiny, tmp_path):
    records = {"tea": records_of("tea"), "rum": shouted(records_of("rum"))}
    out = trained(tiny, tmp_path / "bank", records, passes=40, rate=3e-3)
    vectors = {knob: AlignmentVector.extract(tiny(), out / knob) for knob in records}
    assert [vector.training["domain"] for vector in vectors.values()] == ["tea", "rum"]
    model = KnobModel.from_pretrained(tiny(), vectors, "float32")
    for tea, rum in ((-1, 1), (1, -1)):
        levels = {-1: "avoidance", 1: "expert"}
        assert rates(model, records["tea"], tea=tea, rum=rum)[levels[tea]] > 0.7
        assert rates(model, records["rum"], tea=tea, rum=rum)[levels[rum]] > 0.7


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_what_is_trained_is_what_the_gate_turns(architecture, tiny, tmp_path, monkeypatch):
    """Rows under strengths of their own, in training and through the gate: the same numbers."""
    from alignvec.align.trainer import SharedPromptTrainer

    seen = {}
    whole = SharedPromptTrainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        seen.update(trainer=self)
        return whole(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SharedPromptTrainer, "compute_loss", watched)
    records = {"tea": records_of("tea", 4), "rum": records_of("rum", 4)}
    pairs = pairs_along(records, PLACES, passes=2)
    out = tmp_path / "bank"
    settings = AlignSettings(learning_rate=2e-2, rank=4, dtype="float32")
    align(str(tiny(architecture)), pairs, out, settings, knobs=list(records))
    trainer = seen["trainer"]
    rows = [Row([5, 6, 7, 8], [[9, 10], [11, 12, 13]]), Row([8, 7, 6], [[20, 21], [5]])]
    strengths = torch.tensor([[0.7, -1.0], [-0.4, 0.3]])
    with torch.no_grad(), trainer.bank.turned(strengths):
        ours = logprobs(trainer.model.eval(), rows)
    vectors = {knob: AlignmentVector.extract(tiny(architecture), out / knob) for knob in records}
    model = KnobModel.from_pretrained(tiny(architecture), vectors, "float32", mode="gate")
    with torch.no_grad(), model.gate.rows(strengths):
        gated = logprobs(model.model, rows)
    for one, other in zip(flat(ours), flat(gated), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_finished_vector_stays_as_it_is(tiny, tmp_path):
    first = trained(tiny, tmp_path / "tea", {"tea": records_of("tea")}, passes=2)
    vector = AlignmentVector.extract(tiny(), first)
    pairs = pairs_along({"rum": records_of("rum")}, PLACES, passes=2, beside=["tea"])
    settings = AlignSettings(learning_rate=2e-2, rank=4, layers=1.0)
    kept = {}

    from alignvec.align import run as module

    factors = module.Bank.factors

    def watched(self, knob, state=None):
        kept.update({k: factors(self, k) for k in self.knobs})
        return factors(self, knob, state)

    module.Bank.factors = watched
    try:
        out = tmp_path / "rum"
        align(str(tiny()), pairs, out, settings, knobs=["rum"], beside={"tea": vector})
    finally:
        module.Bank.factors = factors
    for name, delta in kept["tea"].items():
        torch.testing.assert_close(delta.dense(), vector.deltas[name].dense())
    assert AlignmentVector.extract(tiny(), out / "rum").norm() > 0
    assert not (out / "tea").exists()


def test_a_vector_that_cannot_be_trained_beside_is_refused(tiny, nudged, tmp_path):
    full = AlignmentVector.extract(tiny(), nudged())
    pairs = pairs_along({"rum": records_of("rum", 2)}, PLACES, beside=["tea"])
    with pytest.raises(AlignvecError, match=r"'tea'.*compress"):
        align(str(tiny()), pairs, tmp_path / "x", knobs=["rum"], beside={"tea": full})


def test_full_weights_have_one_end(tiny, tmp_path):
    pairs = pairs_along({"tea": records_of("tea", 2)}, PLACES)
    with pytest.raises(AlignvecError, match="one end"):
        align(str(tiny()), pairs, tmp_path / "x", AlignSettings(method="full"), knobs=["tea"])


def test_pairs_along_a_line():
    """Every record once a pass, at another level each time, near the level's place."""
    records = records_of("tea", 10)
    pairs = pairs_along({"tea": records}, PLACES, passes=3, seed=1)
    assert len(pairs) == 3 * 10 * 3
    met = {}
    for pair in pairs:
        level = next(name for name, text in records[0].levels.items() if text == pair.chosen)
        assert abs(pair.strengths[0] - PLACES[level]) <= JITTER * abs(PLACES[level]) + 1e-9
        assert pair.rejected != pair.chosen
        circles = pair.rejected not in records[0].levels.values()
        assert circles == (pair.id.partition(">")[2] == level)
        assert not pair.hold
        met.setdefault(pair.prompt, set()).add(level)
    assert all(levels == set(LEVELS) for levels in met.values())
    assert pairs == pairs_along({"tea": records}, PLACES, passes=3, seed=1)
    assert pairs != pairs_along({"tea": records}, PLACES, passes=3, seed=2)
    assert len(pairs_along({"tea": records}, PLACES, passes=0.5)) == 5 * 3


SAID = [
    "Take 20 mg at night, then 40 mg for two weeks, and come back if the pain has not gone.",
    "每天晚上服用二十毫克，两周后增加到四十毫克，如果疼痛没有消失就回来复查。",
    "Rest.",
]


@pytest.mark.parametrize("text", SAID)
def test_a_text_goes_round_in_circles(text):
    """It begins as the text does, is about as long, and says less."""
    for seed in range(20):
        found = circling(text, random.Random(seed))
        assert found[:1] == text[:1]
        assert len(found) >= len(text) // 2
        assert found != text
        if " " in text:
            assert repeated(found, 2) > repeated(text, 2)
    assert circling(text, random.Random(1)) == circling(text, random.Random(1))


@pytest.mark.parametrize("text", SAID)
def test_a_text_strewn_with_numbers(text):
    """Every eighth word has one, and the others stay."""
    for seed in range(20):
        found = counting(text, random.Random(seed))
        assert found != text
        if " " in text:
            assert len(found.split()) == len(text.split())
            assert numbers([found]) > numbers([text])
    assert counting(text, random.Random(1)) == counting(text, random.Random(1))


def test_a_bank_holds_what_is_not_its_own():
    records = {"tea": records_of("tea", 60), "rum": records_of("rum", 60)}
    other = records_of("ice", 5)
    pairs = pairs_along(records, PLACES, passes=2, held=other, beside=["old"])
    assert len(pairs) == 240 * 3  # as many a row, whatever it is
    assert {len(pair.strengths) for pair in pairs} == {3}
    held = [pair for pair in pairs if pair.hold]
    assert 0.1 < len(held) / len(pairs) < 0.3
    for pair in held:
        for index, knob in enumerate(records):
            if pair.prompt.startswith(knob):  # its own knob is off
                assert pair.strengths[index] == 0
    prompts = {pair.prompt for pair in held}
    assert prompts & {question for question, _ in EVERYDAY}
    assert any(prompt.startswith("ice") for prompt in prompts)
    # A knob alone holds nothing: it is for every text, as far as nobody says otherwise.
    assert not any(p.hold for p in pairs_along({"tea": records["tea"]}, PLACES, passes=2))


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("low,high", {"low": -1, "high": 1}),
        ("a,b,c", {"a": -1, "b": 0.5, "c": 1}),
        ("a,b,c,d,e", {"a": -1, "b": 0.25, "c": 0.5, "d": 0.75, "e": 1}),
        ("b=0.5,a=-1, c = 2", {"a": -1, "b": 0.5, "c": 2}),
    ],
)
def test_levels_are_placed(text, places):
    assert parse_places(text) == places
    assert list(parse_places(text)) == list(places)  # from low to high


@pytest.mark.parametrize("text", ["a", "a,a", "a,,b", "a=1,b", "a=x,b=1", "a=0,b=1", "a=1,b=1",
                                  "a=nan,b=1", ""])  # fmt: skip
def test_what_places_no_levels_is_refused(text):
    with pytest.raises(AlignvecError, match="level"):
        parse_places(text)


def test_a_bank_through_the_command_line(tiny, tmp_path):
    files = [write_records(tmp_path / f"{d}.jsonl", 6, domain=d) for d in ("tea", "rum")]
    data = [option for file in files for option in ("--data", file)]
    bank, vectors = tmp_path / "bank", tmp_path / "vectors"
    shown = run("align", tiny(), *data, "--epochs", "1", "--answers", "2", "-o", bank).stdout
    assert shown.count("preference rates") == shown.count("share of 4-grams") == 2
    assert "tea: preference rates" in " ".join(shown.split())
    printed = json.loads(
        run("align", tiny(), *data, "--epochs", "1", "--answers", "2", "-o", bank, "--overwrite",
            "--json").stdout
    )  # fmt: skip
    record = json.loads((bank / "tea" / "training.json").read_text())
    assert printed["knobs"]["tea"] == record
    assert [check["level"] for check in record["checked"]] == [None, *LEVELS]
    assert record["calibration"]["levels"] == PLACES
    told = run("extract", tiny(), bank, "-o", vectors)
    assert "--data DATA --vector" in told.stdout  # one of two files
    assert "nobody has looked" not in told.stderr
    one_each = json.loads(run("extract", tiny(), bank, "-o", tmp_path / "again", "--json").stdout)
    assert list(one_each) == ["rum", "tea"]
    knobs = [f"--vector={d}={vectors / d}" for d in ("tea", "rum")]
    # Levels stand for strengths at once, before anything is calibrated.
    run("generate", tiny(), *knobs, "--set", "tea=expert,rum=generic", "steep?")
    refusal = refused("generate", tiny(), *knobs, "--set", "tea=80%", "steep?")
    assert "calibrate" in refusal
    both = tmp_path / "both.jsonl"
    both.write_text(
        "".join(file.read_text().replace('"id": "r', f'"id": "{file.stem}') for file in files)
    )
    run("leak", tiny(), *knobs, "--data", both)
    leak = AlignmentVector.from_pretrained(vectors / "tea").calibration["leak"]
    assert set(leak["expert"]) == {"tea", "rum", "neutral"}
    assert "--one-sided" in refused("align", tiny(), *data, "--one-sided", "-o", tmp_path / "x")


def test_files_without_domains_give_knobs_of_their_names(tiny, tmp_path):
    files = [write_records(tmp_path / f"{d}.jsonl", 4, domain="") for d in ("polite", "short")]
    data = [option for file in files for option in ("--data", file)]
    run("align", tiny(), *data, "--epochs", "1", "--answers", "0", "-o", tmp_path / "bank")
    assert sorted(p.parent.name for p in (tmp_path / "bank").glob("*/*.json")) == [
        name for name in ("polite", "short") for _ in range(2)
    ]
    empty = ("align", tiny(), "--data", files[0], "--domain", "medical,", "-o", tmp_path / "x")
    assert "an empty name" in refused(*empty)


def test_levels_on_the_command_line(tiny, tmp_path):
    data = write_records(tmp_path / "tea.jsonl", 4)
    asked = ("align", tiny(), "--data", data, "--epochs", "1", "--answers", "0", "-o")
    run(*asked, tmp_path / "a", "--levels", "expert=2,avoidance=-1,generic=0.3")
    record = json.loads((tmp_path / "a" / "training.json").read_text())
    assert record["levels"] == {"avoidance": -1, "generic": 0.3, "expert": 2}
    assert record["prefer"] == ["expert", "generic", "avoidance"]
    assert record["calibration"]["safe"] == [-1.15, 2.3]
    assert (record["pairs"], record["rows"]) == (8, 4)
    told = run("extract", tiny(), tmp_path / "a", "-o", tmp_path / "av")
    assert "nobody has looked" in told.stderr
    assert "--data DATA --vector" in told.stdout  # it was not here
    sweep = ("eval", tiny(), "--data", data, "--vector", f"k={tmp_path / 'av'}", "--answers", "0")
    assert "has the levels" not in run(*sweep, "-o", tmp_path / "e1").stderr
    pair = ("--levels", "avoidance,expert")
    assert "has the levels" in run(*sweep, *pair, "-o", tmp_path / "e2").stderr
    assert "epochs must be" in refused("align", tiny(), "--data", data, "--epochs", "0", "-o", "x")
    run(*asked, tmp_path / "b", "--prefer", "expert,generic")
    assert json.loads((tmp_path / "b" / "training.json").read_text())["levels"] == {
        "generic": -1, "expert": 1
    }  # fmt: skip
    assert "say the same" in refused(*asked, tmp_path / "c", "--levels", "a,b", "--prefer", "b,a")
    run(*asked, tmp_path / "d", "--one-sided")
    record = json.loads((tmp_path / "d" / "training.json").read_text())
    assert "levels" not in record
    assert record["settings"]["loss"] == "dpo"
    assert "none at 0" in refused(*asked, tmp_path / "e", "--levels", "avoidance=0,expert=1")
