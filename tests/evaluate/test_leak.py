"""Leak: the arithmetic by hand; the measuring is tried through the command line (test_bank)."""

import pytest

from alignvec.evaluate.leak import Leak

EFFECT = {
    "avoidance": {"tea": 0.4, "rum": 0.2, "ice": -0.3},
    "expert": {"tea": 0.0, "rum": 0.1, "ice": 0.0},
}
LEAK = Leak("k", "tea", EFFECT, {"avoidance": 0.01, "expert": 0.5})


def test_normalised_leak_is_the_mean_rise_elsewhere_over_that_at_home():
    assert LEAK.normalised("avoidance") == pytest.approx((0.2 + 0) / 2 / 0.4)
    assert LEAK.normalised("expert") is None  # it does nothing at home
    alone = Leak("k", "tea", {"expert": {"tea": 0.5}}, {"expert": 0.0})
    assert alone.normalised("expert") is None


def test_a_vector_keeps_the_matrix_with_neutral_text():
    kept = LEAK.for_calibration()
    assert kept["avoidance"] == {"tea": 0.4, "rum": 0.2, "ice": -0.3, "neutral": 0.01}
    assert LEAK.to_json()["normalised"]["avoidance"] == pytest.approx(0.25)
