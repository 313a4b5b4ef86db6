"""Part 1, one domain (the paper's Figure 2): both rates against lambda, beside prompts.

The base as it is, one system prompt a level, a few examples a level; the aligned model is the
paper's vector at lambda = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from alignvec.reproduce.item import Item
from alignvec.reproduce.prompting import Prompted, system_prompt, with_examples, with_system
from alignvec.reproduce.study import Study
from alignvec.reproduce.subject import Turned
from alignvec.reproduce.training import knobs_of, turning, turns

TITLE = "One domain"


def items(study: Study) -> Iterator[Item]:
    """A domain at a time, each way at each strength, then the prompts."""
    for domain in study.domains:
        work = study.work_of([domain])
        yield study.base_item(domain)
        for way, strength in turns(study.scale.strengths):
            run = partial(_turned, study, way, domain, strength)
            shared = turning(study, way, {domain: strength}, [domain])
            yield Item(f"single/{domain}/{way}/{strength:g}", run, shared=shared)
        for kind in ("system", "few-shot"):
            for level in study.levels:
                run = partial(_prompted, study, kind, domain, level)
                yield Item(f"single/{domain}/{kind}/{level}", run, work)


def _turned(study: Study, way: str, domain: str, strength: float) -> dict[str, Any]:
    return study.measure(Turned(knobs_of(study, way, [domain]), {domain: strength}), domain)


def _prompted(study: Study, kind: str, domain: str, level: str) -> dict[str, Any]:
    if kind == "system":
        told = with_system(system_prompt({domain: level}))
    else:
        told = with_examples(study.records(domain, "train"), {domain: level})
    return study.measure(Prompted(study.models.measured({}), told), domain)
