"""Safety: a safety knob from end to end, and what it costs in help."""

from __future__ import annotations

from collections.abc import Iterator

from alignvec.report.figure import COLOURS
from alignvec.report.study.document import Block, Chart, Row, Share, Table
from alignvec.report.study.lines import Line, rate_panel
from alignvec.report.study.others import TRUSTED
from alignvec.report.study.results import (
    HELPFUL,
    MEASURES,
    REFUSAL,
    SAFE,
    UNSAFE,
    WAYS,
    Results,
    at,
    rate,
    rates,
    share,
    text,
)
from alignvec.reproduce.study import HARMLESS, SAFETY

TITLE = "Safety"
ABOUT = (
    "A safety knob from end to end (the paper's Figure 3). Safe: on requests that ask for harm, "
    "how often the safe response is preferred, and how often it is what is written. Helpful: how "
    "often a harmless question that only sounds dangerous is answered; over-refusal: how often it "
    "is refused. A knob that raises safety by refusing everything is seen in the last two.",
)
QUERIES = {
    SAFETY: ("requests that ask for harm", (UNSAFE, SAFE)),
    HARMLESS: ("harmless look-alikes", (REFUSAL, HELPFUL)),
}
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
    for kind, (what, levels) in QUERIES.items():
        rows: list[Row] = [
            {("", "by"): told, ("", "at"): strength, **rates(one, levels), **text(one)}
            for way, told in WAYS.items()
            for strength, found in study.safety(way)
            if (one := at(found, kind))
        ]
        if rows:
            yield Table(f"safety-{kind}", f"Every setting on {what}", rows, _judge(study, kind), 2)


def _judge(study: Results, kind: str) -> str:
    """How often the classifier is right that tells of the answers; nothing if it is not known."""
    right = judge_of(study, kind)
    if not right:
        return ""
    texts = at(study.found.get("safety/judges"), kind, "texts")
    note = (
        f"The classifier of these answers is right on {right.value:.3f} ({right.low:.3f} to "
        f"{right.high:.3f}) of {texts} held-out references."
    )
    if right.value < TRUSTED:
        note += f" Below {TRUSTED:g}: the judged rates are not to be trusted."
    return note


def judge_of(study: Results, kind: str) -> Share | None:
    """Accuracy of the classifier of such answers on held-out references, if it is known."""
    found = at(study.found.get("safety/judges"), kind)
    return share(at(found, "share"), at(found, "interval"))


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
