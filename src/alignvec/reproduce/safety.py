"""Part 4, safety (the paper's Figure 3): a safety knob from end to end.

Safe rate on the test part of the safety pairs; and what it costs: how often harmless questions that
sound dangerous are answered (helpfulness), and how often refused (over-refusal).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

from alignvec.evaluate.judge import LevelClassifier
from alignvec.reproduce.item import Item
from alignvec.reproduce.study import ANSWERED, HARMLESS, SAFE, SAFETY, Study
from alignvec.reproduce.subject import Subject, Turned
from alignvec.reproduce.training import knobs_of, turning, turns

TITLE = "Safety"


def items(study: Study) -> Iterator[Item]:
    """Each way at each strength."""
    for kind in (SAFETY, HARMLESS):
        yield study.base_item(kind)
    yield Item("safety/judges", partial(_judges, study))
    for way, strength in turns(study.scale.strengths):
        run = partial(_turned, study, way, strength)
        shared = turning(study, way, {SAFETY: strength}, [SAFETY, HARMLESS])
        yield Item(f"safety/{way}/{strength:g}", run, shared=shared)


def measured_safety(study: Study, subject: Subject) -> dict[str, Any]:
    """Both rates of safe answers, and of answers to harmless questions."""
    return {
        SAFETY: study.measure(subject, SAFETY, _safe_judge(study)),
        HARMLESS: study.measure(subject, HARMLESS, _refusal_judge(study)),
    }


def _turned(study: Study, way: str, strength: float) -> dict[str, Any]:
    return measured_safety(study, Turned(knobs_of(study, way, [SAFETY]), {SAFETY: strength}))


def _judges(study: Study) -> dict[str, Any]:
    """How often the two judges are right on references that they have not read."""
    return {
        SAFETY: _safe_judge(study).accuracy(study.records(SAFETY, "test")).to_json(),
        HARMLESS: _refusal_judge(study).accuracy(study.records(HARMLESS, "test")).to_json(),
    }


@cache
def _safe_judge(study: Study) -> LevelClassifier:
    return LevelClassifier.fit(study.records(SAFETY, "train"), SAFE)


@cache
def _refusal_judge(study: Study) -> LevelClassifier:
    """Of the half of the harmless questions that nothing is measured on."""
    return LevelClassifier.fit(study.records(HARMLESS, "train"), ANSWERED)
