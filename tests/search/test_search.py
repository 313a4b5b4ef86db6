"""From a wanted behaviour to a setting: on tiny random models, then through the commands."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from alignvec.data import read_records
from alignvec.data.splits import split_of
from alignvec.errors import AlignvecError
from alignvec.evaluate import preference_rates, response_rows
from alignvec.evaluate.retention import RetentionProbe
from alignvec.knobs.calibration import Calibration
from alignvec.knobs.domains import domain_of
from alignvec.knobs.model import KnobModel
from alignvec.knobs.setting import _warn_beyond
from alignvec.report.search import draw_front
from alignvec.route import Router
from alignvec.search import Objective, Scorer, Surface, behaviours, parse_target, search
from alignvec.search.calibrate import calibrate
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.compress import compress
from alignvec.vector.store import write_calibration
from conftest import refused, run, watching, write_records

LEVELS = ["avoidance", "generic", "expert"]


def fit(model, records, **options):
    """A router on the model's own hidden states."""
    queries, domains = [r.query for r in records], [r.domain for r in records]
    return Router.fit(model.model, model.tokenizer, queries, domains, **options)


def objective(scorer):
    return Objective(scorer, np.array([[-2.0, 2.0]] * len(scorer.knobs)))


@pytest.fixture(scope="module")
def vectors(tiny, nudged, tmp_path_factory):
    """Two knobs in different directions, of rank 4."""
    folder = tmp_path_factory.mktemp("search")
    vector = compress(AlignmentVector.extract(tiny(), nudged(), name="tea"), rank=4)
    parts = {"tea": "self_attn", "ale": "mlp"}
    for knob, part in parts.items():
        deltas = {name: delta for name, delta in vector.deltas.items() if part in name}
        AlignmentVector(deltas, vector.base, knob).save_pretrained(folder / knob)
    return {knob: folder / knob for knob in parts}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 records in two domains whose queries look different."""
    file = tmp_path_factory.mktemp("data") / "two.jsonl"
    tea = write_records(file.with_name("tea.jsonl"), 20).read_text()
    ale = write_records(file.with_name("ale.jsonl"), 20, domain="ale").read_text()
    ale = ale.replace('"id": "', '"id": "b-').replace(
        "how long to steep tea", "WHICH BARREL OF ALE"
    )
    file.write_text(tea + ale)
    return file


@pytest.fixture
def model(tiny, vectors):
    return KnobModel.from_pretrained(tiny(), vectors, dtype="float32")


@pytest.fixture
def records(data):
    return list(read_records(data))


def test_a_setting_lies_within_the_limits(model, records):
    limits = dict.fromkeys(model.vectors, (1.0, 2.0))
    for target in [{"tea": level} for level in LEVELS]:
        found = search(
            model, [target], records[::2], records[1::2], LEVELS, passes=4, limits=limits
        )
        (solution,) = found.solutions
        assert all(1 <= strength <= 2 for strength in solution.setting.values())


@pytest.mark.parametrize(("method", "passes"), [("surface", 2), ("grid", 3)])
def test_too_few_passes_for_the_knobs_are_refused(method, passes, model, records):
    target = {"tea": "expert"}
    with pytest.raises(AlignvecError, match=f"takes at least {passes + 1} passes"):
        search(model, [target], records[::2], records[1::2], LEVELS, method, passes)


def test_a_pass_scores_each_query_under_its_own_setting(model, records):
    scorer = Scorer(model, records, LEVELS)
    strengths = np.random.default_rng(0).uniform(-2, 2, (len(records), 2))
    mixed = scorer(strengths)
    for query in (0, 7, 33):
        alone = scorer(strengths[query])[query]
        np.testing.assert_allclose(mixed[query], alone, atol=2e-5)
    assert scorer.passes == 4  # three of 39 queries and one of 40
    scorer(strengths)
    assert scorer.passes == 4
    rates = preference_rates(
        model.set(tea=1.0).model, response_rows(model.tokenizer, records, LEVELS), LEVELS
    )
    found = scorer(np.array([1.0, 0.0])).argmax(1)
    assert [float((found == i).mean()) for i in range(3)] == list(rates.rate.values())
    assert model.setting == {"tea": 1.0, "ale": 0.0}


def test_attainment_is_highest_where_every_domain_is_as_wanted(model, records):
    scorer = Scorer(model, records, LEVELS)
    scores = np.zeros((len(records), 3))
    scores[:20, 2] = scores[20:, 0] = 5.0  # tea is expert, ale is avoidance
    targets = list(behaviours(["tea", "ale"], LEVELS))
    attained = objective(scorer).attainment(scores, targets)
    met = [target for target, value in zip(targets, attained, strict=True) if value > 0.99]
    assert met == [{"tea": "expert", "ale": "avoidance"}]


def test_the_surface_foretells_what_a_pass_finds(model, records):
    scorer = Scorer(model, records, LEVELS)
    bounds = np.array([[-1.0, 1.0], [-1.0, 1.0]])
    surface = Surface(Objective(scorer, bounds), passes=24)
    assert scorer.passes == 24
    points = np.random.default_rng(1).uniform(-1, 1, (6, 2))
    true = np.array([scorer(point) for point in points])
    foretold = surface.scores(points)
    varies = true.std(0).mean()
    assert np.abs(foretold - true).mean() < 0.2 * varies


def test_a_grid_is_of_the_strengths_that_are_given(model, records):
    targets = list(behaviours(["tea", "ale"], LEVELS))
    given = (-1.0, 0.0, 0.7)
    found = search(model, targets, records[::2], records[1::2], LEVELS, "grid", strengths=given)
    assert found.passes == 9
    tried = {strength for one in found.solutions for strength in one.setting.values()}
    assert tried <= {-1.0, 0.0, 0.7}


@pytest.mark.parametrize(("method", "passes"), [("surface", 16), ("grid", 25), ("optuna", 8)])
def test_every_method_beats_the_base(method, passes, model, records):
    """Judged by what all of them maximise, on the queries that they search on."""
    targets = [{"tea": "expert"}, {"tea": "avoidance", "ale": "generic"}]
    done = []
    with watching(lambda *at: done.append(at)):
        result = search(model, targets, records, records, LEVELS, method, passes)
    searched = [at for at in done if at[1] != len(targets)]  # verified are as many as targets
    assert searched[-1][0] == searched[-1][1] >= result.passes  # nothing is scored twice
    assert result.passes <= passes * (len(targets) if method == "optuna" else 1)
    scorer = Scorer(model, records, LEVELS)
    for target, found in zip(targets, result.solutions, strict=True):
        strengths = np.array(list(found.setting.values()))
        base, turned = (
            objective(scorer).attainment(scorer(at), [target])[0] for at in (np.zeros(2), strengths)
        )
        assert turned >= base if method == "optuna" else turned > base
        assert all(-2 <= s <= 2 for s in found.setting.values())
        for domain, level in target.items():
            rate = found.rates[domain].rate
            assert not found.reached or rate[level] == max(rate.values())


def test_a_front_leads_from_the_target_to_the_base(model, records, tmp_path):
    target = [{"tea": "expert", "ale": "avoidance"}]
    result = search(model, target, records, records, LEVELS, passes=16, front=True)
    kl = [found.retention.kl for found in result.front]
    assert result.front[0] == result.solutions[0]
    assert kl[0] == max(kl) > 0.0
    assert kl[-1] == pytest.approx(0, abs=1e-6)
    assert result.front[-1].retention.perplexity == pytest.approx(1)
    assert len(set(kl)) > 3
    draw_front(result, tmp_path / "front")
    assert (tmp_path / "front.png").stat().st_size > 5_000
    with pytest.raises(AlignvecError, match="one target, not 2"):
        search(model, target * 2, records, records, LEVELS, front=True)


def test_what_is_retained_is_measured_against_the_base(model):
    """KL and perplexity by their plain definitions."""
    probe = RetentionProbe(model)
    found = probe({"tea": 1.5, "ale": 0.0})
    base, turned = [], []
    pieces = [torch.tensor([one]) for one in probe._ids]
    for ids in pieces:
        for logs, setting in ((base, {}), (turned, {"tea": 1.5})):
            with model.at(setting):
                logs.append(model.model(ids).logits[0, :-1].log_softmax(-1).detach())
    kl = np.concatenate([(b.exp() * (b - t)).sum(-1) for b, t in zip(base, turned, strict=True)])
    assert found.kl == pytest.approx(kl.mean(), rel=1e-3)
    ratio = [
        float((b - t).gather(1, ids[0, 1:, None]).mean())
        for b, t, ids in zip(base, turned, pieces, strict=True)
    ]
    assert found.perplexity == pytest.approx(np.exp(np.mean(ratio)), rel=1e-3)


def test_a_routed_knob_moves_its_own_domain_alone(model, records, tmp_path):
    queries, domains = [r.query for r in records], [r.domain for r in records]
    router = Router.fit(model.model, model.tokenizer, queries, domains)
    assert router.domain(model.model, model.tokenizer, queries) == domains
    again = Router.load(router.save(tmp_path / "router"))
    np.testing.assert_array_equal(model.acting(again, queries), model.acting(router, queries))
    acting = model.acting(router, queries)
    assert acting.tolist() == [[d == "tea", d == "ale"] for d in domains]
    scorer = Scorer(model, records, LEVELS, acting)
    base, turned = scorer(np.zeros(2)), scorer(np.array([2.0, 0.0]))
    of_tea = np.array(domains) == "tea"
    np.testing.assert_allclose(base[~of_tea], turned[~of_tea], atol=1e-5)
    assert np.abs(base[of_tea] - turned[of_tea]).max() > 0.01
    # The same in answers: what the other domain's knob says does not matter.
    both = [{"tea": 2.0, "ale": -2.0}] * 2
    answers = model.generate([queries[0], queries[-1]], both, max_new_tokens=6, router=router)
    alone = [
        model.generate(query, [setting], max_new_tokens=6)[0]
        for query, setting in ((queries[0], {"tea": 2.0}), (queries[-1], {"ale": -2.0}))
    ]
    assert answers == alone


def test_an_unsure_router_leaves_the_base(model, records):
    router = Router.fit(
        model.model,
        model.tokenizer,
        [r.query for r in records],
        [r.domain for r in records],
        threshold=1.0,
    )
    assert router.domain(model.model, model.tokenizer, ["?", "%%%"]) == [None, None]
    assert not model.acting(router, ["?"]).any()
    result = search(model, [{"tea": "expert"}], records, records, LEVELS, passes=4, router=router)
    assert result.solutions[0].rates["tea"].queries == 20
    assert result.passes == 1  # every setting is the base


def test_routed_domains_are_sought_one_by_one(model, records):
    """27 behaviours of three domains are nine settings put together."""
    router = Router.fit(
        model.model, model.tokenizer, [r.query for r in records], [r.domain for r in records]
    )
    targets = list(behaviours(["tea", "ale"], LEVELS))
    both = search(model, targets, records, records, LEVELS, passes=8, router=router)
    assert both.passes == 8
    of_tea = {f.target["tea"]: {x.setting["tea"] for x in both.solutions if x.target["tea"] ==
                                f.target["tea"]} for f in both.solutions}  # fmt: skip
    assert all(len(strengths) == 1 for strengths in of_tea.values())
    alone = search(model, [{"tea": "expert"}], records, records, LEVELS, passes=8, router=router)
    assert alone.solutions[0].setting["ale"] == 0.0
    assert alone.solutions[0].setting["tea"] in of_tea["expert"]
    with pytest.raises(AlignvecError, match="at least two"):
        Router.fit(model.model, model.tokenizer, ["a", "b"], ["tea", "tea"])


def test_a_routed_solution_retains_what_its_worst_domain_does(model, records):
    """Each query meets the knobs of its own domain alone, so neutral prose meets either."""
    router = fit(model, records)
    target = {"tea": "expert", "ale": "avoidance"}
    result = search(model, [target], records, records, LEVELS, passes=8, router=router)
    (solution,) = result.solutions
    probe = RetentionProbe(model)
    alone = [
        probe(
            {
                knob: strength if knob == turned else 0.0
                for knob, strength in solution.setting.items()
            }
        )
        for turned in solution.setting
    ]
    assert solution.retention.kl == pytest.approx(max(one.kl for one in alone), rel=1e-3)
    assert result.routed
    assert set(result.seconds) == {"search", "verification"}
    assert all(0 < seconds < 600 for seconds in result.seconds.values())
    assert "passes over 40 queries" in result.summary


def test_a_vector_says_its_domain(vectors):
    vector = AlignmentVector.from_pretrained(vectors["tea"])
    assert domain_of("knob", vector) == "knob"


levels = st.sampled_from(LEVELS)


@given(st.dictionaries(st.sampled_from(["tea", "ale", "oil"]), levels, min_size=1))
def test_a_written_target_parses_back(target):
    text = ",".join(f"{domain}={level}" for domain, level in target.items())
    assert parse_target(text, ["tea", "ale", "oil"], LEVELS) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tea", "write DOMAIN=LEVEL"),
        ("tea=expert,tea=generic", "named twice"),
        ("wine=expert", "unknown domain 'wine'; one of"),
        ("tea=exprt", "unknown level 'exprt'; did you mean 'expert'?"),
    ],
)
def test_a_bad_target_is_refused(text, message):
    with pytest.raises(AlignvecError, match=message.replace("?", r"\?")):
        parse_target(text, ["tea", "ale"], LEVELS)


def test_search_refuses_before_it_works(model, records):
    one = [{"tea": "expert"}]
    for options, message in (
        ({"method": "magic"}, "unknown method"),
        ({"limits": {"x": (0, 1)}}, "unknown knob 'x'"),
        ({"limits": {"tea": (1, 1)}}, "nothing lies between"),
    ):
        with pytest.raises(AlignvecError, match=message):
            search(model, one, records, records, LEVELS, **options)
    with pytest.raises(AlignvecError, match="no queries of domain 'tea' to verify on"):
        search(model, one, records, [r for r in records if r.domain == "ale"], LEVELS)


# Human units.

MEASURED = Calibration(
    queries=30, levels={"avoidance": -2.0, "generic": 0.1, "expert": 2.0}, safe=(-2.5, 2.0),
    strengths=[-2.0, -1.0, 0.0, 1.0, 2.0], top=[0.0, 0.0, 0.2, 0.6, 1.0],
    position=[0.1, 0.2, 0.5, 0.7, 0.9],
)  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "strength"),
    [("expert", 2.0), ("generic", 0.1), ("20%", 0.0), ("80%", 1.5), ("0%", -1.5), ("100%", 2.0),
     ("0/10", -2.0), ("10/10", 2.0), ("5/10", 0.0)],
)  # fmt: skip
def test_what_people_say_is_a_strength(wanted, strength):
    assert MEASURED.strength("tea", wanted) == pytest.approx(strength)


@given(st.floats(0, 100), st.floats(0, 100))
def test_more_is_never_less(one, other):
    low, high = sorted((one, other))
    assert MEASURED.strength("k", f"{low}%") <= MEASURED.strength("k", f"{high}%") + 1e-9
    low, high = low / 10, high / 10
    assert MEASURED.strength("k", f"{low}/10") <= MEASURED.strength("k", f"{high}/10") + 1e-9


@pytest.mark.parametrize("wanted", ["", "lots", "%", "x%", "nan%", "150%", "-5%", "11/10", "5/9"])
def test_what_nobody_means_is_refused(wanted):
    with pytest.raises(AlignvecError, match="knob 'tea'"):
        MEASURED.strength("tea", wanted)


def test_a_calibrated_knob_takes_units_everywhere(model, records, vectors, tmp_path, caplog):
    tea = [record for record in records if record.domain == "tea"]
    found = calibrate(model, "tea", tea, LEVELS, (-2, 2), steps=5)
    assert model.setting == {"tea": 0.0, "ale": 0.0}
    assert list(found.levels) == LEVELS
    assert found.safe[0] <= 0 <= found.safe[1]
    vector = AlignmentVector.from_pretrained(vectors["tea"])
    folder = vector.save_pretrained(tmp_path / "tea")
    write_calibration(folder, found.model_dump())
    turned = KnobModel(model.model, model.tokenizer, {"tea": folder}, check_base=False)
    for level, strength in found.levels.items():
        assert turned.set(tea=level).setting == {"tea": strength}
    turned.set(tea="5/10")
    assert turned.generate("how?", [{"tea": "expert"}], 3) == turned.generate(
        "how?", [{"tea": found.levels["expert"]}], 3
    )
    caplog.clear()
    _warn_beyond.cache_clear()  # it says a thing once
    turned.set(tea=found.safe[1] + 1)
    turned.set(tea=0).set(tea=found.safe[1] + 1)
    assert caplog.text.count("beyond") == 1
    assert "beyond its safe range" in caplog.text
    with pytest.raises(AlignvecError, match="no units on this base; give a number"):
        model.set(tea="expert")


# Through the commands.


@pytest.fixture(scope="module")
def knobs(vectors):
    return [f"--vector={knob}={folder}" for knob, folder in vectors.items()]


def test_search_on_the_command_line(tiny, data, knobs, tmp_path):
    router = tmp_path / "router"
    told = json.loads(run("route", tiny(), "--data", data, "-o", router, "--json").stdout)
    tests = sum(split_of(record.id) == "test" for record in read_records(data))
    assert told["test"] == told["right"] == tests
    out = tmp_path / "all.json"
    common = ("search", tiny(), "--data", data, *knobs, "--passes", 4, "--dtype", "float32")
    done = run(*common, "--router", router, "-o", out)
    result = json.loads(out.read_text())
    assert len(result["found"]) == 9  # every domain at every level
    assert result["routed"]
    assert result["passes"] == 4
    assert (tmp_path / "all.png").stat().st_size > 5_000
    assert f"{sum(one['reached'] for one in result['found'])} of 9 reached" in done.stdout
    out = tmp_path / "one.json"
    single = run(*common, "--target", "tea=expert", "--limits", "tea=0:1", "-o", out, "--json")
    (one,) = json.loads(single.stdout)["found"]
    assert 0 <= one["setting"]["tea"] <= 1
    asked = ("generate", tiny(), *knobs, "--dtype", "float32", "--max-new-tokens", 4, "Why?")
    written = ",".join(f"{knob}={strength}" for knob, strength in one["setting"].items())
    assert run(*asked, "--set", f"@{out}").stdout == run(*asked, "--set", written).stdout
    assert "holds 9 settings" in refused(*asked, "--set", f"@{tmp_path / 'all.json'}")
    assert "unknown domain 'wine'" in refused(*common, "--target", "wine=expert", "-o", out)
    assert "no limits" in refused(*common, "--limits", "tea=1:0", "-o", out)
    (router / "router.json").write_text("{}")
    anew = ("--overwrite", "-o", out)
    assert "router.json" in refused(*common, "--router", router, *anew)
    before = out.read_bytes()
    assert "already exists" in refused(*common, "--target", "tea=generic", "-o", out)
    theirs = tmp_path / "mine.png"
    theirs.write_text("years of work")
    for name in ("mine.json", "mine.png"):  # its figure would lie where something of theirs does
        line = refused(*common, "--overwrite", "-o", tmp_path / name)
        assert "mine.png is not of alignvec's making" in line
    assert theirs.read_text() == "years of work"
    assert not (tmp_path / "mine.json").exists()
    assert out.read_bytes() == before
    run(*common, "--target", "tea=generic", *anew)
    assert out.read_bytes() != before


def test_calibrate_on_the_command_line(tiny, data, vectors, tmp_path):
    folder = AlignmentVector.from_pretrained(vectors["tea"]).save_pretrained(tmp_path / "tea")
    vector = ("--vector", f"tea={folder}")
    measure = ("calibrate", tiny(), *vector, "--data", data, "--domain", "tea", "--steps", 3)
    told = json.loads(run(*measure, "--json").stdout)
    kept = AlignmentVector.from_pretrained(folder).calibration
    assert json.loads(json.dumps(kept)) == told
    run("generate", tiny(), *vector, "--set", "tea=expert", "--max-new-tokens", 2, "why?")
    said = refused("generate", tiny(), *vector, "--set", "tea=lots", "why?")
    assert "a level (avoidance, generic, expert)" in said
    other = (tiny(seed=1), *vector, "--any-base")
    run("generate", *other, "--set", "tea=1", "--max-new-tokens", 2, "why?")
    for command in (("generate", "why?"), ("fold", "-o", tmp_path / "out"),
                    ("eval", "--data", data, "-o", tmp_path / "out")):  # fmt: skip
        said = refused(command[0], *other, "--set", "tea=expert", *command[1:])
        assert "knob 'tea' has no units on this base" in said
    assert not (tmp_path / "out").exists()


def test_a_damaged_router_is_refused(model, records, tmp_path):
    import torch

    router = Router.fit(
        model.model, model.tokenizer, [r.query for r in records], [r.domain for r in records]
    )
    folder = router.save(tmp_path / "router")
    for tensors, message in (
        ({"weight": torch.ones(3, 32), "bias": torch.ones(2)}, "not those of the domains"),
        ({"weight": torch.ones(2, 32), "bias": torch.full((2,), torch.nan)}, "NaN"),
        ({"weight": torch.ones(2, 32)}, "holds no router"),
    ):
        save_file(tensors, folder / "router.safetensors")
        with pytest.raises(AlignvecError, match=message):
            Router.load(folder)
