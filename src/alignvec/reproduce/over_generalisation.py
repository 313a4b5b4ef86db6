"""Part 2, over-generalisation: what each knob does to the other domains, and to neutral text.

Each knob alone at the place of each level, every domain measured: the leak matrix of likelihoods
(`evaluate.leak`, with the normalised value leakage of NeVA beside it) and of what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from alignvec.evaluate.leak import measure_leak
from alignvec.reproduce.item import Item, Work
from alignvec.reproduce.study import Study
from alignvec.reproduce.subject import Turned
from alignvec.reproduce.training import WAYS, knobs_of

TITLE = "Over-generalisation"


def items(study: Study) -> Iterator[Item]:
    """The matrix of a way at once, and a setting at a time what is written."""
    domains = study.domains
    queries = sum(len(study.records(domain, "test")) for domain in domains)
    answers = sum(
        min(len(study.records(domain, "test")), study.scale.answers) for domain in domains
    )
    settings = 1 + len(domains) * len(study.levels)
    for way in WAYS:
        yield Item(f"leak/{way}", partial(_matrix, study, way), Work(scored=queries * settings))
        for knob in domains:
            for level in study.levels:
                run = partial(_written, study, way, knob, level)
                yield Item(f"leak-written/{way}/{knob}/{level}", run, Work(0, queries, answers))


def _matrix(study: Study, way: str) -> list[dict[str, Any]]:
    records = [one for domain in study.domains for one in study.records(domain, "test")]
    model = knobs_of(study, way)
    return [
        one.to_json()
        for one in measure_leak(model, dict.fromkeys(study.domains, study.places), records)
    ]


def _written(study: Study, way: str, knob: str, level: str) -> dict[str, Any]:
    """Domain -> what a knob at the place of a level does there."""
    subject = Turned(knobs_of(study, way), {knob: study.places[level]})
    return {domain: study.measure(subject, domain) for domain in study.domains}
