"""Several domains: how many behaviours each way reaches, and one, two and three knobs at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from alignvec.errors import printable
from alignvec.report.figure import COLOURS
from alignvec.report.study.document import Block, Cell, Chart, Column, Panel, Row, Share, Table
from alignvec.report.study.lines import Line, rate_panel
from alignvec.report.study.results import (
    MEASURES,
    Results,
    at,
    counted,
    rate,
    rates,
    reached,
    text,
)
from alignvec.search.solution import CLEAR

TITLE = "Several domains"
ABOUT = (
    "A behaviour asks for a level in each domain at once. It is reached by a rate if the wanted "
    "level has the highest rate in every domain, firmly if that rate is also at least "
    f"{CLEAR:g} in each. Ways: our vectors added, and routed by what a query is about; the paper's "
    "vectors added at the strengths of a grid search; one system prompt that names all levels; and "
    "a model retrained for the behaviour.",
    "Vectors that are added are known to lose expression as their number grows (arXiv 2607.01802): "
    "the last figure shows the rate of the highest level in the domains whose knobs are turned.",
)
REACHING = {
    "grid": "the paper's vectors, added",
    "added": "our vectors, added",
    "routed": "our vectors, routed",
    "prompting": "one system prompt",
    "retrained": "retrained",
}
ADDED = ("grid", "added", "routed")
SEARCH = "behaviours/search"


@dataclass(frozen=True)
class Count:
    """Behaviours that a way reaches by a measure."""

    way: str
    measure: str
    of: int
    reached: int
    firmly: int

    @property
    def share(self) -> Share:
        return counted(self.reached, self.of)


def counts(study: Results) -> list[Count]:
    """Of every way and measure that is there. The paper's search knows the likelihood rates of all
    behaviours, also of those that were not written out.
    """
    found = []
    for way in REACHING:
        for by in MEASURES:
            every = [one for _, one in _measured(study, way, by)]
            if every:
                firmly = sum(firm for _, firm in every)
                found.append(Count(way, by, len(every), sum(yes for yes, _ in every), firmly))
    return found


def blocks(study: Results) -> Iterator[Block]:
    """Bars of what is reached, each behaviour, then the number of knobs."""
    if found := counts(study):
        draw = partial(_draw_counts, found)
        panel = Panel("share of the behaviours reached", draw, 6.0, 1.2 + 0.62 * len(_ways(found)))
        note = "Beside a bar: how many of those that were measured; hatched: firmly."
        yield Chart("behaviours-reached", "Behaviours reached", [panel], note)
        rows: list[Row] = [
            {
                ("", "by"): REACHING[one.way], ("", "measure"): one.measure,
                ("behaviours", "measured"): one.of, ("behaviours", "reached"): one.reached,
                ("behaviours", "firmly"): one.firmly, ("behaviours", "share reached"): one.share,
            }
            for one in found
        ]  # fmt: skip
        yield Table("behaviours-counts", "Behaviours reached, in numbers", rows, "", 2)
    if told := list(_behaviours(study)):
        note = "A line a behaviour and domain; rates of all levels there, and what is written."
        yield Table("behaviours", "Each behaviour that was written out", told, note, 3)
    if told := _search(study) + _router(study):
        yield Table("behaviours-search", "What the paper's search and the router did", told)
    yield from _together(study)


def _measured(study: Results, way: str, by: str) -> list[tuple[str, tuple[bool, bool]]]:
    """Behaviour -> whether it is reached, and firmly."""
    every: list[tuple[str, Any, Any]] = [
        (name, at(one, "target"), at(one, "domains"))
        for name, one in study.under(f"behaviours/{way}/").items()
    ]
    searched = at(study.found.get(SEARCH), "found")
    if way == "grid" and by == "likelihood" and isinstance(searched, list):
        every = [
            (str(at(one, "target")), at(one, "target"), _as_measured(at(one, "rates")))
            for one in searched
        ]
    return [
        (name, found)
        for name, target, domains in every
        if isinstance(target, Mapping) and (found := reached(domains, target, by))
    ]


def _as_measured(found: Any) -> dict[str, Any]:
    some = found if isinstance(found, Mapping) else {}
    return {domain: {"rates": one} for domain, one in some.items()}


def _ways(found: list[Count]) -> list[str]:
    return list(dict.fromkeys(one.way for one in found))


def _draw_counts(found: list[Count], drawn: Figure) -> None:
    axes = drawn.subplots()
    ways = _ways(found)
    for one in found:
        place = MEASURES.index(one.measure)
        y, colour = ways.index(one.way) + (place - 0.5) * 0.4, COLOURS[place]
        axes.barh(y, one.reached / one.of, 0.36, color=colour, alpha=0.35)
        axes.barh(
            y, one.firmly / one.of, 0.36, facecolor="none", edgecolor=colour, hatch="////",
            linewidth=0,
        )  # fmt: skip
        axes.text(
            one.reached / one.of + 0.015, y, f"{one.reached} of {one.of}", va="center", fontsize=9
        )
    axes.set_yticks(range(len(ways)), [REACHING[way] for way in ways])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(visible=False, axis="y")
    keys = [
        Patch(facecolor=COLOURS[index], alpha=0.35, label=by) for index, by in enumerate(MEASURES)
    ]
    keys.append(Patch(facecolor="none", edgecolor="#888888", hatch="////", label="firmly"))
    drawn.legend(handles=keys, loc="outside upper left", ncols=3, frameon=False, fontsize=9)


def _behaviours(study: Results) -> Iterator[dict[Column, Cell]]:
    for way, told in REACHING.items():
        for name, one in study.under(f"behaviours/{way}/").items():
            target = at(one, "target")
            for domain, level in target.items() if isinstance(target, Mapping) else ():
                found = at(one, "domains", domain)
                of: dict[Column, Cell] = {
                    ("", "by"): told, ("", "behaviour"): name, ("", "domain"): domain,
                    ("", "wanted"): level,
                }  # fmt: skip
                yield of | rates(found, study.levels) | text(found)


def _search(study: Results) -> list[dict[Column, Cell]]:
    found = study.found.get(SEARCH)
    told = {
        "search: settings tried": at(found, "passes"),
        "search: queries asked": at(found, "queries"),
        "search: seconds": at(found, "seconds", "search"),
    }
    return [{("", "of"): name, ("", "value"): x} for name, x in told.items() if x is not None]


def _router(study: Results) -> list[dict[Column, Cell]]:
    found = study.found.get("behaviours/router")
    right, asked = at(found, "right"), at(found, "queries")
    if not isinstance(right, int) or not isinstance(asked, int) or asked < 1:
        return []
    value = counted(right, asked)
    return [{("", "of"): "router: queries sent to their own domain", ("", "value"): value}]


def _together(study: Results) -> Iterator[Block]:
    """Rates of the highest level against the number of knobs that are turned there."""
    rows: list[dict[Column, Cell]] = []
    points: dict[str, dict[int, list[Share]]] = {by: {} for by in MEASURES}
    for number in range(1, len(study.domains) + 1):
        for turned in combinations(study.domains, number):
            name = ",".join(turned)
            found = study.found.get(f"together/{number}/{name}")
            for domain in turned if found else ():
                one = at(found, domain)
                of: dict[Column, Cell] = {
                    ("", "knobs"): number, ("", "turned"): name, ("", "domain"): domain
                }  # fmt: skip
                cells = {(by, study.top): rate(one, by, study.top) for by in MEASURES}
                rows.append(of | cells | text(one))
                for by in MEASURES:
                    if value := rate(one, by, study.top):
                        points[by].setdefault(number, []).append(value)
    lines: list[Line] = [
        (printable(study.top), by, COLOURS[index], [
            (number, _mean(some)) for number, some in sorted(points[by].items())
        ])
        for index, by in enumerate(MEASURES)
    ]  # fmt: skip
    if not rows:
        return
    note = "Means over the domains that are turned, and of their intervals' ends."
    panel = rate_panel(f"rate of {study.top}", lines, "knobs turned to it at once")
    yield Chart("together", "One, two, three knobs", [panel], note)
    yield Table("together", "One, two, three knobs, in numbers", rows, "", 3)


def _mean(some: list[Share]) -> Share:
    return Share(*(mean(getattr(one, of) for one in some) for of in ("value", "low", "high")))
