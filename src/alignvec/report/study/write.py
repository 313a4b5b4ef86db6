"""The report of one study, or of several side by side, in all its forms."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignvec.errors import AlignvecError
from alignvec.files import atomic_folder, read_object, write_json, write_text
from alignvec.report.study import cost, leak, others, safety, several, single, transfer
from alignvec.report.study.claims import claims_table, criteria_table
from alignvec.report.study.document import (
    Block,
    Chart,
    Samples,
    Section,
    Share,
    Table,
    plain,
    side_by_side,
)
from alignvec.report.study.expected import missing
from alignvec.report.study.html import page
from alignvec.report.study.markdown import heading, markdown
from alignvec.report.study.measures import measures
from alignvec.report.study.paper import CLAIMS
from alignvec.report.study.results import Results
from alignvec.report.study.svg import for_page, svg


@dataclass(frozen=True)
class Part:
    """A part of a study, as the report shows it."""

    name: str
    title: str
    about: Sequence[str]
    blocks: Callable[[Results], Iterator[Block]]


PARTS = (
    Part("single", single.TITLE, single.ABOUT, single.blocks),
    Part("leak", leak.TITLE, leak.ABOUT, leak.blocks),
    Part("behaviours", several.TITLE, several.ABOUT, several.blocks),
    Part("safety", safety.TITLE, safety.ABOUT, safety.blocks),
    Part("transfer", transfer.TITLE, transfer.ABOUT, transfer.blocks),
    Part("inference", cost.INFERENCE_TITLE, cost.INFERENCE_ABOUT, cost.inference),
    Part("change", cost.CHANGE_TITLE, cost.CHANGE_ABOUT, cost.change),
    Part("baselines", others.BASELINES_TITLE, others.BASELINES_ABOUT, others.baselines),
    Part("ability", others.ABILITY_TITLE, others.ABILITY_ABOUT, others.ability),
    Part("judging", others.JUDGING_TITLE, others.JUDGING_ABOUT, others.judging),
    Part("data", others.DATA_TITLE, others.DATA_ABOUT, others.data),
    Part("training", others.TRAINING_TITLE, others.TRAINING_ABOUT, others.training),
)


def write_report(studies: Sequence[Path], out: Path) -> None:
    """Write what some studies found: `report.html` (one file, opens offline), `report.md` with
    `figures/*.svg`, `tables/*.csv`, and `report.json`, with every number as it was measured.

    Args:
        studies: their folders, whatever of their results is there. Of several the report has one
            beside the other.
        out: a folder; an earlier report there is replaced.

    Raises:
        AlignvecError: there is no study, a file of one is not readable, or `out` holds something
            else.
    """
    if not studies:
        raise AlignvecError("no study to report on; name at least one folder")
    for folder in studies:
        if folder.resolve().is_relative_to(out.resolve()):
            raise AlignvecError(f"{out} holds the study itself; write its report to another folder")
    found = _told_apart([Results(folder) for folder in studies])
    sections = list(_sections(found))
    title = f"{' and '.join(one.model for one in found)}: preferences as knobs"
    lead = [_about(one) for one in found]
    pages: dict[str, list[str]] = {}
    files: dict[str, list[str]] = {}
    with atomic_folder(out, overwrite=True) as folder:
        for folder_name in ("figures", "tables"):
            (folder / folder_name).mkdir()
        for block in (block for section in sections for block in section.blocks):
            if isinstance(block, Chart):
                names = [f"{block.name}-{place + 1}" for place in range(len(block.panels))]
                files[block.name] = [f"figures/{name}.svg" for name in names]
                drawn = [svg(panel, one) for panel, one in zip(block.panels, names, strict=True)]
                pages[block.name] = [for_page(one) for one in drawn]
                for file, one in zip(files[block.name], drawn, strict=True):
                    write_text(folder / file, one)
            elif isinstance(block, Table):
                write_text(folder / f"tables/{block.name}.csv", table_csv(block))
        write_text(folder / "report.html", page(title, lead, sections, pages))
        write_text(folder / "report.md", markdown(title, lead, sections, files))
        write_json(folder / "report.json", {
            "title": title,
            "studies": [one.told for one in found],
            "sections": [_json(section) for section in sections],
        })  # fmt: skip


def summary(report: Path) -> dict[str, Any]:
    """What a written report says in short, as JSON: where it is, of which studies, what becomes of
    the claims, and what each part lacks. The whole is in its `report.json`.
    """
    told = read_object(report / "report.json")
    sections = {one["name"]: one for one in told["sections"]}
    return {
        "report": str(report / "report.html"),
        "studies": told["studies"],
        "claims": sections["claims"]["tables"]["claims"],
        "missing": {name: one["missing"] for name, one in sections.items() if one["missing"]},
    }


def _told_apart(studies: list[Results]) -> list[Results]:
    """Two studies of one model have their folders' names with it, and a number where these are
    alike as well.
    """
    names = [one.model for one in studies]
    taken: set[str] = set()
    for one in studies:
        if names.count(one.model) > 1:
            one.model = f"{one.model} ({one.folder.name})"
        name = one.model
        for number in itertools.count(2):
            if one.model not in taken:
                break
            one.model = f"{name} {number}"
        taken.add(one.model)
    return studies


def _about(study: Results) -> str:
    told, number = study.told, len(study.domains)
    scale = told.get("scale")
    return (
        f"{study.model} on {told.get('data', 'unnamed data')}: {number} "
        f"{'domain' if number == 1 else 'domains'} ({', '.join(study.domains)}), levels "
        f"{', '.join(study.levels)} from low to high, seed {told.get('seed', 'not told')}."
        f"{_of_scale(scale) if isinstance(scale, dict) else ''} Its texts are read by "
        f"{told.get('reader') or 'no other model'}."
    )


def _of_scale(scale: Mapping[str, Any]) -> str:
    """How much was trained and measured: what a rate is to be judged by."""

    def most(name: str) -> str:
        return f"at most {scale[name]}" if scale.get(name) else "all"

    return (
        f" Trained on {most('train')} records a domain, in {scale.get('passes', '?')} passes along "
        f"the knob; measured on {most('queries')} test queries a domain, {most('answers')} of them "
        f"answered, with {most('tokens')} tokens."
    )


def _sections(studies: Sequence[Results]) -> Iterator[Section]:
    about = (
        "What arXiv 2410.19206 claims, and what was found here on what each model prefers and on "
        "what it writes.",
    )
    tables = [claims_table(CLAIMS, studies), criteria_table(CLAIMS)]
    yield Section("claims", "The paper's claims", about, tables)
    yield measures(studies)
    for part in PARTS:
        blocks = side_by_side([(one.model, list(part.blocks(one))) for one in studies])
        lacks = [
            f"{one.model}: {line}" if len(studies) > 1 else line[:1].upper() + line[1:]
            for one in studies
            for line in missing(one, part.name)
        ]
        yield Section(part.name, part.title, part.about, blocks, lacks)


def table_csv(table: Table) -> str:
    """A table as CSV, unrounded; a share takes three columns."""
    columns = table.columns
    shares = {
        column for column in columns if any(isinstance(r.get(column), Share) for r in table.rows)
    }
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n")
    ends = ("", " low", " high")
    write.writerow([
        _inert(heading(column) + end)
        for column in columns for end in (ends if column in shares else ends[:1])
    ])  # fmt: skip
    for row in table.rows:
        cells: list[Any] = []
        for column in columns:
            cell = row.get(column)
            if column not in shares:
                cells.append(_inert(cell))
            elif isinstance(cell, Share):
                cells += [cell.value, cell.low, cell.high]
            else:
                cells += [_inert(cell), None, None]
        write.writerow(cells)
    return out.getvalue()


def _inert(cell: Any) -> Any:
    """Text that a spreadsheet would take for a formula, as text."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@") else cell


def _json(section: Section) -> dict[str, Any]:
    return {
        "name": section.name,
        "title": section.title,
        "missing": list(section.missing),
        "tables": {
            block.name: [
                {heading(column): plain(cell) for column, cell in row.items()} for row in block.rows
            ]
            for block in section.blocks
            if isinstance(block, Table)
        },
        "answers": [
            {"of": one.title, "query": one.query, "answers": [list(pair) for pair in one.answers]}
            for block in section.blocks
            if isinstance(block, Samples)
            for one in block.samples
        ],
    }
