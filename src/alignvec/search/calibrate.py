"""Measure a knob once, so that people can ask for a level or a share instead of a number."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator
from sklearn.isotonic import IsotonicRegression

from alignvec.base.seen import count_seen
from alignvec.data.records import Record
from alignvec.errors import AlignvecError, check_known
from alignvec.evaluate.measurable import Measurable
from alignvec.evaluate.rates import wins
from alignvec.evaluate.retention import RetentionProbe
from alignvec.evaluate.text import AnswerProbe, unsound
from alignvec.knobs.calibration import Calibration
from alignvec.progress import progress
from alignvec.search.scorer import Array, Scorer
from alignvec.vector.alignment_vector import AlignmentVector

logger = logging.getLogger(__name__)

_FURTHEST = 100  # strengths between are looked at in steps of `_STEP`
_STEP = 0.05  # between two strengths of the curves


def calibrate(
    model: Measurable,
    knob: str,
    records: Sequence[Record],
    levels: Sequence[str],
    limits: tuple[float, float] = (-3.0, 3.0),
    steps: int = 13,
    most_kl: float = 0.5,
    most_perplexity: float = 1.5,
    answers: int = 8,
) -> Calibration:
    """Turn a knob from one limit to the other and read off what it does.

    Where its levels are is known of a knob that was trained along its line, and checked here: each
    place is one of the strengths that are measured. Of any other knob a level is where its rate is
    highest.

    The scores are interpolated query by query between the strengths that are measured; rates never
    fall along the curve (isotonic regression), so every share has one strength.

    Args:
        records: queries of the knob's domain, best those that its vector was not trained on; how
            many of them it was goes into the result.
        levels: from low to high.
        steps: strengths to measure, evenly spaced; 0 is added.
        most_kl: nats a token on neutral text that the turned model may be from the base, where
            that can be measured; the calibration says where it was not.
        most_perplexity: times the base's, likewise.
        answers: queries that are answered at each strength: it is safe only where the answers are
            as sound as the base's.

    Raises:
        AlignvecError: an unknown knob, no records, or limits beyond all sense.
    """
    check_known("knob", knob, model.vectors)
    if not records:
        raise AlignvecError(f"knob '{knob}': no queries to calibrate on")
    if not (most_kl >= 0 and most_perplexity >= 1):
        raise AlignvecError(
            "what is safe is at least 0 nats and 1 times the base's perplexity, not "
            f"{most_kl:g} and {most_perplexity:g}"
        )
    places = trained_places(model.vectors[knob], levels)
    strengths = np.unique([0.0, *np.linspace(*limits, steps), *places.values()])
    if max(-strengths[0], strengths[-1]) > _FURTHEST:
        raise AlignvecError(
            f"knob '{knob}': calibration measures strengths from -{_FURTHEST} to {_FURTHEST}"
        )
    scorer = Scorer(model, records, levels)
    column = scorer.knobs.index(knob)
    probe = RetentionProbe(model)
    asked = records[:answers]
    write = AnswerProbe(model, [record.prompt for record in asked]) if asked else None
    base = write({})["greedy"] if write else None
    scores, kept = [], []
    with progress("calibrating", "pass", len(strengths)) as bar:
        for strength in strengths:
            setting = np.zeros(len(scorer.knobs))
            setting[column] = strength
            scores.append(scorer(setting))
            turned = {knob: float(strength)}
            retention = probe(turned)
            safe = (retention.kl or 0.0) <= most_kl and retention.perplexity <= most_perplexity
            if safe and strength and write and base:
                level = levels[int(wins(scores[-1]).mean(0).argmax())]
                said = write.quality([record.levels[level] for record in asked])
                safe = unsound(write(turned)["greedy"], base, said) is None
            kept.append(safe)
            bar.update()
    calibration = fit_calibration(
        strengths, np.array(scores), _safe_range(strengths, np.array(kept)), levels
    )
    if calibration.safe == (0.0, 0.0):
        logger.warning(
            "knob '%s' was not safe at any strength that was measured; measure nearer to 0 "
            "(--limits, --steps)", knob,
        )  # fmt: skip
    seen = count_seen([model.vectors[knob].training], [record.prompt for record in records])
    return calibration.model_copy(
        update={
            "seen": seen,
            "levels": places or calibration.levels,
            "safe_without": ["kl"] if retention.kl is None else [],
        }
    )


def trained_places(vector: AlignmentVector, levels: Sequence[str]) -> dict[str, float]:
    """Level -> strength, from low to high, as a vector was trained; empty if it does not say."""
    stored = vector.training.get("levels")
    if not isinstance(stored, Mapping) or set(stored) != set(levels):
        return {}
    if not all(isinstance(at, int | float) and math.isfinite(at) for at in stored.values()):
        return {}
    return {level: float(stored[level]) for level in levels}


def fit_calibration(
    strengths: Array, scores: Array, safe: tuple[float, float], levels: Sequence[str]
) -> Calibration:
    """From what was measured to units.

    Args:
        strengths: [N], ascending.
        scores: [N, Q, L], s(l) of every query at every strength.
        safe: the range in which levels are looked for; of one that is no more than 0, where every
            level would be the base, it is the whole.
        levels: L names, from low to high.
    """
    # Multiples, or 0 is not in it: a safe range may be no more than that.
    steps = np.arange(np.ceil(strengths[0] / _STEP), np.floor(strengths[-1] / _STEP) + 1)
    fine = np.union1d(strengths[[0, -1]], (steps * _STEP).round(10))
    rates = wins(PchipInterpolator(strengths, scores)(fine)).mean(1)  # [N, L]

    def rising(values: Array) -> list[float]:
        return [round(float(v), 4) for v in IsotonicRegression().fit_transform(fine, values)]

    within = (fine >= safe[0]) & (fine <= safe[1]) | (safe == (0.0, 0.0))
    return Calibration(
        queries=scores.shape[1],
        levels={
            level: _peak(fine[within], rates[within, index]) for index, level in enumerate(levels)
        },
        safe=safe,
        strengths=[round(float(strength), 4) for strength in fine],
        top=rising(rates[:, -1]),
        position=rising(rates @ np.arange(len(levels)) / (len(levels) - 1)),
    )


def _peak(strengths: Array, rate: Array) -> float:
    """The middle of where a rate is within .02 of its highest, as the one next to zero."""
    near = strengths[rate >= rate.max() - 0.02]
    runs = np.split(near, np.flatnonzero(np.diff(near) > 1.5 * _STEP) + 1)
    run = min(runs, key=lambda one: float(np.abs(one).min()))
    return round(float(run.mean()), 4)


def _safe_range(strengths: Array, kept: Array) -> tuple[float, float]:
    """The longest range about 0 in which every measured strength keeps the bounds."""
    below = [s for s, ok in zip(strengths, kept, strict=True) if s <= 0 and not ok]
    above = [s for s, ok in zip(strengths, kept, strict=True) if s >= 0 and not ok]
    low = strengths[strengths > max(below)].min() if below else strengths[0]
    high = strengths[strengths < min(above)].max() if above else strengths[-1]
    return float(min(low, 0.0)), float(max(high, 0.0))
