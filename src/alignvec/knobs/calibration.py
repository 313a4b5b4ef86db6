"""Human units: what a knob does at each strength, so that people can say what they want of it.

    expert    the strength where that level's rate is highest
    80%       where the highest level has this rate
    7/10      a position between the knob's two ends, even in the mean level

Measured once (`alignvec calibrate`), kept in the vector's metadata, and taken wherever a strength
is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alignvec.data.line import JITTER
from alignvec.errors import AlignvecError


class Calibration(BaseModel):
    """What the strengths of a knob mean: as it was trained, or as it was measured.

    A knob that was trained along its line has its levels where training put them. What a share of
    the highest level is, `alignvec calibrate` has to measure.

    Attributes:
        queries: how many it was measured on; 0 if levels are only where training put them.
        seen: how many of them the training saw; None if that is not known.
        levels: from low to high, each with its strength.
        safe: the range of strengths in which the model keeps its abilities and its answers stay
            texts.
        safe_without: what `safe` would have looked at and could not measure: `kl`.
        strengths: [N], ascending, where the following were read off; none if not measured.
        top: [N], the rate of the highest level, in [0, 1], never falling.
        position: [N], the mean level, from 0 (lowest level) to 1, never falling.
        leak: level -> domain -> how much the rate of that level rises there when the knob is at its
            place, and `neutral` -> nats a token that neutral text moves; from `alignvec leak`.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    queries: int = Field(default=0, ge=0)
    seen: int | None = None
    levels: dict[str, float]
    safe: tuple[float, float]
    safe_without: list[str] = []
    strengths: list[float] = []
    top: list[float] = []
    position: list[float] = []
    leak: dict[str, dict[str, float]] = {}

    @model_validator(mode="after")
    def _is_monotone(self) -> Calibration:
        lengths = {len(self.strengths), len(self.top), len(self.position)}
        if len(lengths) > 1 or lengths == {1}:
            raise ValueError("strengths, top and position differ in length")
        for name in ("strengths", "top", "position"):
            values = getattr(self, name)
            if any(b < a for a, b in itertools.pairwise(values)):
                raise ValueError(f"{name} falls")
        if self.safe[0] > self.safe[1] or not self.levels:
            raise ValueError("no safe range or no levels")
        return self

    @classmethod
    def read(cls, knob: str, stored: Mapping[str, Any] | None) -> Calibration:
        """From a vector's metadata.

        Raises:
            AlignvecError: the knob is not calibrated, or not readably.
        """
        if stored is None:
            raise AlignvecError(
                f"knob '{knob}' has no units on this base; give a number, or measure them with "
                "alignvec calibrate on the vector's own base"
            )
        try:
            return cls.model_validate(dict(stored))
        except ValidationError as error:
            raise AlignvecError(
                f"knob '{knob}': its calibration is damaged: {error.errors()[0]['msg']}"
            ) from None

    def strength(self, knob: str, wanted: str) -> float:
        """The strength that `wanted` stands for.

        Raises:
            AlignvecError: it is no level, share or position, or beyond what the knob reaches.
        """
        if wanted in self.levels:
            return self.levels[wanted]
        text = wanted.strip()
        if text.endswith("%"):
            share = _number(text[:-1]) / 100
            if not math.isnan(share):
                return self._where(knob, self.top, share, wanted)
        if text.endswith("/10"):
            place = _number(text[:-3]) / 10
            if 0 <= place <= 1:
                if not self.position:
                    return self._between_levels(place)
                low, high = self.position[0], self.position[-1]
                value = min(high, low + place * (high - low))  # which rounds
                return self._where(knob, self.position, value, wanted)
        raise AlignvecError(
            f"knob '{knob}': '{wanted}' is no strength; a number, a level "
            f"({', '.join(self.levels)}), a share as 80%, or a position as 7/10"
        )

    def _between_levels(self, place: float) -> float:
        """A position between the ends where only the levels are known: straight from one to the
        next."""
        at = list(self.levels.values())
        return float(np.interp(place, np.linspace(0, 1, len(at)), at))

    def _where(self, knob: str, curve: list[float], value: float, wanted: str) -> float:
        """Where a rising curve passes `value`; in the middle of a plateau."""
        if not curve:
            raise AlignvecError(
                f"knob '{knob}': {wanted} was not measured; alignvec calibrate does that"
            )
        if not curve[0] <= value <= curve[-1]:
            raise AlignvecError(
                f"knob '{knob}': {wanted} is not reachable; it goes from {curve[0]:.0%} to "
                f"{curve[-1]:.0%}"
            )
        rising, first = np.unique(curve, return_index=True)
        last = len(curve) - 1 - np.unique(curve[::-1], return_index=True)[1]
        middle = (np.array(self.strengths)[first] + np.array(self.strengths)[last]) / 2
        return float(np.interp(value, rising, middle))


def named_levels(stored: Mapping[str, Any] | None) -> list[str]:
    """The levels in a vector's metadata, from low to high; none if it names none."""
    levels = (stored or {}).get("levels")
    return list(levels) if isinstance(levels, Mapping) else []


def trained_calibration(places: Mapping[str, float]) -> Calibration:
    """What training along a line says of a knob before anything is measured."""
    low, high = min(0.0, *places.values()), max(0.0, *places.values())
    return Calibration(levels=dict(places), safe=reach(low, high))


def reach(low: float, high: float) -> tuple[float, float]:
    """The range that places were trained in: strengths were drawn a little beyond them."""
    return round(low * (1 + JITTER), 4) + 0.0, round(high * (1 + JITTER), 4) + 0.0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
