"""One domain: both rates against lambda, prompts beside them, and the answers as they came."""

from __future__ import annotations

from collections.abc import Iterator

from alignvec.report.figure import colour_of
from alignvec.report.study.document import Block, Cell, Chart, Column, Sample, Samples, Table
from alignvec.report.study.lines import Line, rate_panel
from alignvec.report.study.results import (
    MEASURES,
    WAYS,
    Measured,
    Results,
    at,
    rate,
    rates,
    text,
)

TITLE = "One domain"
ABOUT = (
    "Each domain's knob alone, from end to end, on queries that no training saw (the paper's "
    "Figure 2). A solid line is the likelihood preference rate, a dashed one of the same colour "
    "the judged rate, with 95% bands. Where the solid line is high and the dashed one low, the "
    "model prefers a level that it does not write.",
    "Beside them the base (strength 0), one system prompt a level and a few examples a level; the "
    "aligned model is the paper's vector at strength 1.",
)
_QUERIES = 2  # of each domain are shown with their answers


def blocks(study: Results) -> Iterator[Block]:
    """Curves, then a table a domain, then answers."""
    panels = [
        rate_panel(f"{domain}: {told}", lines)
        for domain in study.domains
        for way, told in WAYS.items()
        for lines in [curves(study, study.knob(domain, way))]
        if any(points for *_, points in lines)
    ]
    if panels:
        yield Chart("single-rates", "Rates against the strength of a knob", panels)
    for number, domain in enumerate(study.domains):
        if rows := list(_rows(study, domain)):
            note = (
                "Rates with 95% intervals. The columns under “its texts” are of the very answers "
                "that the judged rate is of; perplexity is under the other model."
            )
            yield Table(f"single-{number + 1}", f"{domain}: every setting", rows, note, 2)
    if found := [one for domain in study.domains for one in _samples(study, domain)]:
        note = (
            "Greedy answers, unedited. Of a knob, at the strength where the likelihood rate of "
            "the level is the highest, so that what a high rate writes can be read."
        )
        yield Samples("single-answers", "What is written", found, note)


def curves(study: Results, points: list[tuple[float, Measured]]) -> list[Line]:
    """A line a level and measure."""
    return [
        (level, by, colour_of(level, index), [
            (strength, found) for strength, one in points if (found := rate(one, by, level))
        ])
        for index, level in enumerate(study.levels)
        for by in MEASURES
    ]  # fmt: skip


def _rows(study: Results, domain: str) -> Iterator[dict[Column, Cell]]:
    for way, told in WAYS.items():
        for strength, found in study.knob(domain, way):
            of: dict[Column, Cell] = {("", "by"): told, ("", "at"): strength}
            yield of | rates(found, study.levels) | text(found)
    for kind, level, found in study.prompted(domain):
        yield (
            {("", "by"): _prompt(kind), ("", "at"): level}
            | rates(found, study.levels)
            | text(found)
        )


def _prompt(kind: str) -> str:
    return "system prompt" if kind == "system" else "few examples"


def _samples(study: Results, domain: str) -> Iterator[Sample]:
    asked = at(study.found.get(f"base/{domain}"), "queries")
    every = list(_answers(study, domain))
    for index, query in enumerate(asked[:_QUERIES] if isinstance(asked, list) else []):
        answers = [(label, str(texts[index])) for label, texts in every if index < len(texts)]
        if answers:
            yield Sample(domain, said(query), answers)


def _answers(study: Results, domain: str) -> Iterator[tuple[str, list[str]]]:
    """What they are of, and the texts."""
    points = dict(study.knob(domain, next(iter(WAYS))))
    base = at(points.get(0.0), "answers") or at(study.found.get(f"base/{domain}"), "answers")
    yield "the base", base or []
    for way, told in WAYS.items():
        points = dict(study.knob(domain, way))
        for level in study.levels:
            reach = {
                strength: found.value
                for strength, one in points.items()
                if (found := rate(one, "likelihood", level))
            }
            if reach:
                best = max(reach, key=lambda strength: (reach[strength], -abs(strength)))
                texts = at(points[best], "answers") or []
                yield f"{level}: {told}, at {best:g}", texts
    for kind, level, found in study.prompted(domain):
        yield f"{level}: {_prompt(kind)}", at(found, "answers") or []


def said(messages: object) -> str:
    """A question, or the last message of a conversation."""
    if isinstance(messages, list) and messages:
        return str(at(messages[-1], "content") or messages[-1])
    return str(messages)
