"""What a whole study would have, so that the report of one that is under way says what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from alignvec.report.study.results import WAYS, Results
from alignvec.report.study.several import REACHING, SEARCH
from alignvec.report.study.transfer import STAGE
from alignvec.reproduce.study import HARMLESS, SAFETY
from alignvec.reproduce.training import turns
from alignvec.reproduce.transfer import STAGES

_SHOWN = 6  # of the names that are missing


def missing(study: Results, part: str) -> list[str]:
    """What a part lacks, in a line; nothing if it has all, or the study's data cannot have it."""
    if part in ("behaviours", "change") and len(study.domains) < 2:
        return ["this part needs several domains; the data has one."]
    wanted = list(dict.fromkeys(_EXPECTED[part](study)))
    # A name that ends in a slash stands for any below it.
    absent = [
        name for name in wanted
        if not (study.under(name) if name.endswith("/") else name in study.found)
    ]  # fmt: skip
    if not absent:
        return []
    if len(absent) == len(wanted):
        return ["this study has no results of this part."]
    shown = ", ".join(absent[:_SHOWN]) + (", ..." if len(absent) > _SHOWN else "")
    return [f"{len(absent)} of {len(wanted)} results are missing: {shown}."]


def _turned(prefix: str, strengths: Sequence[float]) -> Iterator[str]:
    """Each way at each strength; of strengths that are not told, any."""
    yield from (f"{prefix}/{way}/{strength:g}" for way, strength in turns(strengths))
    if not strengths:
        yield from (f"{prefix}/{way}/" for way in WAYS)


def _single(study: Results) -> Iterator[str]:
    for domain in study.domains:
        yield f"base/{domain}"
        yield from _turned(f"single/{domain}", study.strengths)
        for kind in ("system", "few-shot"):
            yield from (f"single/{domain}/{kind}/{level}" for level in study.levels)


def _leak(study: Results) -> Iterator[str]:
    for way in WAYS:
        yield f"leak/{way}"
        for knob in study.domains:
            yield from (f"leak-written/{way}/{knob}/{level}" for level in study.levels)


def _behaviours(study: Results) -> Iterator[str]:
    yield from (SEARCH, "behaviours/router")
    yield from (f"behaviours/{way}/" for way in REACHING)
    yield from (f"together/{number}/" for number in range(1, len(study.domains) + 1))


def _safety(study: Results) -> Iterator[str]:
    yield from (f"base/{kind}" for kind in (SAFETY, HARMLESS))
    yield from _turned("safety", study.strengths)


def _transfer(study: Results) -> Iterator[str]:
    yield STAGE
    for domain in study.domains:
        for way in WAYS:
            for stage in STAGES:
                prefix = f"transfer/{domain}/{way}/{stage}/"
                yield from (f"{prefix}{one:g}" for one in study.few) if study.few else (prefix,)


def _each(*prefixes: str) -> Callable[[Results], Iterator[str]]:
    return lambda study: (f"{prefix}{domain}" for prefix in prefixes for domain in study.domains)


def _baselines(study: Results) -> Iterator[str]:
    for domain in study.domains:
        yield f"baselines/{domain}/"


def _ability(study: Results) -> Iterator[str]:
    return (f"ability/{domain}/{way}" for domain in study.domains for way in WAYS)


def _training(study: Results) -> Iterator[str]:
    yield "training/along-bank"
    yield from (f"training/one-sided-{domain}" for domain in study.domains)
    yield from (f"training/{way}-{SAFETY}" for way in WAYS)


_EXPECTED: Mapping[str, Callable[[Results], Iterator[str]]] = {
    "single": _single,
    "leak": _leak,
    "behaviours": _behaviours,
    "safety": _safety,
    "transfer": _transfer,
    "inference": _each("inference/"),
    "change": lambda _: iter(("change",)),
    "baselines": _baselines,
    "ability": _ability,
    "judging": lambda _: iter(("judging/",)),
    "data": lambda _: (f"data/{name}" for name in ("statistics", "cleaning", "levels")),
    "training": _training,
}
