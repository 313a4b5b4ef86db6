"""A study's folder, read back: what it is of, and its results by name, as many as there are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignvec.errors import AlignvecError, printable
from alignvec.evaluate.intervals import wilson_interval
from alignvec.files import read_object
from alignvec.report.study.document import Cell, Column, Share
from alignvec.reproduce.reading import PREFIX as READING
from alignvec.reproduce.run import ITEMS
from alignvec.reproduce.study import ANSWERED, FAILED
from alignvec.reproduce.study import SAFE as SAFETY_LEVELS
from alignvec.reproduce.training import ALONG, ONE_SIDED
from alignvec.search.solution import CLEAR

WAYS = {ALONG: "ours, along the knob", ONE_SIDED: "the paper's, one end"}
UNSAFE, SAFE = SAFETY_LEVELS
REFUSAL, HELPFUL = ANSWERED
MEASURES = ("likelihood", "judged")

Measured = (
    Any  # what `reproduce.subject.measured` gives, as JSON; anything where a file is not ours
)


class Results:
    """What a study found.

    Attributes:
        told: `study.json`.
        model: how the report calls it.
        levels: from low to high.
        found: name -> result, of all that have one.
        failed: name -> why it has none; of a result in parts, the part with it.
        items: part -> the names of the results that it is to have, as far as the study says them.
    """

    def __init__(self, folder: Path) -> None:
        """Read a study.

        Raises:
            AlignvecError: it is no study's folder, or a file of it is not readable.
        """
        if not (folder / "study.json").is_file():
            raise AlignvecError(
                f"{folder} holds no study (study.json is missing); name the folder that `alignvec "
                "reproduce` wrote"
            )
        self.folder, self.told = folder, read_object(folder / "study.json")
        self.model = printable(str(self.told.get("base", folder.name)))
        self.levels = self._names("levels")
        self.domains = self._names("domains")
        note = folder / ITEMS
        self.items: dict[str, list[str]] = read_object(note) if note.is_file() else {}
        results = folder / "results"
        every = {
            file.relative_to(results).with_suffix("").as_posix(): read_object(file).get("result")
            for file in sorted(results.rglob("*.json"))
            if not file.name.startswith(".")
        }
        self.failed = {name: why for one in every for name, why in _failed(one, every[one])}
        self.found: dict[str, Any] = {
            name: one
            for name, one in every.items()
            if name not in self.failed and not name.startswith(READING)
        }
        for name, one in every.items():
            if name.startswith(READING) and isinstance(one, Mapping):
                _add_reading(self.found.get(name.removeprefix(READING)), one)

    def _names(self, key: str) -> list[str]:
        found = self.told.get(key)
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise AlignvecError(f"{self.folder / 'study.json'}: field '{key}': no list of names")
        return list(found)

    @property
    def top(self) -> str:
        """The highest level: where a knob leads."""
        return self.levels[-1] if self.levels else ""

    def under(self, prefix: str) -> dict[str, Any]:
        """The rest of the name -> result, of all whose names begin so."""
        return {
            name.removeprefix(prefix): found
            for name, found in self.found.items()
            if name.startswith(prefix)
        }

    def has_failed(self, prefix: str) -> bool:
        """Whether one of all whose names begin so has no result, and the study knows why."""
        return any(name.startswith(prefix) for name in self.failed)

    def turned(self, prefix: str, base: str = "") -> list[tuple[float, Any]]:
        """Strength -> result, from the lowest on; names that end in no strength are left out.

        Args:
            base: name of what stands at 0, if nothing else does.
        """
        found = {
            strength: result
            for rest, result in self.under(prefix).items()
            if (strength := _strength(rest)) is not None
        }
        if base in self.found:
            found.setdefault(0.0, self.found[base])
        return sorted(found.items())

    def knob(self, domain: str, way: str) -> list[tuple[float, Measured]]:
        """A domain's knob from end to end; at 0 it is the base, whichever way it was trained."""
        return self.turned(f"single/{domain}/{way}/", f"single/{domain}/{ALONG}/0")

    def safety(self, way: str) -> list[tuple[float, Any]]:
        """Likewise the safety knob."""
        return self.turned(f"safety/{way}/", f"safety/{ALONG}/0")

    def moved(self, domain: str, way: str, stage: str) -> list[tuple[float, Any]]:
        """A domain's knob on a stage of the base."""
        return self.turned(f"transfer/{domain}/{way}/{stage}/")

    def prompted(self, domain: str) -> Iterator[tuple[str, str, Measured]]:
        """Kind of prompt, level that it asks for, and what it does."""
        for kind in ("system", "few-shot"):
            for level in self.levels:
                if (found := self.found.get(f"single/{domain}/{kind}/{level}")) is not None:
                    yield kind, level, found


def _failed(name: str, found: Any) -> Iterator[tuple[str, str]]:
    if isinstance(found, Mapping):
        if isinstance(why := found.get(FAILED), str):
            yield name, why
        for key, one in found.items():
            yield from _failed(f"{name}: {key}", one)


def _add_reading(found: Any, read: Mapping[str, Any]) -> None:
    """Where a text's likelihood is kept in a result of its own, put it to the text."""
    for place, likelihood in read.items():
        text = at(found, *filter(None, place.split("/")), "text")
        if isinstance(text, dict):
            text["likelihood"] = likelihood


def _strength(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def at(value: Any, *keys: str) -> Any:
    """What lies below some keys; None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def real(value: Any) -> float | None:
    """A finite number, or None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def rate(found: Measured, measure: str, level: str) -> Share | None:
    """A level's rate by one of `MEASURES`: the judged one counts no broken text."""
    key = "rates" if measure == "likelihood" else "judged"
    return share(at(found, key, "rate", level), at(found, key, "interval", level))


def share(value: Any, interval: Any) -> Share | None:
    """A share with its interval, if both are there."""
    if (middle := real(value)) is None or not isinstance(interval, Sequence) or len(interval) != 2:
        return None
    low, high = map(real, interval)
    return None if low is None or high is None else Share(middle, low, high)


def counted(some: int, of: int) -> Share:
    """A share of so many."""
    return Share(some / of, *wilson_interval(some / of, of))


def difference(after: Share, before: Share) -> Share:
    """How far a share rose, with the interval of a difference of two shares (Newcombe 1998)."""
    rise = after.value - before.value
    down = math.hypot(after.value - after.low, before.high - before.value)
    up = math.hypot(after.high - after.value, before.value - before.low)
    return Share(rise, max(-1.0, rise - down), min(1.0, rise + up))


def rates(found: Measured, levels: Sequence[str]) -> dict[Column, Cell]:
    """Both rates of every level as cells of a row."""
    return {(by, level): rate(found, by, level) for by in MEASURES for level in levels}


def text(found: Measured) -> dict[Column, Cell]:
    """What the judged texts are like, as cells that stand beside their rates."""
    likelihood = real(at(found, "text", "likelihood"))
    told = {
        "broken": real(at(found, "judged", "broken")),
        "repeated": real(at(found, "text", "repeated")),
        "words": real(at(found, "text", "words")),
        "finished": real(at(found, "text", "finished")),
        "perplexity": None if likelihood is None else math.exp(min(700.0, -likelihood)),
    }
    return {("its texts", name): value for name, value in told.items()}


def reached(found: Any, target: Mapping[str, str], measure: str) -> tuple[bool, bool] | None:
    """Whether in every domain the wanted level has the highest rate, and whether firmly.

    Args:
        found: domain -> what was measured.

    Returns:
        None if a domain was not measured so.
    """
    highest, least = True, 1.0
    for domain, level in target.items():
        key = "rates" if measure == "likelihood" else "judged"
        every = at(found, domain, key, "rate")
        if not isinstance(every, Mapping) or real(every.get(level)) is None:
            return None
        others = [real(value) or 0.0 for name, value in every.items() if name != level]
        highest &= every[level] > max(others, default=-1.0)
        least = min(least, every[level])
    return highest, highest and least >= CLEAR
