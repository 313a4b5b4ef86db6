"""Part 8, what else turns at test time, on the same data with the same measures.

    steering    a vector added to the residual stream: the difference of means (CAA)
    bipo        such a vector, trained by a bidirectional preference loss
    dera        logits between the base and the aligned model, two passes a token
    soup        weights between two models, each trained towards one end (rewarded soups)
    scaled      plain LoRA, its scale turned: the paper's vector
    along       ours, at the places that training gave the levels

Each of the others at that of its strengths where a level's rate is highest on validation queries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignvec.data.pairs import preference_pairs
from alignvec.errors import NoNumbersError
from alignvec.evaluate.rates import rates_of
from alignvec.reproduce.dera import DeRa
from alignvec.reproduce.item import Item, Shared, Work
from alignvec.reproduce.steering import Steered
from alignvec.reproduce.steering_choice import Choice, choose
from alignvec.reproduce.steering_vectors import BiPOSettings, bipo, difference_of_means
from alignvec.reproduce.study import Study
from alignvec.reproduce.subject import Subject, Turned
from alignvec.reproduce.training import (
    ALONG,
    ONE_SIDED,
    aligned_model,
    extracted,
    knobs_of,
    record_of,
    seconds_of,
    trainings,
    turning,
    vector,
    vectors,
)

TITLE = "Baselines at test time"
_TURNS = (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0)
_BETWEEN = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
STRENGTHS: dict[str, Sequence[float]] = {
    "steering": _TURNS, "bipo": _TURNS, "dera": _TURNS, "soup": _BETWEEN, "scaled": _TURNS,
}  # fmt: skip
WAYS = (*STRENGTHS, "along")
_OF_PAPER = ("dera", "soup", "scaled")  # made of its vector
Turning = Callable[[float], Subject]  # from a strength
Made = tuple[Turning, float]  # and the seconds of the training, or of finding a vector


def items(study: Study) -> Iterator[Item]:
    """Of each way and domain all levels at once: they share what has to be made first."""
    for domain in study.domains:
        each = study.work_of([domain])
        train = len(study.records(domain, "train"))
        for way in WAYS:
            if way == "along":
                yield Item(
                    f"baselines/{domain}/{way}", partial(_measured, study, domain, way),
                    shared=_at_places(study, domain),
                )  # fmt: skip
                continue
            made = {"bipo": study.scale.steering * 4, "soup": train * study.scale.epochs}
            work = Work(
                trained=made.get(way, 0),
                scored=study.scale.searched * len(STRENGTHS[way]) + each.scored * len(study.levels),
                written=each.written * len(study.levels) * (2 if way == "dera" else 1),
            )
            trained = trainings(study, ONE_SIDED, [domain] if way in _OF_PAPER else [])
            run = partial(_measured, study, domain, way)
            yield Item(f"baselines/{domain}/{way}", run, work, trained)


def _at_places(study: Study, domain: str) -> Shared:
    found: dict[str, Work] = {}
    for at in study.places.values():
        found |= turning(study, ALONG, {domain: at}, [domain])
    return found


def _measured(study: Study, domain: str, way: str) -> dict[str, Any]:
    """Seconds that it took to make, without loading the base, and level -> what is measured, with
    the strength.
    """
    turned, seconds = _MAKERS[way](study, domain)
    chosen = study.places if way == "along" else _best(study, domain, turned, STRENGTHS[way])
    return {
        "seconds": round(seconds, 1),
        "levels": {
            level: {"strength": strength, **study.measure(turned(strength), domain)}
            for level, strength in chosen.items()
        },
    }


def _best(
    study: Study, domain: str, turned: Turning, strengths: Sequence[float]
) -> dict[str, float]:
    """Level -> the strength where its rate is highest, the smallest turn among equals, of those
    where there are numbers.

    Raises:
        NoNumbersError: there are none at any.
    """
    some = study.records(domain, "validation")[: study.scale.searched]
    rates: dict[float, dict[str, float]] = {}
    for strength in strengths:
        try:
            scores = turned(strength).scores(some, study.levels)
        except NoNumbersError as error:
            why = error
        else:
            rates[strength] = rates_of(scores, study.levels).rate
    if not rates:
        raise why

    def best(level: str) -> float:
        return max(rates, key=lambda strength: (rates[strength][level], -abs(strength)))

    return {level: best(level) for level in study.levels}


def _steering(study: Study, domain: str, trained: bool = False) -> Made:
    base = study.models.live({})
    start = time.perf_counter()
    model, tokenizer = base.model, base.tokenizer
    train, some = study.records(domain, "train"), study.records(domain, "validation")
    low, high = study.levels[0], study.levels[-1]

    def means(layer: int) -> Any:
        return difference_of_means(model, tokenizer, train, low, high, layer)

    some = some[: study.scale.searched]
    found: Choice = choose(model, tokenizer, some, low, high, means)
    added = found.strength * found.vector
    if trained:  # a vector for every layer would be a training for each
        settings = BiPOSettings(steps=study.scale.steering, seed=study.seed)
        added = bipo(model, tokenizer, train, low, high, found.layer, settings)
    seconds = time.perf_counter() - start
    return lambda strength: Steered(model, tokenizer, added, found.layer, strength), seconds


def _dera(study: Study, domain: str) -> Made:
    # A gate would compute the others, too.
    model = study.models.live(vectors(study, ONE_SIDED, [domain]))
    seconds = seconds_of(study, ONE_SIDED, domain)
    return lambda strength: DeRa(model, {domain: 1.0}, strength), seconds


def _soup(study: Study, domain: str) -> Made:
    """At 0 the model that was trained towards the low end, at 1 that towards the high one."""
    name = f"low-{domain}"

    def train() -> Path:
        pairs = list(preference_pairs(study.records(domain, "train"), study.levels))
        return aligned_model(study, name, pairs, study.scale.method)

    low = extracted(study, f"low/{domain}", name, train)
    ends: dict[str, Path] = {"low": low, "high": vector(study, ONE_SIDED, domain)}
    model = study.models.measured(ends)
    seconds = float(record_of(study, name)["seconds"]) + seconds_of(study, ONE_SIDED, domain)
    return lambda share: Turned(model, {"low": 1 - share, "high": share}), seconds


def _knob(study: Study, domain: str, way: str) -> Made:
    model = knobs_of(study, way, [domain])
    return lambda strength: Turned(model, {domain: strength}), seconds_of(study, way, domain)


_MAKERS: dict[str, Callable[[Study, str], Made]] = {
    "steering": _steering,
    "bipo": partial(_steering, trained=True),
    "dera": _dera,
    "soup": _soup,
    "scaled": partial(_knob, way=ONE_SIDED),
    "along": partial(_knob, way=ALONG),
}
