"""What a report says, before it is a page, a Markdown file, a CSV or JSON: sections of blocks.

Numbers are kept as they were measured; each form rounds for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from matplotlib.figure import Figure


class Verdict(StrEnum):
    """What becomes of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "undecided"
    MISSING = "not measured"


@dataclass(frozen=True)
class Share:
    """A share of queries, or a difference of two, with its 95% interval."""

    value: float
    low: float
    high: float


Cell = Verdict | Share | str | float | int | None
LONG = 36  # lines of a table that a page shows when it is asked to
SMALL = 4.6  # inches: three panels beside each other
Column = tuple[str, str]  # the group it stands under, and its own name
Row = Mapping[Column, Cell]


@dataclass(frozen=True)
class Table:
    """Rows that may have different columns; what a row lacks stays empty.

    Attributes:
        name: of its file, beside the title that people read.
        note: how to read it.
        steady: how many of the first columns say what a row is of.
        folds: away, if it is long, until it is asked for.
    """

    name: str
    title: str
    rows: Sequence[Row]
    note: str = ""
    steady: int = 1
    folds: bool = True

    @property
    def columns(self) -> list[Column]:
        """Those of all rows, groups together, in the order in which they come first."""
        every = dict.fromkeys(column for row in self.rows for column in row)
        groups = list(dict.fromkeys(group for group, _ in every))
        return sorted(every, key=lambda column: groups.index(column[0]))


@dataclass(frozen=True)
class Panel:
    """A drawing of a chart.

    Attributes:
        draw: puts it on an empty figure.
        width: in inches.
    """

    title: str
    draw: Callable[[Figure], None]
    width: float = 4.8
    height: float = 3.4


@dataclass(frozen=True)
class Chart:
    """Panels side by side where there is room, below each other where there is none."""

    name: str
    title: str
    panels: Sequence[Panel]
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """A query and what was answered, each answer with what it is of."""

    title: str
    query: str
    answers: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Samples:
    """Answers as they came."""

    name: str
    title: str
    samples: Sequence[Sample]
    note: str = ""


Block = Table | Chart | Samples


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        about: what is measured and how to read it, a paragraph each.
        missing: what a study has no results of, in a line each.
    """

    name: str
    title: str
    about: Sequence[str]
    blocks: Sequence[Block] = ()
    missing: Sequence[str] = field(default_factory=list)


def side_by_side(models: Sequence[tuple[str, Sequence[Block]]]) -> list[Block]:
    """The blocks of several studies as those of one: a table has a column for the model, a chart
    the panels of all.
    """
    if len(models) == 1:
        return list(models[0][1])
    found: dict[str, list[tuple[str, Block]]] = {}
    for model, blocks in models:
        for block in blocks:
            found.setdefault(block.name, []).append((model, block))
    return [_joined(some) for some in found.values()]


def _joined(some: Sequence[tuple[str, Block]]) -> Block:
    first = some[0][1]
    if isinstance(first, Table):
        return _joined_table(first, some)
    if isinstance(first, Chart):
        # Panels of the same thing stand beside each other.
        each = [
            (index, Panel(f"{model}: {one.title}", one.draw, one.width, one.height))
            for model, block in some
            if isinstance(block, Chart)
            for index, one in enumerate(block.panels)
        ]
        panels = [panel for _, panel in sorted(each, key=lambda pair: pair[0])]
        return Chart(first.name, first.title, panels, first.note)
    answered = [
        (index, Sample(f"{one.title}, {model}", one.query, one.answers))
        for model, block in some
        if isinstance(block, Samples)
        for index, one in enumerate(block.samples)
    ]
    samples = [sample for _, sample in sorted(answered, key=lambda pair: pair[0])]
    return Samples(first.name, first.title, samples, first.note)


def _joined_table(first: Table, some: Sequence[tuple[str, Block]]) -> Table:
    """Rows of the same thing below each other, a model each."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for model, block in some:
        if isinstance(block, Table):
            steady = block.columns[: block.steady]
            for row in block.rows:
                key = tuple(written(row.get(column)) for column in steady)
                of = {column: row.get(column) for column in steady}
                found.setdefault(key, []).append({**of, ("", "model"): model, **row})
    rows = [row for same in found.values() for row in same]
    notes = dict.fromkeys(block.note for _, block in some)
    note = first.note
    if len(notes) > 1:  # they say what each model has
        note = " ".join(f"{model}: {block.note}" for model, block in some)
    return Table(first.name, first.title, rows, note, first.steady + 1)


def written(cell: Cell) -> str:
    """A cell for people: two decimals of a share, three digits of a number."""
    if cell is None:
        return ""
    if isinstance(cell, Share):
        return f"{cell.value:.2f} ({cell.low:.2f} to {cell.high:.2f})"
    return number(cell) if isinstance(cell, int | float) else str(cell)


def number(value: float) -> str:
    """Three digits, more before the point if there are more; 1,234,567 with commas."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.3g}"


def plain(cell: Cell) -> Any:
    """A cell as JSON, unrounded."""
    if isinstance(cell, Share):
        return {"value": cell.value, "interval": [cell.low, cell.high]}
    if isinstance(cell, float) and not math.isfinite(cell):
        return None
    return str(cell) if isinstance(cell, str) else cell
