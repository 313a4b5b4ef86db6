"""Part 3, several domains: every combination of levels (27 of three domains), in several ways.

    added       our vectors, turned to the places of the levels, without any search
    routed      the same, each knob on the queries of its own domain, which a router reads
    grid        the paper's: its vectors added, strengths from a grid search on validation queries
    prompting   one system prompt that names each domain's level
    retrained   a model trained jointly on the three domains for one behaviour

And one, two and three of our knobs at once: vectors that are added are known to lose expression as
their number grows (arXiv 2607.01802).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from alignvec.data.pairs import PreferencePair, preference_pairs
from alignvec.reproduce.item import Item, Shared, Work
from alignvec.reproduce.prompting import Prompted, system_prompt, with_system
from alignvec.reproduce.study import Study
from alignvec.reproduce.subject import Subject, Turned
from alignvec.reproduce.training import (
    ALONG,
    ONE_SIDED,
    aligned_model,
    extracted,
    forget,
    knobs_of,
    trainings,
    turning,
)
from alignvec.route import Router
from alignvec.search import Target, behaviours, search
from alignvec.search.target import format_target

TITLE = "Several domains"
SEARCHED = ("added", "routed", "grid", "prompting")


def items(study: Study) -> Iterator[Item]:
    """The search, then each target in each way; retraining of some; one, two and three knobs."""
    if len(study.domains) < 2:
        return
    work = study.work_of(study.domains)
    targets = list(behaviours(study.domains, study.levels))
    yield search_item(study)
    yield Item("behaviours/router", partial(_routing, study), Work(scored=work.scored))
    for way in SEARCHED:
        for target in _spread(targets, study.scale.targets):
            run = partial(_reached, study, way, target)
            name = f"behaviours/{way}/{format_target(target)}"
            if way == "added":
                shared = turning(study, ALONG, _places(study, target), study.domains)
                yield Item(name, run, shared=shared)
            else:
                yield Item(name, run, work, _needed(study, way))
    yield from retrainings(study)
    top = study.levels[-1]
    for number in range(1, len(study.domains) + 1):
        for domains in combinations(study.domains, number):
            setting = dict.fromkeys(domains, study.places[top])
            shared = turning(study, ALONG, setting, domains)
            run = partial(_together, study, setting)
            yield Item(f"together/{number}/{','.join(domains)}", run, shared=shared)


def search_item(study: Study) -> Item:
    """The paper's search, for all behaviours at once."""
    passes = len(study.scale.grid) ** len(study.domains)
    searched = study.scale.searched * len(study.domains)
    shared = {"search": Work(scored=passes * searched)}
    shared |= trainings(study, ONE_SIDED, study.domains)
    return Item("behaviours/search", partial(_searched, study), shared=shared)


def retrainings(study: Study) -> Iterator[Item]:
    """An item a behaviour that a model is retrained for."""
    rows = sum(len(study.records(domain, "train")) for domain in study.domains)
    each = study.work_of(study.domains) + Work(trained=rows * study.scale.epochs)
    for target in retrained(study):
        name = f"behaviours/retrained/{format_target(target)}"
        run = partial(_retrained, study, target)
        yield Item(name, run, shared={retrained_name(target): each})


def _needed(study: Study, way: str) -> Shared:
    """What a way has to have first."""
    if way == "grid":
        return search_item(study).shared
    return trainings(study, ALONG, study.domains) if way == "routed" else {}


def _places(study: Study, target: Target) -> dict[str, float]:
    return {domain: study.places[level] for domain, level in target.items()}


def retrained(study: Study) -> list[Target]:
    """The behaviours that a model is retrained for: in three of three domains each takes each
    level once, so that their mean stands for all.
    """
    some, levels = study.domains, study.levels
    turns = [
        {domain: levels[(place + turn) % len(levels)] for place, domain in enumerate(some)}
        for turn in range(len(levels))
    ]
    every = turns + [one for one in behaviours(some, levels) if one not in turns]
    return every[: study.scale.retrained]


def retrained_name(target: Target) -> str:
    """Of the folder of the model that is retrained for a behaviour."""
    return f"retrained-{','.join(target.values())}"


def _spread(targets: list[Target], most: int) -> list[Target]:
    """As many targets as are wanted, evenly over all."""
    step = max(1.0, len(targets) / most)
    return [targets[int(place * step)] for place in range(min(most, len(targets)))]


def _measured(study: Study, subject: Subject, target: Mapping[str, str]) -> dict[str, Any]:
    return {
        "target": dict(target),
        "domains": {domain: study.measure(subject, domain) for domain in study.domains},
    }


def _searched(study: Study) -> dict[str, Any]:
    """The paper's search for all targets at once: every setting of a grid."""
    scale, domains = study.scale, study.domains
    some = [r for d in domains for r in study.records(d, "validation")[: scale.searched]]
    held_out = [r for d in domains for r in study.records(d, "test")]
    limits = {domain: (min(scale.grid), max(scale.grid)) for domain in domains}
    result = search(
        knobs_of(study, ONE_SIDED), list(behaviours(domains, study.levels)), some, held_out,
        study.levels, "grid", limits=limits, strengths=scale.grid,
    )  # fmt: skip
    return result.to_json()


def _router(study: Study) -> Router:
    """Reads the words alone; fitted on queries of the train part."""
    seen = [one for domain in study.domains for one in study.records(domain, "train")]
    return Router.fit(None, None, [r.query for r in seen], [r.domain for r in seen], reads="text")


def _routing(study: Study) -> dict[str, Any]:
    router = _router(study)
    asked = [one for domain in study.domains for one in study.records(domain, "test")]
    found = router.domain(None, None, [one.query for one in asked])
    right = sum(one.domain == domain for one, domain in zip(asked, found, strict=True))
    return {"queries": len(asked), "right": right}


def _reached(study: Study, way: str, target: Target) -> dict[str, Any]:
    places = _places(study, target)
    if way == "prompting":
        return _measured(
            study, Prompted(study.models.measured({}), with_system(system_prompt(target))), target
        )
    if way == "grid":
        found = study.once(search_item(study))["found"]
        places = next(one["setting"] for one in found if one["target"] == target)
        return _measured(study, Turned(knobs_of(study, ONE_SIDED), places), target)
    router = _router(study) if way == "routed" else None
    return _measured(study, Turned(knobs_of(study, ALONG), places, router), target)


def _retrained(study: Study, target: Target) -> dict[str, Any]:
    """A vector of all weights is as large as the model, and asked for here alone: those that have
    been measured go.
    """
    name = retrained_name(target)
    if study.scale.method == "full":
        for other, item in zip(retrained(study), retrainings(study), strict=True):
            if study.done(item):
                forget(study, retrained_name(other))

    def train() -> Path:
        pairs = [one for domain, level in target.items() for one in _towards(study, domain, level)]
        return aligned_model(study, name, pairs, study.scale.method)

    model = study.models.measured({"all": extracted(study, name, name, train)})
    return _measured(study, Turned(model, {"all": 1.0}), target)


def _towards(study: Study, domain: str, level: str) -> Iterator[PreferencePair]:
    """As many pairs a record as there are other levels: the wanted one is preferred to each."""
    records = study.records(domain, "train")
    for record in records:
        for other in study.levels:
            if other != level:
                yield from preference_pairs([record], [level, other])


def _together(study: Study, setting: dict[str, float]) -> dict[str, Any]:
    subject = Turned(knobs_of(study, ALONG), setting)
    return {domain: study.measure(subject, domain) for domain in setting}
