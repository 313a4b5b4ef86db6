"""A sweep: what it says of a curve, and that it goes on where it was."""

import dataclasses
import importlib
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from alignvec.data import read_records
from alignvec.errors import AlignvecError, NoNumbersError
from alignvec.evaluate.rates import Rates, preference_rates
from alignvec.evaluate.sweep import Sweep, sweep
from alignvec.knobs.model import KnobModel
from alignvec.vector.alignment_vector import AlignmentVector

module = importlib.import_module("alignvec.evaluate.sweep")  # the package has the function
LEVELS = ["low", "high"]


def curve(*high, start=-1.0, step=1.0):
    """A sweep over strengths from `start` on with these rates of the level `high`."""
    rates = [
        Rates(10, {"low": 1 - rate, "high": rate}, {"low": (0, 1), "high": (0, 1)}, {})
        for rate in high
    ]
    return Sweep("k", LEVELS, [start + step * i for i in range(len(high))], rates)


def test_best_is_the_highest_rate_and_of_equals_the_smallest_turn():
    assert curve(0.1, 0.4, 0.9).best("high") == (1.0, 0.9)
    assert curve(0.1, 0.4, 0.9).best("low") == (-1.0, 0.9)
    assert curve(0.5, 0.5, 0.5, 0.5, start=-2.0).best("high") == (0.0, 0.5)
    assert curve(0.5, 0.2, 0.5, start=-3.0).best("high") == (-1.0, 0.5)


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), min_size=3, max_size=9))
def test_spearman_is_the_rank_correlation_with_ties(rates):
    found = curve(*rates)
    if len(set(rates)) == 1:
        assert math.isnan(found.spearman("high"))
    else:
        assert found.spearman("high") == pytest.approx(spearmanr(found.strengths, rates)[0])
        assert found.spearman("low") == pytest.approx(-found.spearman("high"))


def test_the_largest_fall_is_from_any_earlier_step():
    assert curve(0.1, 0.2, 0.2, 0.9).largest_fall("high") == 0
    assert curve(0.1, 0.8, 0.6, 0.7, 0.3, 0.9).largest_fall("high") == pytest.approx(0.5)
    assert curve(0.1, 0.8).largest_fall("low") == pytest.approx(0.7)


def test_what_is_written_is_read_back():
    found = curve(0.1, 0.4, 0.9)
    written = json.loads(json.dumps(found.to_json()))
    assert written["best"]["high"] == {"strength": 1.0, "rate": 0.9}
    assert written["spearman"] == {"low": -1.0, "high": 1.0}
    assert [point["strength"] for point in written["points"]] == [-1, 0, 1]
    again = Sweep.from_json(written)
    assert (again.knob, again.levels, again.strengths) == ("k", LEVELS, found.strengths)
    assert [one.rate for one in again.rates] == [one.rate for one in found.rates]
    assert curve(0.3, 0.3).to_json()["spearman"]["high"] is None


@pytest.fixture
def model(tiny, nudged):
    vector = AlignmentVector.extract(tiny(), nudged())
    return KnobModel.from_pretrained(tiny(), {"a": vector, "b": -0.5 * vector}, "float32", "cpu")


@pytest.fixture
def counted(monkeypatch):
    """How often rates are measured."""
    measured = []

    def counting(*args):
        measured.append(args)
        return rates(*args)

    rates = module.rates_at
    monkeypatch.setattr(module, "rates_at", counting)
    return measured


ORDER = ["avoidance", "generic", "expert"]


def test_strengths_are_measured_once_in_order_and_the_knobs_turned_back(model, records, counted):
    some = list(read_records(records, ORDER))
    model.set(b=0.25)
    found = sweep(model, "a", [1.0, -1.0, 0.0, 1.0], some, ORDER)
    assert found.strengths == [-1.0, 0.0, 1.0]
    assert len(counted) == 3
    assert model.setting == {"a": 0.0, "b": 0.25}
    for strength, rates in zip(found.strengths, found.rates, strict=True):
        with model.at({"a": strength, "b": 0.25}):  # the other knob stayed where it was
            alone = preference_rates(
                model.model, module.response_rows(model.tokenizer, some, ORDER), ORDER
            )
        assert rates.rate == alone.rate
        assert rates.score == pytest.approx(alone.score)
    assert len({one.score["expert"] for one in found.rates}) == 3
    with pytest.raises(AlignvecError, match="unknown knob 'c'"):
        sweep(model, "c", [0.0], some, ORDER)


def test_a_sweep_goes_on_where_it_was_and_not_with_another(model, records, counted, tmp_path):
    some, file = list(read_records(records, ORDER)), tmp_path / "sweep.json"
    first = sweep(model, "a", [-1.0, 0.0], some, ORDER, file)
    assert len(counted) == 2
    longer = sweep(model, "a", [-1.0, 0.0, 1.0], some, ORDER, file)
    assert len(counted) == 3  # one new strength
    assert [one.score for one in longer.rates[:2]] == [one.score for one in first.rates]
    assert [p["strength"] for p in json.loads(file.read_text())["points"]] == [-1, 0, 1]
    sweep(model, "a", [-1.0], some[:-1], ORDER, file)  # a query fewer
    assert len(counted) == 4
    sweep(model, "a", [-1.0], some[:-1], ORDER[::-1], file)  # another order of levels
    assert len(counted) == 5
    sweep(model, "b", [-1.0], some[:-1], ORDER[::-1], file)  # another knob
    assert len(counted) == 6
    model.set(a=0.5)
    sweep(model, "b", [-1.0], some[:-1], ORDER[::-1], file)  # beside another setting
    assert len(counted) == 7
    model.set(a=0.5, b=3.0)
    sweep(model, "b", [-1.0], some[:-1], ORDER[::-1], file)  # where the swept knob stood
    assert len(counted) == 7
    file.write_text("{}")  # ours by name, and damaged
    sweep(model, "b", [-1.0], some[:-1], ORDER[::-1], file)
    assert len(counted) == 8
    assert np.isfinite(list(first.rates[0].score.values())).all()


def test_a_sweep_of_another_model_is_another_sweep(tiny, nudged, records, counted, tmp_path):
    """What differs lies where no sample of the weights meets it, or in no weight at all."""
    some, file = list(read_records(records, ORDER)), tmp_path / "sweep.json"
    vector = AlignmentVector.extract(tiny(), nudged())

    def measure(change=lambda model: None, dtype="float32", vector=vector):
        model = KnobModel.from_pretrained(tiny(), {"a": vector}, dtype, "cpu")
        with torch.no_grad():
            change(model)
        before = len(counted)
        sweep(model, "a", [1.0], some, ORDER, file)
        return len(counted) - before

    def one_row(model):
        model.model.model.embed_tokens.weight[1, 1] += 1

    def template(model):
        model.tokenizer.chat_template = model.tokenizer.chat_template.replace("<", "(")

    def config(model):
        model.model.config.rope_parameters["rope_theta"] *= 2

    deltas = {**vector.deltas}
    name = "model.layers.0.mlp.gate_proj.weight"
    moved = deltas[name].in_memory()
    moved.values[1:4] += 1
    other = dataclasses.replace(vector, deltas={**deltas, name: moved})
    assert measure() == 1
    assert measure() == 0
    for way in ({"change": one_row}, {"change": template}, {"change": config},
                {"dtype": "bfloat16"}, {"vector": other}):  # fmt: skip
        assert measure(**way) == 1
        assert measure() == 1


def test_a_sweep_that_fails_leaves_what_was_there_and_goes_on(
    model, records, counted, tmp_path, monkeypatch
):
    some, file = list(read_records(records, ORDER)), tmp_path / "sweep.json"
    sweep(model, "a", [-1.0, 1.0], some, ORDER, file)
    before, whole = file.read_text(), module.rates_at

    def fails(model, setting, *rest):
        if setting["a"] == 2:
            raise NoNumbersError("a knob is turned too far")
        return whole(model, setting, *rest)

    with monkeypatch.context() as patch, pytest.raises(NoNumbersError):
        patch.setattr(module, "rates_at", fails)
        sweep(model, "a", [0.0, 2.0], some, ORDER, file)
    assert file.read_text() == before
    done = len(counted)
    assert sweep(model, "a", [0.0, 1.0], some, ORDER, file).strengths == [0, 1]
    assert len(counted) == done  # one of the file, one of the sweep that failed
    assert not [*tmp_path.glob(".*.work")]


def test_two_sweeps_into_one_file_do_not_meet(model, records, tmp_path, monkeypatch):
    some, file = list(read_records(records, ORDER)), tmp_path / "sweep.json"

    def second(*_):
        monkeypatch.undo()
        with pytest.raises(AlignvecError, match=r"another process is writing .*sweep.json"):
            sweep(model, "b", [0.0], some, ORDER, file)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "rates_at", second)
    with pytest.raises(KeyboardInterrupt):
        sweep(model, "a", [0.0], some, ORDER, file)
    sweep(model, "a", [0.0], some, ORDER, file)
    assert json.loads(file.read_text())["knob"] == "a"
    file.with_name("mine.json").write_text("years of work")
    with pytest.raises(AlignvecError, match="not of alignvec's making"):
        sweep(model, "a", [0.0], some, ORDER, file.with_name("mine.json"))
