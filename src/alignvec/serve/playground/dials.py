"""The knobs as the page shows them: how far a slider goes, and the settings in links."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode

from pydantic import BaseModel, ConfigDict, ValidationError

from alignvec.errors import AlignvecError, check_known
from alignvec.knobs.calibration import Calibration
from alignvec.knobs.setting import parse_strength, parse_written

_BEYOND = 0.15  # of the span of what is known, that a slider goes on at both ends
_UNKNOWN = (-2.0, 2.0)  # the reach of a knob that nothing is known of
_LONGEST = 4000  # characters of a link's query

Side = Literal["left", "right"]


class Knob(BaseModel):
    """A knob and its slider.

    Attributes:
        levels: level -> the strength where it lies.
        safe: lowest and highest strength at which texts are known to be sound.
        low: where the slider begins.
        high: where it ends.
        step: by which it goes; both ends, and so 0, are whole steps.
    """

    name: str
    levels: dict[str, float] = {}
    safe: tuple[float, float] | None = None
    low: float = _UNKNOWN[0]
    high: float = _UNKNOWN[1]
    step: float = 0.05


class Dials(BaseModel):
    """Both columns' knobs, as they are set.

    Attributes:
        model: whose knobs they are, by its name at the server.
        side: whose knobs the sliders turn now.
    """

    model: str = ""
    knobs: list[Knob] = []
    left: dict[str, float] = {}
    right: dict[str, float] = {}
    side: Side = "left"

    def setting(self, side: Side) -> dict[str, float]:
        """Every knob's strength in a column."""
        chosen = getattr(self, side)
        return {knob.name: chosen.get(knob.name, 0.0) for knob in self.knobs}

    def knob(self, name: str) -> Knob | None:
        """A knob by its name."""
        return next((knob for knob in self.knobs if knob.name == name), None)


class Told(BaseModel):
    """What `/v1/knobs` tells of a knob, as far as the page needs it."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str
    levels: dict[str, float] = {}
    safe: tuple[float, float] | None = None
    default: float = 0.0
    calibration: dict[str, Any] | None = None

    def knob(self) -> Knob:
        """With a slider that reaches a little beyond what is known of it."""
        known = [0.0, *self.levels.values(), *(self.safe or ())]
        low, high = min(known), max(known)
        if low == high:
            low, high = _UNKNOWN
        span = high - low
        # 20 to 200 steps, as fine as the span is short: some knobs are through at 0.02.
        step = 10.0 ** math.floor(math.log10(span)) / 20
        low, high = (
            round(end / step) * step for end in (low - _BEYOND * span, high + _BEYOND * span)
        )
        return Knob(
            name=self.name, levels=self.levels, safe=self.safe, low=low, high=high, step=step
        )

    def strength(self, wanted: float | str) -> float:
        """The number that a level, a share or a position stands for.

        Raises:
            AlignvecError: there is none.
        """
        wanted = parse_strength(wanted) if isinstance(wanted, str) else wanted
        if not isinstance(wanted, str):
            if not math.isfinite(wanted):
                raise AlignvecError(f"knob '{self.name}': {wanted} is no finite number")
            return wanted
        curves = self.calibration or {}
        stored = {"levels": self.levels, "safe": self.safe or _UNKNOWN} | {
            name: curves[name] for name in ("strengths", "top", "position") if name in curves
        }
        return Calibration.read(self.name, stored if self.levels else None).strength(
            self.name, wanted
        )


def read_told(knobs: list[dict[str, Any]]) -> list[Told]:
    """Raises: AlignvecError: this is not what `/v1/knobs` tells."""
    try:
        return [Told.model_validate(knob) for knob in knobs]
    except ValidationError as error:
        raise AlignvecError("The server tells its knobs in a way that is not known.") from error


def in_numbers(setting: Mapping[str, float | str], told: Sequence[Told]) -> dict[str, float]:
    """A setting with every knob in it, the base where it says nothing.

    Raises:
        AlignvecError: an unknown knob, or a strength that is none.
    """
    by_name = {knob.name: knob for knob in told}
    numbers = dict.fromkeys(by_name, 0.0)
    for name, wanted in setting.items():
        check_known("knob", name, sorted(by_name))
        numbers[name] = by_name[name].strength(wanted)
    return numbers


def read_link(query: str) -> tuple[str | None, dict[str, float | str] | None]:
    """The profile and the setting that a link names: `?profile=...` or `?knobs=a=1,b=expert`.

    Raises:
        AlignvecError: what should be a setting is none, or it is no link of ours by its length.
    """
    if len(query) > _LONGEST:
        raise AlignvecError("it is too long")
    fields = parse_qs(query.lstrip("?"))
    profile = fields.get("profile", [None])[0]
    written = fields.get("knobs", [""])[0]
    return profile, parse_written(written) if written else None


def link(setting: Mapping[str, float]) -> str:
    """The query of a link to a setting."""
    pairs = ",".join(f"{knob}={strength:g}" for knob, strength in setting.items() if strength)
    return "?" + urlencode({"knobs": pairs}, safe="=,") if pairs else "?"


def written(setting: Mapping[str, float]) -> str:
    """A setting as the page says it, without the knobs that are at the base."""
    turned = [f"{knob} {strength:g}" for knob, strength in setting.items() if strength]
    return " · ".join(turned).replace("-", "\N{MINUS SIGN}") or "base"
