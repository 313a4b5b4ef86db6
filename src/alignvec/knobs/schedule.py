"""Schedules: strengths that change while an answer is written.

`{0: 1.0, 32: 0.2}` turns every knob fully for the first token and fades it to a fifth by the 32nd,
along a straight line; before the first point and after the last the factor stays. What was read
or written under a strength stays in the cache as it was computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from transformers import LogitsProcessor

from alignvec.errors import AlignvecError
from alignvec.knobs.gate import Gate
from alignvec.knobs.setting import parse_setting

Schedule = Mapping[int, float]  # number of the new token, from 0 -> factor on all strengths


def parse_schedule(text: str) -> dict[int, float]:
    """`0=1,32=0.2` as a schedule.

    Raises:
        AlignvecError: it is not of that form.
    """
    points = {}
    for token, factor in parse_setting(text).items():
        if not token.isdecimal() or isinstance(factor, str):
            raise AlignvecError(
                f"'{text}' is no schedule; write TOKEN=FACTOR,..., as in 0=1,32=0.2"
            )
        points[int(token)] = factor
    return check_schedule(points)


def check_schedule(schedule: Schedule) -> dict[int, float]:
    """The same, in the order of its tokens.

    Raises:
        AlignvecError: it is empty, a token is no whole number from 0 on, or a factor is not finite.
    """
    if not isinstance(schedule, Mapping):
        raise AlignvecError("a schedule maps tokens to factors, as in {0: 1.0, 32: 0.0}")
    for token, factor in schedule.items():
        right = isinstance(token, int) and isinstance(factor, int | float)
        if not (right and token >= 0 and math.isfinite(factor)):
            raise AlignvecError(f"schedule: {token!r}={factor!r} is no token with a finite factor")
    if not schedule:
        raise AlignvecError("the schedule is empty; give at least one token, as in 0=1,32=0.2")
    return dict(sorted(schedule.items()))


class ScheduledStrengths(LogitsProcessor):
    """Turns the strengths of a gate along a schedule while transformers generates.

    transformers calls a logits processor once for every new token of the whole batch, which is the
    one place where the number of the token is known whatever the cache and the kind of search.
    """

    def __init__(self, gate: Gate, schedule: Schedule, prompt_length: int) -> None:
        """Turn `gate`, whose strengths are the full ones, to where the schedule starts."""
        self._gate, self._full = gate, gate.strengths
        self._tokens, self._factors = list(schedule), list(schedule.values())
        self._prompt_length = prompt_length
        self._turn(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._turn(input_ids.shape[1] - self._prompt_length + 1)  # the next one
        return scores

    def _turn(self, token: int) -> None:
        if self._full is not None:
            self._gate.set(self._full * float(np.interp(token, self._tokens, self._factors)))
