"""Whether the levels of a knob are where training put them, and are texts there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alignvec.base.seen import count_seen
from alignvec.data import Record
from alignvec.data.line import Places
from alignvec.evaluate.rates import Rates, preference_rates, response_rows
from alignvec.evaluate.text import AnswerProbe, TextQuality, unsound
from alignvec.knobs.calibration import reach
from alignvec.knobs.model import KnobModel
from alignvec.progress import progress


@dataclass(frozen=True)
class LevelCheck:
    """What a knob does where one of its levels is, or at 0.

    Attributes:
        level: None at 0.
        text: greedy and sampled answers.
        references: the level's reference responses to the same queries.
        sound: whether the greedy answers are as sound as the base's own.
        first: the greedy answer to the first query.
        seen: how many of the queries were seen in training; None if that is not known.
    """

    level: str | None
    strength: float
    rates: Rates
    text: Mapping[str, TextQuality]
    references: TextQuality | None
    sound: bool
    first: str
    seen: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_levels(
    model: KnobModel,
    knob: str,
    records: Sequence[Record],
    places: Places,
    answers: int = 8,
    probe: AnswerProbe | None = None,
) -> list[LevelCheck]:
    """Measure a knob at 0 and at the place of each level, the other knobs at 0.

    Args:
        records: queries of the knob's domain, best those that its vector was not trained on.
        answers: queries that are answered, of them.
        probe: that answers them, if there is one.
    """
    levels = list(places)
    rows = response_rows(model.tokenizer, records, levels)
    seen = count_seen([model.vectors[knob].training], [record.prompt for record in records])
    asked = records[:answers]
    probe = probe or AnswerProbe(model, [record.prompt for record in asked])
    base, found = probe({}), []
    with progress("checking", "level", 1 + len(levels)) as bar:
        for level, strength in [(None, 0.0), *places.items()]:
            setting = {knob: strength}
            with model.at(setting):
                rates = preference_rates(model.model, rows, levels)
            text = probe(setting) if strength else base
            references = None
            if level is not None:
                references = probe.quality([record.levels[level] for record in asked])
            found.append(
                LevelCheck(
                    level,
                    strength,
                    rates,
                    text,
                    references,
                    unsound(text["greedy"], base["greedy"], references) is None,
                    probe.answers(setting if strength else {})["greedy"][0],
                    seen,
                )
            )
            bar.update()
    return found


def safe_range(checks: Sequence[LevelCheck]) -> tuple[float, float]:
    """The range about 0 up to the last place on each side before answers are no longer sound, and
    as far beyond it as training drew strengths (`reach`); beyond a place nothing was asked.
    """
    ends = []
    for side in (-1, 1):
        end = 0.0
        for check in sorted(checks, key=lambda one: side * one.strength):
            if side * check.strength > 0:
                if not check.sound:
                    break
                end = check.strength
        ends.append(end)
    return reach(*ends)
