"""A report as Markdown, with its figures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from alignvec.report.study.document import LONG, Block, Chart, Column, Section, Table, written
from alignvec.report.study.shown import shown

# What would be mark-up anywhere, at a word's edge, or at a line's start.
_SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|^[#+\-=]")


def markdown(
    title: str, lead: Sequence[str], sections: Sequence[Section], files: Mapping[str, Sequence[str]]
) -> str:
    """The whole file.

    Args:
        files: chart name -> the file of each of its panels, relative to this one.
    """
    lines = [f"# {_text(title)}", ""]
    lines += [f"{_text(one)}\n" for one in lead]
    lines += [f"- [{_text(one.title)}](#{_anchor(one.title)})" for one in sections]
    for section in sections:
        lines += ["", f"## {_text(section.title)}", ""]
        lines += [f"{_text(one)}\n" for one in section.about]
        lines += [f"*{_text(one)}*\n" for one in section.missing]
        for block in section.blocks:
            lines += ["", f"### {_text(block.title)}", ""]
            lines += [_text(block.note), ""] if block.note else []
            lines += _block(block, files)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _block(block: Block, files: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Chart):
        for panel, file in zip(block.panels, files[block.name], strict=True):
            yield f"![{_text(panel.title)}]({file})\n"
    else:
        for one in block.samples:
            yield f"**{_text(one.title)}**: {_broken(one.query)}\n"
            for label, answer in one.answers:
                yield f"- *{_text(label)}*: {_broken(answer) if answer.strip() else '(empty)'}"
            yield ""


def _table(table: Table) -> Iterator[str]:
    columns, long = table.columns, table.folds and len(table.rows) > LONG
    if long:
        yield f"<details><summary>{len(table.rows)} lines</summary>\n"
    yield _row([_text(heading(column)) for column in columns])
    yield _row(["---"] * len(columns))
    for row in table.rows:
        yield _row([_text(written(row.get(column))) for column in columns])
    if long:
        yield "\n</details>"


def heading(column: Column) -> str:
    """A column's group and name in one."""
    return ": ".join(part for part in column if part)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """Text as it stands: no mark-up, no HTML, one line."""
    escaped = _SPECIAL.sub(lambda found: f"\\{found[0]}", shown(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _broken(text: str) -> str:
    """Several lines in one, a break between each two."""
    return "<br>".join(_text(line) for line in text.strip().split("\n"))


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
