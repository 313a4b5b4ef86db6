"""Schedules: strengths that change while an answer is written.

`{0: 1.0, 32: 0.2}` turns every knob fully for the first token and fades it to a fifth by the 32nd,
along a straight line; before the first point and after the last the factor stays. What was read
or written under a strength stays in the cache as it was computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignvec.errors import AlignvecError
from alignvec.knobs.setting import parse_setting

if TYPE_CHECKING:
    from alignvec.knobs.gate import Gate

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


def turn_along(gate: Gate, schedule: Schedule, prompt_length: int) -> Any:
    """Start the gate's strengths on a schedule; returns the logits processor that goes on with it.

    transformers calls a logits processor once for every new token of the whole batch, which is the
    one place where the number of the token is known whatever the cache and the kind of search.
    """
    import numpy as np
    from transformers import LogitsProcessor

    full = gate.strengths
    tokens, factors = list(schedule), list(schedule.values())

    def turn(token: int) -> None:
        if full is not None:
            gate.set(full * float(np.interp(token, tokens, factors)))

    class Turn(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            turn(input_ids.shape[1] - prompt_length + 1)  # the next one
            return scores

    turn(0)
    return Turn()
