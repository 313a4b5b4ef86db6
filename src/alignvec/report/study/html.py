"""A report as one HTML file that opens offline: no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import groupby

from alignvec.report.study.document import (
    LONG,
    SMALL,
    Block,
    Cell,
    Chart,
    Column,
    Samples,
    Section,
    Share,
    Table,
    Verdict,
    written,
)
from alignvec.report.study.shown import shown

# A page that may load nothing and run nothing, whatever stands in it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_MARKS = {
    Verdict.HOLDS: "holds",
    Verdict.FAILS: "fails",
    Verdict.OPEN: "open",
    Verdict.MISSING: "missing",
}


def page(title: str, lead: Sequence[str], sections: Sequence[Section], drawn: Drawn) -> str:
    """The whole file.

    Args:
        lead: paragraphs above the first section.
        drawn: chart name -> SVG of each of its panels.
    """
    style = (resources.files("alignvec.report.study") / "page.css").read_text("utf-8")
    links = "".join(f'<li><a href="#{one.name}">{escape(one.title)}</a></li>' for one in sections)
    body = "".join(_section(one, drawn) for one in sections)
    paragraphs = "".join(f"<p>{_text(one)}</p>" for one in lead)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{_text(title)}</title>'
        f"<style>{style}</style></head>\n<body><nav><b>Contents</b><ol>{links}</ol></nav>\n"
        f"<main><h1>{_text(title)}</h1>{paragraphs}\n{body}</main></body></html>\n"
    )


Drawn = Mapping[str, Sequence[str]]


def _text(text: str) -> str:
    return escape(shown(text))


def _section(section: Section, drawn: Drawn) -> str:
    about = "".join(f"<p>{_text(one)}</p>" for one in section.about)
    missing = "".join(f'<p class="lacks">{_text(one)}</p>' for one in section.missing)
    blocks = "".join(_block(one, drawn) for one in section.blocks)
    heading = f"<h2>{_text(section.title)}</h2>"
    return f'<section id="{section.name}">{heading}{about}{missing}{blocks}</section>\n'


def _block(block: Block, drawn: Drawn) -> str:
    parts = [f"<h3>{_text(block.title)}</h3>"]
    if block.note:
        parts.append(f'<p class="note">{_text(block.note)}</p>')
    if isinstance(block, Table):
        lines = f'<details class="long"><summary>{len(block.rows)} lines</summary>', "</details>"
        before, after = lines if block.folds and len(block.rows) > LONG else ("", "")
        parts += [before, '<div class="scroll">', *_table(block), "</div>", after]
    elif isinstance(block, Chart):
        figures = zip(block.panels, drawn[block.name], strict=True)
        small = " small" if block.panels and block.panels[0].width < SMALL else ""
        parts.append(f'<div class="panels{small}">')
        parts += [
            f"<figure><figcaption>{_text(one.title)}</figcaption>{svg}</figure>"
            for one, svg in figures
        ]
        parts.append("</div>")
    else:
        parts += list(_samples(block))
    place = f"{block.name}-{type(block).__name__.lower()}"
    return f'<div class="block" id="{place}">{"".join(parts)}</div>'


def _samples(block: Samples) -> Iterator[str]:
    for one in block.samples:
        yield f'<details open><summary><span class="tag">{_text(one.title)}</span> '
        yield f"{_lines(one.query)}</summary><dl>"
        for label, answer in one.answers:
            said = _lines(answer) if answer.strip() else '<span class="lacks">(empty)</span>'
            yield f"<dt>{_text(label)}</dt><dd>{said}</dd>"
        yield "</dl></details>"


def _lines(text: str) -> str:
    """Text with its line breaks, as the style keeps them."""
    return "\n".join(_text(line) for line in text.split("\n"))


def _table(table: Table) -> Iterator[str]:
    columns = table.columns
    numeric = {column for column in columns[table.steady :] if _numeric(table, column)}
    wide = " wider" if len(columns) > 13 else " wide" if len(columns) > 9 else ""
    yield f'<table class="{table.name}{wide}"><thead>'
    if any(group for group, _ in columns):
        yield "<tr>"
        for group, some in groupby(columns, key=lambda column: column[0]):
            yield f'<th colspan="{len(list(some))}" class="group">{_text(group)}</th>'
        yield "</tr>"
    yield "<tr>"
    for column in columns:
        kind = ' class="number"' if column in numeric else ""
        yield f'<th scope="col"{kind}>{_text(column[1])}</th>'
    yield "</tr></thead><tbody>"
    spans = _spans(table, columns)
    for index, row in enumerate(table.rows):
        starts = ' class="starts"' if (index, columns[0]) in spans else ""
        yield f"<tr{starts}>"
        for place, column in enumerate(columns):
            if place < table.steady:
                if rows := spans.get((index, column)):
                    yield f'<th scope="row" rowspan="{rows}">{_cell(row.get(column))}</th>'
                continue
            kind = ' class="number"' if column in numeric else ""
            yield f"<td{kind}>{_cell(row.get(column))}</td>"
        yield "</tr>"
    yield "</tbody></table>"


def _spans(table: Table, columns: Sequence[Column]) -> dict[tuple[int, Column], int]:
    """Row and column -> how many rows say the same there, and in the columns before."""
    found: dict[tuple[int, Column], int] = {}
    for place in range(table.steady):
        before = columns[: place + 1]
        row = 0
        said = ([written(one.get(column)) for column in before] for one in table.rows)
        for _, some in groupby(said):
            count = len(list(some))
            found[row, columns[place]] = count
            row += count
    return found


def _numeric(table: Table, column: Column) -> bool:
    cells = [row.get(column) for row in table.rows]
    known = [cell for cell in cells if cell is not None]
    return bool(known) and all(isinstance(cell, Share | int | float) for cell in known)


def _cell(cell: Cell) -> str:
    if isinstance(cell, Verdict):
        return f'<span class="verdict {_MARKS[cell]}">{cell}</span>'
    if isinstance(cell, Share):
        interval = f"{cell.low:.2f} to {cell.high:.2f}"
        return f'{cell.value:.2f}<span class="interval">{interval}</span>'
    return _text(written(cell))
