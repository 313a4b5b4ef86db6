"""Part 9, what a knob costs the model: KL and perplexity on neutral text against lambda."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from alignvec.evaluate.retention import RetentionProbe
from alignvec.reproduce.item import Item, Work
from alignvec.reproduce.study import Study
from alignvec.reproduce.training import WAYS, trainings, vectors

TITLE = "Abilities"
_PIECES = 13  # rows that are about as long as the neutral text


def items(study: Study) -> Iterator[Item]:
    """All strengths of a knob at once."""
    work = Work(scored=_PIECES * (1 + len(study.scale.strengths)))
    for domain in study.domains:
        for way in WAYS:
            run, shared = partial(_kept, study, way, domain), trainings(study, way, [domain])
            yield Item(f"ability/{domain}/{way}", run, work, shared)


def _kept(study: Study, way: str, domain: str) -> list[dict[str, Any]]:
    probe = RetentionProbe(study.models.live(vectors(study, way, [domain])))
    return [
        {"strength": strength, **asdict(probe({domain: strength}))}
        for strength in study.scale.strengths
    ]
