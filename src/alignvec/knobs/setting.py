"""Settings: knob -> strength. Parsed and checked here and nowhere else.

A strength is a number, or what people call it: `expert`, `80%`, `7/10` (calibration.py).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import SupportsFloat

from alignvec.errors import AlignvecError, check_known
from alignvec.files import read_object
from alignvec.knobs.calibration import Calibration
from alignvec.vector import AlignmentVector

logger = logging.getLogger(__name__)

_LARGEST = 3.4e38  # in float32
Setting = dict[str, float]
SettingLike = Mapping[str, float | str]  # a setting, perhaps in human units


def parse_setting(text: str) -> dict[str, float | str]:
    """`medical=0.7,legal=expert` as a mapping. What it means is for `check_setting`.

    `@setting.json` reads one that `alignvec search` wrote, or a plain JSON object.

    Raises:
        AlignvecError: it is not of that form, or names a knob twice.
    """
    if text.startswith("@"):
        return _read_setting(Path(text[1:]))
    return parse_written(text)


def parse_written(text: str) -> dict[str, float | str]:
    """The same of a setting that is written out: nothing in it is the name of a file.

    Raises:
        AlignvecError: see `parse_setting`.
    """
    pairs = parse_pairs(text, "setting", "KNOB=STRENGTH, as in medical=0.7")
    return {knob: parse_strength(strength) for knob, strength in pairs.items()}


def parse_strength(text: str) -> float | str:
    """A number as one; what else it may be is for a knob's calibration to say."""
    try:
        return float(text)
    except ValueError:
        return text


def parse_pairs(text: str, what: str, form: str) -> dict[str, str]:
    """`a=b,c=d` as a mapping.

    Raises:
        AlignvecError: it is not of that form, or names something twice.
    """
    pairs: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise AlignvecError(f"'{part.strip()}' is no {what}; write {form}")
        if name in pairs:
            raise AlignvecError(f"'{name}' is named twice in '{text}'")
        pairs[name] = value
    return pairs


def _read_setting(path: Path) -> dict[str, float | str]:
    content = read_object(path)
    setting: object = content
    found = content.get("found")  # by a search
    if isinstance(found, list):
        if len(found) != 1:
            raise AlignvecError(
                f"{path} holds {len(found)} settings; search with one --target for a file of one"
            )
        setting = found[0].get("setting") if isinstance(found[0], dict) else None
    if not isinstance(setting, dict) or not all(map(_is_strength, setting.values())):
        raise AlignvecError(f"{path} holds no setting; write {{KNOB: STRENGTH}}, as JSON")
    return setting


def _is_strength(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def check_setting(
    setting: SettingLike, vectors: Mapping[str, AlignmentVector], warn: bool = True
) -> Setting:
    """The same setting in numbers, with a strength for every knob, 0 where none is given.

    Args:
        warn: of a strength beyond the safe range of a calibrated knob.

    Raises:
        AlignvecError: an unknown knob, or a strength that is no finite number and, by the
            knob's calibration, nothing else either.
    """
    checked = dict.fromkeys(vectors, 0.0)
    for knob, strength in setting.items():
        check_known("knob", knob, sorted(vectors))
        stored = vectors[knob].calibration
        measured = None
        if isinstance(strength, str) or (warn and stored is not None):
            measured = Calibration.read(knob, stored)
            if isinstance(strength, str):
                strength = measured.strength(knob, strength)
        if isinstance(strength, bool) or not hasattr(strength, "__float__"):
            raise AlignvecError(f"knob '{knob}': {strength!r} is not a number")
        checked[knob] = strength = _finite(knob, strength)
        if warn and measured and strength:
            low, high = measured.safe
            if not low <= strength <= high:
                _warn_beyond(knob, strength, low, high)
    return checked


def check_settings(
    knobs: Sequence[SettingLike],
    count: int,
    vectors: Mapping[str, AlignmentVector],
    warn: bool = True,
) -> list[Setting]:
    """The settings of a batch of `count`, each as `check_setting` gives it."""
    if isinstance(knobs, Mapping) or not all(isinstance(one, Mapping) for one in knobs):
        raise AlignvecError("knobs is a list with a setting for each conversation")
    if len(knobs) != count:
        raise AlignvecError(f"{len(knobs)} settings for {count} conversations")
    return [check_setting(setting, vectors, warn) for setting in knobs]


@lru_cache(maxsize=1024)  # once: a sweep or a server comes by the same strength many times
def _warn_beyond(knob: str, strength: float, low: float, high: float) -> None:
    logger.warning("knob '%s': %g is beyond its safe range, %g to %g", knob, strength, low, high)


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
    steps = (stop - start) / step if step else -1.0
    if steps < 0:
        raise AlignvecError(
            f"'{text}': a step of {step:g} does not lead from {start:g} to {stop:g}"
        )
    if not steps < 1000:
        raise AlignvecError(f"'{text}' has some {steps:.3g} points; at most 1000")
    count = math.floor(steps + 1e-9) + 1
    # + 0.0 turns a negative zero into zero.
    return knob, [round(start + index * step, 10) + 0.0 for index in range(count)]


def parse_limits(text: str) -> tuple[str, tuple[float, float]]:
    """`medical=-1:2` as the knob and its lowest and highest strength.

    Raises:
        AlignvecError: it is not of that form, or nothing lies between the two.
    """
    knob, equals, span = (piece.strip() for piece in text.partition("="))
    try:
        low, high = (float(number) for number in span.split(":"))
    except ValueError:
        low = high = math.nan
    if not (knob and equals) or not math.isfinite(low) or not math.isfinite(high) or low >= high:
        raise AlignvecError(f"'{text}' are no limits; write KNOB=LOW:HIGH, as in medical=-1:2")
    return knob, (low, high)


def _finite(knob: str, strength: SupportsFloat) -> float:
    """As a number that float32 can hold."""
    try:
        number = float(strength)
    except OverflowError:
        number = math.inf
    if not abs(number) <= _LARGEST:
        raise AlignvecError(f"knob '{knob}': {number} is not a finite number in float32")
    return number
