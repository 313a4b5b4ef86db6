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
from alignvec.reproduce.study import FAILED, Study
from alignvec.reproduce.subject import Turned
from alignvec.reproduce.training import WAYS, knobs_of, turning, vectors

TITLE = "Over-generalisation"


def items(study: Study) -> Iterator[Item]:
    """A setting at a time, then the matrix of a way."""
    for way in WAYS:
        yield from _settings(study, way)
        shared = turning(study, way, {}, study.domains)
        yield Item(f"leak/{way}", partial(_matrix, study, way), Work(scored=40), shared)


def _settings(study: Study, way: str) -> Iterator[Item]:
    for knob in study.domains:
        for level in study.levels:
            setting = {knob: study.places[level]}
            run = partial(_everywhere, study, way, setting)
            shared = turning(study, way, setting, study.domains)
            yield Item(f"leak-written/{way}/{knob}/{level}", run, shared=shared)


def _everywhere(study: Study, way: str, setting: dict[str, float]) -> dict[str, Any]:
    """Domain -> what a setting does there. Only its own knobs are loaded."""
    model = knobs_of(study, way, list(setting)) if setting else study.models.measured({})
    subject = Turned(model, setting)
    return {domain: study.measure(subject, domain) for domain in study.domains}


def _matrix(study: Study, way: str) -> list[dict[str, Any]]:
    """A knob at a time. Where the base, or a knob turned, computes no numbers, nothing rises."""
    turned = {item.name: study.once(item) for item in _settings(study, way)}
    base = _everywhere(study, way, {})

    def rises(knob: str, level: str) -> dict[str, float]:
        found = turned[f"leak-written/{way}/{knob}/{level}"]
        return {
            domain: one["rates"]["rate"][level] - base[domain]["rates"]["rate"][level]
            for domain, one in found.items()
            if FAILED not in one and FAILED not in base[domain]
        }

    found = []
    for knob in study.domains:
        probe = RetentionProbe(study.models.live(vectors(study, way, [knob])))
        effect = {level: rises(knob, level) for level in study.levels}
        neutral = {level: probe.kl({knob: at}) for level, at in study.places.items()}
        found.append(Leak(knob, knob, effect, neutral).to_json())
    return found
