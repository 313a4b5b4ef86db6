"""The paper's claims, each with a criterion in code: what a study found decides, nothing else.

A claim holds, or not, or is left open where the 95% interval of what was found has room for both,
or where not all is measured that it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from alignvec.report.study.document import Cell, Column, Row, Table, Verdict
from alignvec.report.study.results import Results


@dataclass(frozen=True)
class Finding:
    """What a study has to say of a claim, in one way by one measure.

    Attributes:
        of: the vectors or the way.
        measure: that it is by.
        ours: a share with its interval, or a number that has none.
        why: what decided, from the results; empty if there is nothing to say.
    """

    of: str
    measure: str
    ours: Cell
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True)
class Claim:
    """What the paper says.

    Attributes:
        text: the claim.
        paper: its figure.
        where: it stands in the paper.
        holds: the criterion that `find` applies.
        unit: of our number.
        find: the findings of a study; none if it has no such results.
    """

    name: str
    text: str
    paper: str
    where: str
    holds: str
    unit: str
    find: Callable[[Results], Iterator[Finding]]


def claims_table(claims: Sequence[Claim], studies: Sequence[Results]) -> Table:
    """A line a finding, the studies beside each other; of a claim that none can speak to, a line
    that says so.
    """
    rows: list[Row] = []
    for claim in claims:
        said = [{(one.of, one.measure): one for one in claim.find(study)} for study in studies]
        for of, measure in dict.fromkeys(key for found in said for key in found) or [("", "")]:
            row: dict[Column, Cell] = {
                ("", "claim"): claim.text, ("", "the paper"): claim.paper,
                ("", "of"): of, ("", "by"): measure,
            }  # fmt: skip
            for study, found in zip(studies, said, strict=True):
                one = found.get((of, measure), _NOTHING)
                group = study.model if len(studies) > 1 else "found"
                row |= {
                    (group, "value (95%)"): one.ours, (group, "verdict"): one.verdict,
                    (group, "why"): one.why,
                }  # fmt: skip
            rows.append(row)
    title = "The paper's claims, and what becomes of them here"
    return Table("claims", title, rows, _NOTE, 4, folds=False)


def criteria_table(claims: Sequence[Claim]) -> Table:
    """What each number is, and by what each claim is decided."""
    rows: list[Row] = [
        {
            ("", "claim"): one.text,
            ("", "in the paper"): one.where,
            ("", "the value"): one.unit,
            ("", "holds if"): one.holds,
        }
        for one in claims
    ]
    return Table("claims-criteria", "When a claim holds", rows)


_NOTHING = Finding("", "", None, Verdict.MISSING, "no results on it")
_NOTE = (
    "Every verdict is computed from the results by the criterion in the next table; undecided "
    "means that the 95% interval has room for both, or that not all is measured. The paper's "
    "figures are of a 7B model; a small one may well behave otherwise."
)
