"""Measured on vLLM a model with knobs has the numbers that it has on transformers."""

import copy
import itertools
import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
pytest.importorskip("vllm.sampling_params")
pytest.importorskip("sklearn")

import torch

from alignvec.base.identity import base_id
from alignvec.base.live import open_weights
from alignvec.data import read_records
from alignvec.errors import AlignvecError, NoNumbersError
from alignvec.evaluate.rates import rates_at, response_rows
from alignvec.evaluate.retention import RetentionProbe
from alignvec.knobs.model import KnobModel
from alignvec.reproduce.prompting import Prompted, with_system
from alignvec.reproduce.subject import Turned
from alignvec.route import Router
from alignvec.search.search import search
from alignvec.serve.vllm import offline
from alignvec.serve.vllm.offline import VllmModel
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import LowRank
from conftest import refused, run, write_records

LEVELS = ["avoidance", "generic", "expert"]
# Prompts are read in parts, and share what they begin with.
ENGINE = {
    "max_model_len": 400, "enforce_eager": True, "max_num_seqs": 16, "max_num_batched_tokens": 64,
    "gpu_memory_utilization": 0.1,
}  # fmt: skip
RANKS = {"tea": 4, "ale": 3}


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """A base, its vectors, and records of two domains."""
    folder = tmp_path_factory.mktemp("offline")
    base = tiny("llama", head_dim=32)
    weights, draw = open_weights(base), torch.Generator().manual_seed(0)
    for knob, rank in RANKS.items():
        deltas = {}
        for name in weights:
            if name.endswith("proj.weight"):
                out, width = weights.shape(name)
                a, b = (torch.randn(size, generator=draw) for size in ((rank, width), (out, rank)))
                deltas[name] = LowRank(0.2 * a, 0.2 * b)
        vector = AlignmentVector(deltas, base_id(base), name=knob, training={"domain": knob})
        vector.save_pretrained(folder / knob)
    tea = write_records(folder / "tea.jsonl", 12)
    ale = tea.read_text().replace('"tea"', '"ale"').replace('"r', '"s').replace("tea", "ale")
    (folder / "two.jsonl").write_text(tea.read_text() + ale)
    (folder / "base").symlink_to(base)
    return folder


@pytest.fixture(scope="module")
def vectors(place):
    return {knob: str(place / knob) for knob in RANKS}


@pytest.fixture(scope="module")
def here(place, vectors):
    return KnobModel.from_pretrained(place / "base", vectors, "float32", "cpu")


@pytest.fixture(scope="module")
def there(place, vectors):
    before, os.environ["ALIGNVEC_VECTORS"] = dict(os.environ), "nothing=nowhere"
    try:
        return VllmModel(str(place / "base"), vectors, "float32", engine=ENGINE)
    finally:
        del os.environ["ALIGNVEC_VECTORS"]
        assert {name for name in os.environ if "ALIGNVEC" in name} <= set(before)


@pytest.fixture(scope="module")
def records(place):
    return list(read_records(place / "two.jsonl", LEVELS))


def settings_of(count):
    """A setting each, some of one knob, some of both, one of none."""
    draw = random.Random(3)
    some = [{k: draw.choice([0.0, draw.uniform(-2, 2)]) for k in RANKS} for _ in range(count)]
    return [{}, *some[1:]]


def test_likelihoods_are_those_of_transformers_a_setting_a_row(here, there, records):
    rows = response_rows(here.tokenizer, records, LEVELS)
    settings = settings_of(len(rows))
    expected = np.array(here.scores(rows, settings))
    found = np.array(there.scores(rows, settings))
    assert np.abs(found - expected).max() < 1e-3
    assert np.ptp(expected, axis=0).min() > 0.05  # they differ from setting to setting


def test_the_same_response_twice_has_one_score(there, records):
    (row,) = response_rows(there.tokenizer, records[:1], LEVELS)
    row.responses = [*row.responses, row.responses[0]]
    ((first, *_, last),) = there.scores([row], [{"tea": 1.0}])
    assert first == last


@pytest.mark.parametrize("setting", [{}, {"tea": 1.0}, {"tea": -1.5, "ale": 0.5}])
def test_rates_are_those_of_transformers(here, there, records, setting):
    rows = response_rows(here.tokenizer, records, LEVELS)
    expected, found = (rates_at(model, setting, rows, LEVELS) for model in (here, there))
    assert found.rate == expected.rate
    assert found.score == pytest.approx(expected.score, abs=1e-3)


def test_greedy_answers_are_those_of_transformers_a_setting_a_row(here, there, records):
    asked = [record.prompt for record in records]
    settings = settings_of(len(asked))
    expected = here.generate(asked, settings, 24)
    assert there.generate(asked, settings, 24) == expected
    assert len(set(expected)) > len(asked) / 2
    there.set({"tea": 1.0})
    assert there.generate(asked[:2], max_new_tokens=8) == here.generate(
        asked[:2], [{"tea": 1.0}] * 2, 8
    )
    there.set()


def test_what_the_base_asks_of_answers_is_asked_of_vllm(here, there, records, monkeypatch):
    asked = [record.prompt for record in records[:6]]
    for model in (here.model.generation_config, there._generation):
        monkeypatch.setattr(model, "repetition_penalty", 1.7)
        monkeypatch.setattr(model, "eos_token_id", [5, 2, 40])
    settings = settings_of(6)
    expected = here.generate(asked, settings, 24)
    assert there.generate(asked, settings, 24) == expected
    monkeypatch.setattr(there._generation, "no_repeat_ngram_size", 3)
    with pytest.raises(AlignvecError, match="no_repeat_ngram_size=3, which is not passed on"):
        there.generate(asked)


def test_sampled_answers_are_drawn(there, records):
    asked = [record.prompt for record in records[:8]]
    settings = [{"tea": 1.0}] * 8
    greedy = there.generate(asked, settings, 16)
    drawn = there.generate(asked, settings, 16, do_sample=True, temperature=1.0, top_p=0.95)
    assert drawn != greedy
    nearly = there.generate(asked, settings, 16, do_sample=True, temperature=1.0, top_k=1)
    assert nearly == greedy


def test_retention_is_the_perplexity_alone(here, there, caplog):
    setting = {"tea": 0.7, "ale": -0.2}
    expected, found = RetentionProbe(here)(setting), RetentionProbe(there)(setting)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-3)
    assert found.kl is None
    assert "not measured: KL" in caplog.text
    with pytest.raises(AlignvecError, match="takes the probabilities of all tokens"):
        RetentionProbe(there).kl(setting)


def test_strengths_whose_numbers_overflow_are_refused(there, records):
    rows = response_rows(there.tokenizer, records[:1], LEVELS)
    with pytest.raises(AlignvecError, match="is no number from -100 to 100"):
        there.scores(rows, [{"tea": 1e30}])
    with pytest.raises(AlignvecError, match="is no number from -100 to 100"):
        there.generate(["Why?"], [{"tea": 1e30}], 4)


@pytest.mark.parametrize("logprobs", [[math.nan] * 2, [-math.inf] * 2, [math.log(1 / 96)] * 2])
def test_what_is_no_number_is_told(logprobs):
    """Nor are logits that are all alike: a norm whose input overflowed."""
    told = [{token: SimpleNamespace(logprob=one) for token, one in enumerate(logprobs)}]
    answer = SimpleNamespace(outputs=[SimpleNamespace(logprobs=told)])
    with pytest.raises(NoNumbersError):
        offline._check_numbers(answer, 96)


def test_what_it_cannot_do_is_refused_by_name(place, vectors, here, there, records):
    for call, message in (
        (lambda: there.generate(["Why?"], [{"cocoa": 1}]), "unknown knob 'cocoa'"),
        (lambda: there.scores([], [{"tea": 1}]), "1 settings for 0"),
        (lambda: there.generate(["Why?"], [{}], 4096), '--engine-args .*"max_model_len"'),
        (lambda: there.generate(["Why?"], num_beams=2), "unknown option 'num_beams'"),
        (lambda: VllmModel("x", {}, engine={"tensor_size": 2}), "argument of vLLM 'tensor_size'"),
        (lambda: VllmModel("x", {}, engine={"dtype": "auto"}), "'dtype' is set by alignvec"),
        (lambda: VllmModel(vectors["tea"], {}), "is an alignment vector, not a model"),
    ):
        with pytest.raises(AlignvecError, match=message):
            call()
    queries, domains = [one.query for one in records], [one.domain for one in records]
    hidden = Router.fit(here.model, here.tokenizer, queries, domains, base=here.base)
    with pytest.raises(AlignvecError, match="alignvec route --reads text"):
        there.acting(hidden, queries)
    text = Router.fit(None, None, queries, domains, reads="text")
    assert there.acting(text, queries).tolist() == here.acting(text, queries).tolist()
    with pytest.raises(AlignvecError, match="no front: KL"):
        search(there, [{"tea": "expert"}], records, records, LEVELS, passes=4, front=True)


def test_what_a_study_measures_is_the_same(here, there, records):
    queries, domains = [one.query for one in records], [one.domain for one in records]
    text = Router.fit(None, None, queries, domains, reads="text")
    told = with_system("Answer briefly.")
    asked = [record.prompt for record in records[::4]]
    setting = {"tea": 1.0, "ale": -0.5}
    answers = []
    for made in (
        lambda model: Turned(model, setting),
        lambda model: Turned(model, setting, text),
        lambda model: Turned(model, {}),
        lambda model: Prompted(model, told),
    ):
        one, other = made(here), made(there)
        assert other.identity == one.identity
        assert other.answers(asked, 16) == one.answers(asked, 16)
        scores = other.scores(records, LEVELS)
        assert np.abs(scores - one.scores(records, LEVELS)).max() < 1e-3
        answers.append(one.answers(asked, 16))
    assert all(a != b for a, b in itertools.combinations(answers, 2))


# The commands.


@pytest.fixture
def started(there, monkeypatch):
    """A command that starts vLLM gets the one that runs, with the knobs that it asked for."""

    def start(base, vectors, dtype, check_base, engine):
        model = copy.copy(there)
        model.vectors = {knob: there.vectors[knob] for knob in vectors}
        return model.set()

    monkeypatch.setattr(offline, "VllmModel", start)


def both(place, *command, out):
    """What a command writes on transformers, and on vLLM."""
    given = [command[0], place / "base", *command[1:], "--dtype", "float32"]
    run(*given, "-o", out / "here.json")
    run(*given, "-o", out / "there.json", "--engine", "vllm")
    return [json.loads((out / f"{name}.json").read_text()) for name in ("here", "there")]


def knobs(place):
    return [word for knob in RANKS for word in ("--vector", f"{knob}={place / knob}")]


@pytest.mark.parametrize("method", ["surface", "grid"])
def test_a_search_finds_the_same(place, started, tmp_path, method):
    expected, found = both(
        place, "search", *knobs(place), "--data", place / "two.jsonl", "--target",
        "tea=expert,ale=avoidance", "--method", method, "--passes", 9, out=tmp_path,
    )  # fmt: skip
    (one,), (other,) = expected["found"], found["found"]
    assert other["setting"] == pytest.approx(one["setting"], abs=0.02)
    for domain, rates in one["rates"].items():
        assert other["rates"][domain]["rate"] == pytest.approx(rates["rate"], abs=1e-9)
    assert other["retained"]["kl"] is None
    assert other["retained"]["perplexity"] == pytest.approx(one["retained"]["perplexity"], rel=0.05)
    assert found["passes"] == expected["passes"]


def test_a_calibration_reads_the_same_off(place, started, tmp_path, caplog):
    given = [
        "calibrate", place / "base", "--data", place / "tea.jsonl", "--steps", 5, "--limits",
        "-2:2", "--answers", 3, "--dtype", "float32", "--most-kl", 1e9, "--most-perplexity", 1e9,
        "--vector", f"tea={place / 'tea'}", "--json",
    ]  # fmt: skip
    expected = json.loads(run(*given).stdout)
    found = json.loads(run(*given, "--engine", "vllm").stdout)
    assert found.pop("safe_without") == ["kl"]
    assert expected.pop("safe_without") == []
    for part in ("strengths", "top", "position"):
        assert found.pop(part) == pytest.approx(expected.pop(part), abs=1e-3)
    assert found.pop("levels") == pytest.approx(expected.pop("levels"), abs=0.051)
    assert found == expected
    stored = json.loads((place / "tea" / "alignment_vector.json").read_text())["calibration"]
    assert stored["safe_without"] == ["kl"]


def test_a_sweep_from_a_shell_measures_the_same(place, tmp_path):
    """As a process of its own, with vLLM's engine in another: stdout has the result alone."""
    given = [
        "eval", str(place / "base"), "--vector", f"ale={place / 'ale'}", "--data",
        str(place / "two.jsonl"), "--sweep", "ale=-1:1:1", "--answers", "3", "--dtype", "float32",
        "--json",
    ]  # fmt: skip
    expected = json.loads(run(*given, "-o", tmp_path / "here").stdout)
    arguments = ["--engine", "vllm", "--engine-args", json.dumps(ENGINE)]
    done = subprocess.run(
        [sys.executable, "-m", "alignvec", *given, "-o", tmp_path / "there", *arguments],
        capture_output=True, text=True, timeout=600, env=shell(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for one, other in zip(expected["points"], found["points"], strict=True):
        assert other["rate"] == one["rate"]
        assert other["score"] == pytest.approx(one["score"], abs=1e-3)
        read = one["text"]["greedy"].pop("likelihood"), other["text"]["greedy"].pop("likelihood")
        assert read[1] == pytest.approx(read[0], abs=1e-3)
        assert other["text"]["greedy"] == one["text"]["greedy"]
        assert other["sound"] == one["sound"]
    assert Path(tmp_path / "there" / "sweep.png").exists()


def test_a_command_that_is_terminated_leaves_no_engine_behind(place, tmp_path):
    command = [
        sys.executable, "-m", "alignvec", "eval", place / "base", "--data", place / "two.jsonl",
        "--vector", f"ale={place / 'ale'}", "--sweep", "ale=-1:1:0.01", "--dtype", "float32",
        "-o", tmp_path / "out", "--engine", "vllm", "--engine-args", json.dumps(ENGINE),
    ]  # fmt: skip
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=shell(), stdout=log, stderr=log) as ours,
    ):
        while not any("VLLM" in one.name() for one in engine_of(ours)):
            assert ours.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        engine = engine_of(ours)
        ours.terminate()
        assert ours.wait(60) == 143
    assert not psutil.wait_procs(engine, timeout=20)[1]


def shell():
    """The environment of a command, whose engine is a process of its own."""
    return {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}


def engine_of(process):
    return psutil.Process(process.pid).children(recursive=True)


def test_options_of_one_engine_are_refused_with_the_other(place, started, tmp_path):
    given = ["eval", place / "base", "--data", place / "tea.jsonl", "-o", tmp_path / "out"]
    assert "leave --device out" in refused(*given, "--engine", "vllm", "--device", "cpu")
    assert "they go with --engine vllm" in refused(*given, "--engine-args", "{}")
    assert "no JSON object" in refused(*given, "--engine", "vllm", "--engine-args", "[1]")
