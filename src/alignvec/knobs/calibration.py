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

from alignvec.errors import AlignvecError


class Calibration(BaseModel):
    """A knob measured on queries of its domain and on neutral text.

    Attributes:
        queries: how many the rates were measured on.
        levels: from low to high, each with the strength where its rate is highest.
        safe: the range of strengths in which the model keeps its abilities: on neutral text, its
            KL divergence from the base and its perplexity are bounded.
        strengths: [N], ascending, where the following were read off.
        top: [N], the rate of the highest level, in [0, 1], never falling.
        position: [N], the mean level, from 0 (lowest level) to 1, never falling.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    queries: int = Field(ge=1)
    levels: dict[str, float]
    safe: tuple[float, float]
    strengths: list[float]
    top: list[float]
    position: list[float]

    @model_validator(mode="after")
    def _is_monotone(self) -> Calibration:
        if not len(self.strengths) == len(self.top) == len(self.position) >= 2:
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
                f"knob '{knob}' has no units yet; measure them with alignvec calibrate, or give a "
                "number"
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
                low, high = self.position[0], self.position[-1]
                return self._where(knob, self.position, low + place * (high - low), wanted)
        raise AlignvecError(
            f"knob '{knob}': '{wanted}' is no strength; a number, a level "
            f"({', '.join(self.levels)}), a share as 80%, or a position as 7/10"
        )

    def _where(self, knob: str, curve: list[float], value: float, wanted: str) -> float:
        """Where a rising curve passes `value`; in the middle of a plateau."""
        if not curve[0] <= value <= curve[-1]:
            raise AlignvecError(
                f"knob '{knob}': {wanted} is not reachable; it goes from {curve[0]:.0%} to "
                f"{curve[-1]:.0%}"
            )
        rising, first = np.unique(curve, return_index=True)
        last = len(curve) - 1 - np.unique(curve[::-1], return_index=True)[1]
        middle = (np.array(self.strengths)[first] + np.array(self.strengths)[last]) / 2
        return float(np.interp(value, rising, middle))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
