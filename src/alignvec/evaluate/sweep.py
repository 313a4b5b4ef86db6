"""A knob turned step by step, the preference rates at each step (the paper's Figure 2)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from alignvec.data import Record
from alignvec.errors import AlignvecError, check_known
from alignvec.evaluate.rates import Rates, preference_rates, response_rows
from alignvec.files import read_json, write_json
from alignvec.knobs.model import KnobModel
from alignvec.progress import progress


@dataclass
class Sweep:
    """Rates over the strengths of one knob, in the order of strength."""

    knob: str
    levels: list[str]
    strengths: list[float] = field(default_factory=list)
    rates: list[Rates] = field(default_factory=list)

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
            "points": [
                {"strength": strength, **asdict(rates)}
                for strength, rates in zip(self.strengths, self.rates, strict=True)
            ],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Sweep:
        points = [dict(point) for point in value["points"]]
        strengths = [point.pop("strength") for point in points]
        rates = [Rates(**point) for point in points]
        return cls(value["knob"], value["levels"], strengths, rates)


def sweep(
    model: KnobModel,
    knob: str,
    strengths: Sequence[float],
    records: Sequence[Record],
    levels: Sequence[str],
    save_to: Path | None = None,
) -> Sweep:
    """Measure the preference rates at each strength; the other knobs stay where they are.

    Args:
        save_to: a JSON file, written after every point. If it already holds points of the same
            model, vector, records and levels, those are taken from it: a killed sweep goes on.

    Raises:
        AlignvecError: an unknown knob.
    """
    check_known("knob", knob, model.vectors)
    setting = model.setting
    identity = _identity(model, knob, records, levels)
    known = _known_points(save_to, identity)
    done = Sweep(knob, list(levels))
    rows = response_rows(model.tokenizer, records, levels)
    with progress("sweeping", "query", len(rows) * len(set(strengths))) as bar:
        for strength in sorted(set(strengths)):
            if strength in known:
                rates = known[strength]
                bar.update(len(rows))
            else:
                with model.at({**setting, knob: strength}):
                    rates = preference_rates(model.model, rows, levels)
            done.strengths.append(strength)
            done.rates.append(rates)
            if save_to is not None:
                write_json(save_to, {"identity": identity, "setting": setting, **done.to_json()})
    return done


def _identity(model: KnobModel, knob: str, records: Sequence[Record], levels: Sequence[str]) -> str:
    """A hash of everything that a point depends on but its strength."""
    parts = [
        {name: vector.fingerprint() for name, vector in model.vectors.items()},
        {name: vector.base.fingerprint for name, vector in model.vectors.items()},
        {name: strength for name, strength in model.setting.items() if name != knob},
        knob,
        str(model.model.dtype),
        [[record.query, *(record.levels[level] for level in levels)] for record in records],
        list(levels),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _known_points(file: Path | None, identity: str) -> dict[float, Rates]:
    if file is None or not file.exists():
        return {}
    try:
        content = read_json(file)
        if content["identity"] != identity:
            return {}
        earlier = Sweep.from_json(content)
    except (AlignvecError, KeyError, TypeError):
        return {}  # not ours, or of another version: measured anew
    return dict(zip(earlier.strengths, earlier.rates, strict=True))
