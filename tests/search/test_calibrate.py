"""From what was measured to units: by hand, and what is safe on a model with a known retention."""

from types import SimpleNamespace

import numpy as np
import pytest

from alignvec.data import Record
from alignvec.errors import AlignvecError
from alignvec.evaluate.retention import Retention
from alignvec.evaluate.text import TextQuality
from alignvec.search import calibrate as module
from alignvec.search.calibrate import calibrate, fit_calibration, trained_places

LEVELS = ["avoidance", "generic", "expert"]
STRENGTHS = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
QUERY = Record(id="q", query="q?", levels={})


def scores(shift, strengths=STRENGTHS):
    """[N, Q, L]: query q prefers expert from `shift[q]` on, avoidance from as far below 0 on."""
    shift = np.asarray(shift, float)
    x = strengths[:, None]
    return np.stack([-x - shift, np.zeros((len(strengths), len(shift))), x - shift], -1)


def test_units_are_where_the_curves_say():
    found = fit_calibration(STRENGTHS, scores([0.5, 0.5, 1.5, 1.5]), (-2.0, 2.0), LEVELS)
    assert found.queries == 4
    assert found.strengths[0] == -2
    assert found.strengths[-1] == 2
    assert list(found.levels) == LEVELS
    assert found.levels["generic"] == pytest.approx(0, abs=0.05)
    assert found.levels["avoidance"] == pytest.approx(-1.75, abs=0.05)  # the middle of -1.5 to -2
    assert found.levels["expert"] == pytest.approx(1.75, abs=0.05)
    at = dict(
        zip(np.round(found.strengths, 2), zip(found.top, found.position, strict=True), strict=True)
    )
    assert at[0.0] == (0, 0.5)
    assert at[1.0] == (0.5, 0.75)
    assert at[2.0] == (1, 1)
    assert at[-1.0] == (0, 0.25)
    assert at[-2.0] == (0, 0)
    assert found.strength("k", "50%") == pytest.approx(1.0, abs=0.05)
    assert found.strength("k", "5/10") == pytest.approx(0.0, abs=0.05)


def test_levels_are_looked_for_where_it_is_safe():
    found = fit_calibration(STRENGTHS, scores([0.5, 0.5, 1.5, 1.5]), (-1.0, 1.0), LEVELS)
    assert found.safe == (-1.0, 1.0)
    assert 0.5 <= found.levels["expert"] <= 1
    assert -1 <= found.levels["avoidance"] <= -0.5


def test_a_rate_that_falls_is_made_to_rise():
    """Query by query the expert level wins, loses and wins again: the share never falls."""
    wavy = np.zeros((5, 2, 3))
    wavy[:, :, 2] = np.array([-1, 1, -1, 1, 1])[:, None]
    found = fit_calibration(STRENGTHS, wavy, (-2.0, 2.0), LEVELS)
    assert (np.diff(found.top) >= 0).all()
    assert (np.diff(found.position) >= 0).all()


class Model:
    vectors = dict.fromkeys(("k", "other"), SimpleNamespace(training={}))


@pytest.fixture
def measured(monkeypatch):
    """A scorer and a retention that are known; the settings that they saw."""
    seen = []

    class Scorer:
        knobs = ("other", "k")

        def __init__(self, model, records, levels):
            self.count = len(records)

        def __call__(self, setting):
            seen.append(setting.copy())
            return scores([0.5] * self.count, np.array([setting[1]]))[0]

    class Probe:
        def __init__(self, model):
            pass

        def __call__(self, setting):
            strength = setting["k"]
            return Retention(kl=abs(strength) / 4, perplexity=1 + max(0.0, strength) / 2)

    monkeypatch.setattr(module, "Scorer", Scorer)
    monkeypatch.setattr(module, "RetentionProbe", Probe)
    return seen


def test_the_safe_range_keeps_both_bounds(measured, caplog):
    records = [QUERY] * 3
    found = calibrate(
        Model(), "k", records, LEVELS, (-2, 2), 5, answers=0, most_kl=0.3, most_perplexity=9
    )
    assert found.safe == (-1, 1)  # KL is .25 at 1 and .5 at 2
    assert found.queries == 3
    assert [tuple(setting) for setting in measured] == [(0, s) for s in (-2, -1, 0, 1, 2)]
    found = calibrate(
        Model(), "k", records, LEVELS, (-2, 2), 5, answers=0, most_kl=9, most_perplexity=1.5
    )
    assert found.safe == (-2, 1)  # perplexity rises on one side only
    found = calibrate(
        Model(), "k", records, LEVELS, (-2, 2), 5, answers=0, most_kl=0.25, most_perplexity=9
    )
    assert found.safe == (-1, 1)  # the bound itself is safe
    found = calibrate(
        Model(), "k", records, LEVELS, (-2, 2), 5, answers=0, most_kl=0.01, most_perplexity=9
    )
    assert found.safe == (0, 0)
    assert 0 not in (found.levels["avoidance"], found.levels["expert"])  # where it is the base
    assert "not safe at any strength" in caplog.text
    measured.clear()
    calibrate(Model(), "k", records, LEVELS, (-1, 2), 2, answers=0)
    assert [setting[1] for setting in measured] == [-1, 0, 2]  # the base is always measured


class Writer:
    """Its answers go round in circles beyond 1; one word a strength otherwise."""

    def __init__(self, model, queries):
        self.queries = queries

    def __call__(self, setting):
        strength = setting.get("k", 0.0)
        repeated = 0.5 if strength > 1 else 0.0
        return {"greedy": TextQuality(len(self.queries), repeated, 9.0, 0.0, 1.0)}

    def quality(self, texts):
        assert len(texts) == len(self.queries)
        return TextQuality(len(texts), 0.0, 9.0, 0.0, 1.0)


def test_it_is_safe_where_the_answers_are_texts(measured, monkeypatch):
    monkeypatch.setattr(module, "AnswerProbe", Writer)
    records = [
        Record(id=str(n), query=f"q {n}?", levels=dict.fromkeys(LEVELS, "so.")) for n in range(3)
    ]
    loose = {"most_kl": 9, "most_perplexity": 9}
    found = calibrate(Model(), "k", records, LEVELS, (-2, 2), 5, **loose)
    assert found.safe == (-2, 1)
    found = calibrate(Model(), "k", records, LEVELS, (-2, 2), 5, answers=0, **loose)
    assert found.safe == (-2, 2)


def test_levels_that_training_placed_are_checked_and_kept(measured, monkeypatch):
    places = {"avoidance": -1.0, "generic": 0.3, "expert": 1.0}
    knobs = {"k": SimpleNamespace(training={"levels": places}), "other": None}
    monkeypatch.setattr(Model, "vectors", knobs)
    found = calibrate(Model(), "k", [QUERY], LEVELS, (-2, 2), 5, answers=0)
    assert found.levels == places
    assert [setting[1] for setting in measured] == [-2, -1, 0, 0.3, 1, 2]
    # Of other levels, or damaged, it says nothing.
    for stored in ({"a": 1.0}, {**places, "expert": "far"}, {**places, "expert": float("nan")}, 3):
        vector = SimpleNamespace(training={"levels": stored})
        assert trained_places(vector, LEVELS) == {}


def test_a_safe_range_of_limits_between_two_steps():
    strengths = np.array([-0.33, 0.0, 0.32])
    found = fit_calibration(strengths, scores([0.1], strengths), (0.0, 0.0), LEVELS)
    assert found.strengths[0] == -0.33
    assert found.strengths[-1] == 0.32
    assert 0 in found.strengths


def test_nothing_to_calibrate_is_refused(measured):
    with pytest.raises(AlignvecError, match="no queries to calibrate on"):
        calibrate(Model(), "k", [], LEVELS)
    with pytest.raises(AlignvecError, match="unknown knob 'x'"):
        calibrate(Model(), "x", [QUERY], LEVELS)
    with pytest.raises(AlignvecError, match="measures strengths from -100 to 100"):
        calibrate(Model(), "k", [QUERY], LEVELS, (-1e30, 1e30))
    assert measured == []
