"""What an answer costs by each way, and what a change of behaviour costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from alignvec.report.figure import COLOURS
from alignvec.report.study.document import Block, Cell, Chart, Column, Panel, Row, Table
from alignvec.report.study.results import Results, at, rates, real
from alignvec.report.study.svg import named

INFERENCE_TITLE, CHANGE_TITLE = "Cost of inference", "Cost of change"
INFERENCE_ABOUT = (
    "What an answer at the highest level costs, one query at a time: the base as it is, a system "
    "prompt, a few examples, a knob beside the weights (gated) and one folded into them. Medians "
    "over rounds of the means over queries; energy where a GPU says it. A cheap answer at the "
    "wrong level is no gain: the judged rates of the same answers stand beside.",
)
CHANGE_ABOUT = (
    "All behaviours by vectors (trained once, and a search where there is one) against a "
    "retraining for each. Retrainings that were not run count as the mean of those that were.",
)
_MEANS = {"read": "tokens read", "written": "tokens written", "first_token": "s to the first token",
          "seconds": "s in all", "joules": "joules"}  # fmt: skip


def inference(study: Results) -> Iterator[Block]:
    """Bars of tokens, time and energy a domain, then the table."""
    panels: list[Panel] = []
    rows: list[Row] = []
    for domain in study.domains:
        found = study.found.get(f"inference/{domain}")
        if not isinstance(found, Mapping):
            continue
        for what, parts in (
            ("tokens an answer", ("read", "written")),
            ("seconds an answer", ("first_token", "seconds")),
            ("joules an answer", ("joules",)),
        ):
            if any(real(at(one, parts[-1])) is not None for one in found.values()):
                draw = partial(_bars, found, parts)
                panels.append(Panel(f"{domain}: {what}", draw, 4.8, 1.0 + 0.36 * len(found)))
        for way, one in found.items():
            of: dict[Column, Cell] = {("", "domain"): domain, ("", "by"): way}
            cost: dict[Column, Cell] = {
                ("an answer", told): real(at(one, key)) for key, told in _MEANS.items()
            }
            judged = {
                column: cell
                for column, cell in rates({"judged": at(one, "judged")}, study.levels).items()
                if column[0] == "judged"
            }
            broken: dict[Column, Cell] = {
                ("its texts", "broken"): real(at(one, "judged", "broken"))
            }
            rows.append(of | cost | judged | broken)
    if panels:
        yield Chart("inference-cost", "What an answer costs", panels)
    if rows:
        yield Table("inference", "What an answer costs, in numbers", rows, "", 2)


def _bars(found: Mapping[str, Any], parts: tuple[str, ...], drawn: Figure) -> None:
    """Tokens one after the other; of seconds the first token lies within all."""
    axes = drawn.subplots()
    ways = list(found)
    within = "first_token" in parts
    left = [0.0] * len(ways)
    for index, part in enumerate(reversed(parts) if within else parts):
        values = [real(at(found[way], part)) or 0.0 for way in ways]
        place = len(parts) - 1 - index if within else index
        axes.barh(
            range(len(ways)), values, 0.62, left=left, color=COLOURS[place], label=_MEANS[part],
            alpha=0.85,
        )  # fmt: skip
        if not within:
            left = [before + value for before, value in zip(left, values, strict=True)]
    axes.set_yticks(range(len(ways)), [named(way) for way in ways])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    if len(parts) > 1:
        drawn.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)


def change(study: Results) -> Iterator[Block]:
    """Seconds of each way."""
    found = study.found.get("change")
    rows: list[Row] = [
        {
            ("", "by"): told,
            ("", "seconds"): real(at(found, way, "seconds")),
            ("", "of which search"): real(at(found, way, "search")),
            ("", "times faster than retraining"): real(at(found, way, "times")),
        }
        for way, told in {
            "retrained": "retraining for each behaviour",
            "one-sided": "the paper's vectors and their search",
            "along": "vectors trained along the knob (ours)",
        }.items()
        if at(found, way)
    ]
    if not rows:
        return
    run = at(found, "retrained", "measured")
    note = f"Behaviours: {at(found, 'behaviours')}."
    if isinstance(run, list):
        note += f" Retrainings that were run: {len(run)} ({'; '.join(map(str, run))})."
    yield Table("change", "All behaviours, however they are made", rows, note)
