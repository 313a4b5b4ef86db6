"""What the other model finds of answers that were written before it was there to read them.

A study of one model may be joined by a second one later. What it reads then is added to the results
that have been written, each in a result of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from alignvec.reproduce.item import Item, Work
from alignvec.reproduce.study import HARMLESS, SAFETY, Study
from alignvec.reproduce.subject import unread

TITLE = "Reading"
PREFIX = "reading/"
_BETWEEN = ("measured", "reading", "judging")  # what no part of the report is made of
Unread = tuple[str, str, Sequence[str]]  # where in a result, the domain of the queries, the answers


def items(study: Study) -> Iterator[Item]:
    """One for each result whose texts nobody has read."""
    if study.told["reader"] is None:
        return
    for name in study.names():
        first, *rest = name.split("/")
        some = list(_unread(study, study.result(name), (rest or [""])[0]))
        if some and first not in _BETWEEN:
            work = Work(scored=sum(len(answers) for _, _, answers in some))
            yield Item(f"{PREFIX}{name}", partial(_read, study, some), work)


def _unread(study: Study, result: Any, domain: str, place: str = "") -> Iterator[Unread]:
    if not isinstance(result, Mapping):
        return
    if unread(result):
        yield place, domain, result["answers"]
    for key, one in result.items():
        of_domain = place != "levels" and key in (*study.domains, SAFETY, HARMLESS)
        below = f"{place}/{key}".lstrip("/")
        yield from _unread(study, one, key if of_domain else domain, below)


def _read(study: Study, some: Sequence[Unread]) -> dict[str, float | None]:
    """Place in the result, keys with slashes between -> natural log a token."""
    return {place: study.likelihood(domain, answers) for place, domain, answers in some}
