"""Settings: knob -> strength. Parsed and checked here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from difflib import get_close_matches

from alignvec.errors import AlignvecError

Setting = dict[str, float]


def parse_setting(text: str) -> Setting:
    """`medical=0.7,legal=-0.3` as a mapping. Which knobs exist is for `check_setting`.

    Raises:
        AlignvecError: it is not of that form, or names a knob twice.
    """
    setting: Setting = {}
    for part in text.split(","):
        knob, equals, strength = (piece.strip() for piece in part.partition("="))
        if not (knob and equals and strength):
            raise AlignvecError(
                f"'{part.strip()}' is no setting; write KNOB=STRENGTH, as in medical=0.7"
            )
        if knob in setting:
            raise AlignvecError(f"knob '{knob}' is set twice in '{text}'")
        try:
            setting[knob] = float(strength)
        except ValueError:
            raise AlignvecError(f"knob '{knob}': '{strength}' is not a number") from None
        _check_finite(knob, setting[knob])
    return setting


def check_setting(setting: Mapping[str, float], knobs: Collection[str]) -> Setting:
    """The same setting with a strength for every knob, 0 where none is given.

    Raises:
        AlignvecError: an unknown knob, or a strength that is not a finite number.
    """
    for knob, strength in setting.items():
        if knob not in knobs:
            close = get_close_matches(str(knob), knobs, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(knobs))}"
            raise AlignvecError(f"unknown knob '{knob}'; {hint}")
        if isinstance(strength, bool) or not isinstance(strength, int | float):
            raise AlignvecError(f"knob '{knob}': {strength!r} is not a number")
        _check_finite(knob, strength)
    return {knob: float(setting.get(knob, 0.0)) for knob in knobs}


def parse_sweep(text: str) -> tuple[str, list[float]]:
    """`medical=-2:2:0.25` as the knob and its strengths, both ends included.

    Raises:
        AlignvecError: it is not of that form, the step does not lead from start to stop, or there
            would be more than 1000 points.
    """
    knob, equals, span = (piece.strip() for piece in text.partition("="))
    try:
        start, stop, step = (float(number) for number in span.split(":"))
    except ValueError:
        start = stop = step = math.nan
    if not (knob and equals) or not all(map(math.isfinite, (start, stop, step))):
        raise AlignvecError(
            f"'{text}' is no sweep; write KNOB=START:STOP:STEP, as in medical=-2:2:0.25"
        )
    if step == 0 or (stop - start) / step < 0:
        raise AlignvecError(
            f"'{text}': a step of {step:g} does not lead from {start:g} to {stop:g}"
        )
    count = math.floor((stop - start) / step + 1e-9) + 1
    if count > 1000:
        raise AlignvecError(f"'{text}' has {count} points; at most 1000")
    # + 0.0 turns a negative zero into zero.
    return knob, [round(start + index * step, 10) + 0.0 for index in range(count)]


def _check_finite(knob: str, strength: float) -> None:
    if not math.isfinite(strength):
        raise AlignvecError(f"knob '{knob}': {strength} is not a finite number")
