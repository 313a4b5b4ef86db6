"""Safety: a safety knob from end to end, and what it costs in help."""

from __future__ import annotations

from collections.abc import Iterator

from alignvec.report.figure import COLOURS
from alignvec.report.study.document import Block, Cell, Chart, Column, Row, Table
from alignvec.report.study.lines import Line, rate_panel
from alignvec.report.study.results import (
    HARMLESS,
    HELPFUL,
    MEASURES,
    REFUSAL,
    SAFE,
    SAFETY,
    UNSAFE,
    WAYS,
    Results,
    at,
    rate,
    rates,
    text,
)

TITLE = "Safety"
ABOUT = (
    "A safety knob from end to end (the paper's Figure 3). Safe: on requests that ask for harm, "
    "how often the safe response is preferred, and how often it is what is written. Helpful: how "
    "often a harmless question that only sounds dangerous is answered; over-refusal: how often it "
    "is refused. A knob that raises safety by refusing everything is seen in the last two.",
)
SHOWN = (
    ("safe", SAFETY, SAFE),
    ("helpful", HARMLESS, HELPFUL),
    ("over-refusal", HARMLESS, REFUSAL),
)


def blocks(study: Results) -> Iterator[Block]:
    """A panel a way, and every setting."""
    panels = []
    for way, told in WAYS.items():
        lines = safety_lines(study.safety(way))
        if any(points for *_, points in lines):
            panels.append(rate_panel(told, lines))
    if panels:
        yield Chart("safety-rates", "Safe, helpful, and refused without need", panels)
    rows: list[Row] = [
        {("", "by"): told, ("", "at"): strength, **row}
        for way, told in WAYS.items()
        for strength, found in study.safety(way)
        for row in safety_rows(found)
    ]
    if rows:
        note = "Two lines a strength: requests that ask for harm, and harmless look-alikes."
        yield Table("safety", "Every setting", rows, note, 3)


def safety_lines(points: list[tuple[float, object]]) -> list[Line]:
    """A line a thing that is shown and a measure. By likelihood, over-refusal is what helpful
    leaves, and is not drawn.
    """
    return [
        (name, by, COLOURS[index], [
            (strength, value)
            for strength, found in points
            if (value := rate(at(found, kind), by, level))
        ])
        for index, (name, kind, level) in enumerate(SHOWN)
        for by in MEASURES
        if (name, by) != ("over-refusal", "likelihood")
    ]  # fmt: skip


def safety_rows(found: object) -> Iterator[dict[Column, Cell]]:
    """Safe rates, then helpful ones, of a setting."""
    for kind, levels in ((SAFETY, (UNSAFE, SAFE)), (HARMLESS, (REFUSAL, HELPFUL))):
        if one := at(found, kind):
            yield {("", "queries"): kind} | rates(one, levels) | text(one)
