"""Part 2, over-generalisation: what each knob does to the other domains, and to neutral text.

Each knob alone at the place of each level, every domain measured, by likelihood and by what is
written. Of the likelihoods the leak matrix, with the normalised value leakage of NeVA beside it
(`evaluate.leak`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from alignvec.evaluate.leak import Leak
from alignvec.evaluate.retention import RetentionProbe
from alignvec.reproduce.item import Item, Work
from alignvec.reproduce.study import Study
from alignvec.reproduce.subject import Turned
from alignvec.reproduce.training import WAYS, knobs_of

TITLE = "Over-generalisation"


def items(study: Study) -> Iterator[Item]:
    """A setting at a time, then the matrix of a way."""
    work = study.work_of(study.domains)
    for way in WAYS:
        yield from _settings(study, way, work)
        yield Item(f"leak/{way}", partial(_matrix, study, way, work), Work(scored=40))


def _settings(study: Study, way: str, work: Work) -> Iterator[Item]:
    for knob in study.domains:
        for level in study.levels:
            run = partial(_everywhere, study, way, {knob: study.places[level]})
            yield Item(f"leak-written/{way}/{knob}/{level}", run, work)


def _everywhere(study: Study, way: str, setting: dict[str, float]) -> dict[str, Any]:
    """Domain -> what a setting does there."""
    subject = Turned(knobs_of(study, way), setting)
    return {domain: study.measure(subject, domain) for domain in study.domains}


def _matrix(study: Study, way: str, work: Work) -> list[dict[str, Any]]:
    turned = {item.name: study.once(item) for item in _settings(study, way, work)}
    base = _everywhere(study, way, {})
    probe = RetentionProbe(knobs_of(study, way))

    def rises(knob: str, level: str) -> dict[str, float]:
        found = turned[f"leak-written/{way}/{knob}/{level}"]
        return {
            domain: one["rates"]["rate"][level] - base[domain]["rates"]["rate"][level]
            for domain, one in found.items()
        }

    return [
        Leak(
            knob,
            knob,
            {level: rises(knob, level) for level in study.levels},
            {level: probe({knob: at}).kl for level, at in study.places.items()},
        ).to_json()
        for knob in study.domains
    ]
