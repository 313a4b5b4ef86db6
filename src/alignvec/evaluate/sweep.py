"""A knob turned step by step: at each the preference rates (the paper's Figure 2) and the text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from alignvec.base.seen import count_seen
from alignvec.data import Record
from alignvec.errors import AlignvecError, check_known
from alignvec.evaluate.measurable import Measurable
from alignvec.evaluate.rates import Rates, rates_at, response_rows
from alignvec.evaluate.text import AnswerProbe, TextQuality, qualities_json, unsound
from alignvec.files import check_free, hash_of, read_json, work_folder, write_json, write_text
from alignvec.progress import progress

_POINTS = "points.json"


@dataclass
class Sweep:
    """Rates over the strengths of one knob, in the order of strength.

    Attributes:
        text: what the answers at each strength are like, greedy and sampled; None if not asked for.
        base: the same with the knob at 0.
        references: level -> what its reference responses are like.
        seen: how many of the queries were seen in training; None if that is not known.
    """

    knob: str
    levels: list[str]
    strengths: list[float] = field(default_factory=list)
    rates: list[Rates] = field(default_factory=list)
    text: list[dict[str, TextQuality] | None] = field(default_factory=list)
    base: dict[str, TextQuality] | None = None
    references: dict[str, TextQuality] = field(default_factory=dict)
    seen: int | None = None

    def __post_init__(self) -> None:
        self.text = self.text or [None] * len(self.strengths)

    def unsound(self, index: int) -> str | None:
        """What makes the greedy answers at a strength less sound than the base's, if anything."""
        found = self.text[index]
        if found is None or self.base is None:
            return None
        level = self.rates[index].top[0]
        return unsound(found["greedy"], self.base["greedy"], self.references.get(level))

    def best(self, level: str) -> tuple[float, float]:
        """(strength, rate) where a level's rate is highest, the smallest turn among equals."""
        points = zip(self.strengths, self.rates, strict=True)
        strength, rates = max(points, key=lambda point: (point[1].rate[level], -abs(point[0])))
        return strength, rates.rate[level]

    def spearman(self, level: str) -> float:
        """Rank correlation of strength and rate, ties at their mean rank; NaN if constant.

        1 means that the rate rises with every step; plateaus at 0 or 1 lower it.
        """
        rate = np.array([rates.rate[level] for rates in self.rates])
        if len(set(rate)) < 2:
            return math.nan
        ranks = [[(rate < r).sum() + ((rate == r).sum() - 1) / 2 for r in rate], self.strengths]
        return float(np.corrcoef(ranks[0], np.argsort(np.argsort(ranks[1])))[0, 1])

    def largest_fall(self, level: str) -> float:
        """The most that a level's rate drops from one step to a later one; 0 if it never does."""
        highest, fall = 0.0, 0.0
        for rates in self.rates:
            highest = max(highest, rates.rate[level])
            fall = max(fall, highest - rates.rate[level])
        return fall

    def to_json(self) -> dict[str, Any]:
        return {
            "knob": self.knob,
            "levels": self.levels,
            "best": {
                level: dict(zip(("strength", "rate"), self.best(level), strict=True))
                for level in self.levels
            },
            "spearman": {
                level: None if math.isnan(value) else round(value, 4)
                for level in self.levels
                for value in [self.spearman(level)]
            },
            "base": self.base and qualities_json(self.base),
            "references": qualities_json(self.references),
            "seen_in_training": self.seen,
            "points": [
                {
                    "strength": strength,
                    **asdict(rates),
                    "text": text and qualities_json(text),
                    "sound": None if text is None else self.unsound(index) is None,
                }
                for index, (strength, rates, text) in enumerate(
                    zip(self.strengths, self.rates, self.text, strict=True)
                )
            ],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Sweep:
        points = [dict(point) for point in value["points"]]
        strengths = [point.pop("strength") for point in points]
        for point in points:
            point.pop("sound", None)  # follows from the rest
        text = [_from_json(point.pop("text", None)) for point in points]
        rates = [Rates(**point) for point in points]
        base = _from_json(value.get("base"))
        references = _from_json(value.get("references")) or {}
        seen = value.get("seen_in_training")
        return cls(value["knob"], value["levels"], strengths, rates, text, base, references, seen)


def sweep(
    model: Measurable,
    knob: str,
    strengths: Sequence[float],
    records: Sequence[Record],
    levels: Sequence[str],
    save_to: Path | None = None,
    probe: AnswerProbe | None = None,
) -> Sweep:
    """Measure the preference rates at each strength; the other knobs stay where they are.

    Args:
        probe: of the first records' queries: the answers are measured, too.
        save_to: a JSON file. Every point is kept in a hidden folder beside it until it is written.
            Points of the same model, vectors, records and levels that either holds are taken from
            there: a killed sweep goes on.

    Raises:
        AlignvecError: an unknown knob, or `save_to` is another process's or somebody else's.
    """
    check_known("knob", knob, model.vectors)
    if save_to is None:
        return _sweep(model, knob, strengths, records, levels, [], probe)
    check_free(save_to, overwrite=True)
    with work_folder(save_to, worth=_POINTS) as work:
        files = [work / _POINTS, save_to]
        found = _sweep(model, knob, strengths, records, levels, files, probe)
        if found.strengths:
            write_text(save_to, files[0].read_text("utf-8"), overwrite=True)
    return found


def _sweep(
    model: Measurable,
    knob: str,
    strengths: Sequence[float],
    records: Sequence[Record],
    levels: Sequence[str],
    files: Sequence[Path],
    probe: AnswerProbe | None,
) -> Sweep:
    """Args: files: that may hold points; each new one is written to the first."""
    setting = model.setting
    identity = _identity(model, knob, records, levels, probe)
    known = {at: point for file in files for at, point in _known_points(file, identity).items()}
    trainings = [vector.training for vector in model.vectors.values()]
    seen = count_seen(trainings, [record.prompt for record in records])
    done = Sweep(knob, list(levels), seen=seen)
    if probe is not None:
        asked = records[: len(probe.queries)]
        done.base = probe({**setting, knob: 0.0})
        done.references = {
            level: probe.quality([record.levels[level] for record in asked]) for level in levels
        }
    rows = response_rows(model.tokenizer, records, levels)
    with progress("sweeping", "query", len(rows) * len(set(strengths))) as bar:
        for strength in sorted(set(strengths)):
            turned = {**setting, knob: strength}
            if strength in known:
                rates, text = known[strength]
                bar.update(len(rows))
            else:
                rates = rates_at(model, turned, rows, levels)
                text = probe(turned) if probe else None
            done.strengths.append(strength)
            done.rates.append(rates)
            done.text.append(text)
            if files:
                content = {"identity": identity, "setting": setting, **done.to_json()}
                write_json(files[0], content)
    return done


def _from_json(value: Mapping[str, Any] | None) -> dict[str, TextQuality] | None:
    return None if value is None else {name: TextQuality(**one) for name, one in value.items()}


def _identity(
    model: Measurable,
    knob: str,
    records: Sequence[Record],
    levels: Sequence[str],
    probe: AnswerProbe | None,
) -> str:
    """A hash of everything that a point depends on but its strength."""
    return hash_of(
        model.state,
        model.mode,
        {name: strength for name, strength in model.setting.items() if name != knob},
        knob,
        [[record.prompt, *(record.levels[level] for level in levels)] for record in records],
        list(levels),
        probe and probe.identity,
    )


def _known_points(
    file: Path, identity: str
) -> dict[float, tuple[Rates, dict[str, TextQuality] | None]]:
    if not file.exists():
        return {}
    try:
        content = read_json(file)
        if content["identity"] != identity:
            return {}
        earlier = Sweep.from_json(content)
    except (AlignvecError, KeyError, TypeError):
        return {}  # not ours, or of another version: measured anew
    points = zip(earlier.rates, earlier.text, strict=True)
    return dict(zip(earlier.strengths, points, strict=True))
