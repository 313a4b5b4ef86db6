"""Transfer: domain vectors on a safety-aligned stage of the same base, beside the base."""

from __future__ import annotations

from collections.abc import Iterator

from alignvec.report.figure import COLOURS
from alignvec.report.study.document import Block, Chart, Panel, Row, Table
from alignvec.report.study.lines import Line, rate_panel
from alignvec.report.study.results import (
    MEASURES,
    SAFE,
    WAYS,
    Results,
    at,
    rate,
    rates,
    text,
)
from alignvec.report.study.safety import QUERIES
from alignvec.reproduce.study import SAFETY
from alignvec.reproduce.transfer import STAGES

TITLE = "Transfer"
ABOUT = (
    "The vectors of the base, put on another stage of it: the base aligned for safety with all its "
    "weights (the paper's Figure 4). If a vector transfers, its lines on both stages run together; "
    "the safe rate says what the other stage's safety loses to it.",
)
STAGE = "transfer/stage"


def blocks(study: Results) -> Iterator[Block]:
    """Two panels a domain and way, the domain's highest level and safety; then every setting."""
    panels = [
        panel
        for domain in study.domains
        for way, told in WAYS.items()
        for panel in _panels(study, domain, way, told)
    ]
    if panels:
        note = "Of each domain and way first the highest level, then the safe rate."
        yield Chart("transfer-rates", "The same knob on both stages", panels, note)
    alone: list[Row] = [
        {("", "queries"): what, ("", "level"): level, **{
            (by, "rate"): rate(at(study.found.get(STAGE), kind), by, level) for by in MEASURES
        }, **text(at(study.found.get(STAGE), kind))}
        for kind, (what, (_, level)) in QUERIES.items()
        if at(study.found.get(STAGE), kind)
    ]  # fmt: skip
    if alone:
        yield Table("transfer-stage", "The safety-aligned stage, every knob at 0", alone)
    rows: list[Row] = [
        {
            ("", "domain"): domain, ("", "by"): told, ("", "stage"): stage, ("", "at"): strength,
            **rates(at(found, domain), study.levels), **text(at(found, domain)),
            **{("safe", by): rate(at(found, SAFETY), by, SAFE) for by in MEASURES},
        }
        for domain in study.domains
        for way, told in WAYS.items()
        for stage in STAGES
        for strength, found in study.moved(domain, way, stage)
    ]  # fmt: skip
    if rows:
        yield Table("transfer", "Every setting", rows, "", 4)


def _panels(study: Results, domain: str, way: str, told: str) -> Iterator[Panel]:
    for kind, level in ((domain, study.top), (SAFETY, SAFE)):
        lines: list[Line] = [
            (stage, by, COLOURS[index], [
                (strength, value)
                for strength, found in study.moved(domain, way, stage)
                if (value := rate(at(found, kind), by, level))
            ])
            for index, stage in enumerate(STAGES)
            for by in MEASURES
        ]  # fmt: skip
        if any(points for *_, points in lines):
            yield rate_panel(f"{domain}, {told}: {level}", lines)
