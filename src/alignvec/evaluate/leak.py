"""Leak: what each knob does to each domain, and to text of none, where its levels are.

The effect of a knob at the place of a level is how much the rate of that level rises there, in its
own domain (what the knob is for) and in every other one (leak). Normalised, leak is the mean rise
elsewhere as a share of the rise at home, falls counting as none: the idea of the value leakage of
NeVA (Yang et al. 2026, arXiv 2602.07356), with preference rates in the place of their control
success ratio and all other domains equally far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alignvec.data import Record
from alignvec.data.line import Places
from alignvec.errors import AlignvecError
from alignvec.evaluate.rates import preference_rates, response_rows
from alignvec.evaluate.retention import RetentionProbe
from alignvec.knobs.domains import domain_of
from alignvec.knobs.model import KnobModel
from alignvec.progress import progress


@dataclass(frozen=True)
class Leak:
    """What one knob does.

    Attributes:
        home: its own domain.
        effect: level -> domain -> rise of that level's rate, in [-1, 1], at the level's place.
        neutral: level -> KL divergence from the base on neutral prose there, nats a token.
    """

    knob: str
    home: str
    effect: dict[str, dict[str, float]]
    neutral: dict[str, float]

    def normalised(self, level: str) -> float | None:
        """Mean rise elsewhere over the rise at home; None if there is none at home, or no else."""
        rises = self.effect[level]
        at_home = rises.get(self.home, 0.0)
        elsewhere = [max(0.0, rise) for domain, rise in rises.items() if domain != self.home]
        if at_home <= 0 or not elsewhere:
            return None
        return sum(elsewhere) / len(elsewhere) / at_home

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "normalised": {level: self.normalised(level) for level in self.effect}
        }

    def for_calibration(self) -> dict[str, dict[str, float]]:
        """As a vector keeps it."""
        return {
            level: {**{d: round(rise, 4) for d, rise in rises.items()},
                    "neutral": round(self.neutral[level], 4)}
            for level, rises in self.effect.items()
        }  # fmt: skip


def measure_leak(
    model: KnobModel, places: Mapping[str, Places], records: Sequence[Record]
) -> list[Leak]:
    """Turn each knob alone to each of its levels and score every domain.

    Args:
        places: knob -> where its levels are; the same levels for all.
        records: queries of all domains that no vector was trained on.

    Raises:
        AlignvecError: there are no records of a knob's own domain.
    """
    domains = sorted({record.domain for record in records})
    levels = list(next(iter(places.values())))
    rows = {
        domain: response_rows(model.tokenizer, [r for r in records if r.domain == domain], levels)
        for domain in domains
    }
    probe, found = RetentionProbe(model), []
    with progress("measuring leak", "setting", 1 + len(places) * len(levels)) as bar:

        def rates(setting: Mapping[str, float]) -> dict[str, dict[str, float]]:
            with model.at(setting):
                each = {d: preference_rates(model.model, some, levels) for d, some in rows.items()}
            bar.update()
            return {domain: one.rate for domain, one in each.items()}

        base = rates({})
        for knob, at in places.items():
            home = domain_of(knob, model.vectors[knob])
            if home not in domains:
                raise AlignvecError(
                    f"knob '{knob}': the data has no queries of its domain '{home}'"
                )
            effect, neutral = {}, {}
            for level, strength in at.items():
                turned = rates({knob: strength})
                effect[level] = {d: turned[d][level] - base[d][level] for d in domains}
                neutral[level] = probe.kl({knob: strength})
            found.append(Leak(knob, home, effect, neutral))
    return found
