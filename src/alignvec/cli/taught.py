"""What a training is taught: where levels lie, and by knob the records, and those that check it."""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from alignvec.cli.inputs import records_of
from alignvec.errors import AlignvecError

if TYPE_CHECKING:
    from alignvec.data.line import Places
    from alignvec.data.records import Record

_NAME = re.compile(r"(?!.*\.(json|png|svg|md)$)[\w-][\w .-]{0,99}")
_NAMES = "letters, digits, spaces and . _ - make one, and it is none of a file of the output"
_CHECKED = 12  # records that the rates of the check are measured on


def places_of(data: str, levels: str | None, prefer: str | None) -> Places:
    from alignvec.data.line import parse_places, spaced
    from alignvec.data.pairs import parse_order
    from alignvec.data.records import LEVELS, level_names

    if levels and prefer:
        raise AlignvecError("--levels and --prefer say the same; give one of them")
    if levels:
        return parse_places(levels)
    if prefer:
        return spaced(parse_order(prefer)[::-1])
    names = set(level_names(data))
    # One of the two is enough to tell: the other may be what is missing.
    is_pair = names & {"chosen", "rejected"} and not names >= set(LEVELS)
    return spaced(["rejected", "chosen"] if is_pair else LEVELS)


def records_by_knob(
    data: list[str], domain: str | None, levels: list[str], split: str | None, limit: int | None
) -> dict[str, list[Record]]:
    """Knob -> its records: of a domain each, or of a file each."""
    from alignvec.data.forms import GENERAL

    domains: list[str | None] = [one.strip() for one in domain.split(",")] if domain else [None]
    if "" in domains:
        raise AlignvecError(f"--domain '{domain}' has an empty name in it")
    if len(data) > 1 and len(domains) > 1:
        raise AlignvecError("several domains come from one --data, or one from each of several")
    found: dict[str, list[Record]] = {}
    for source, one in itertools.product(data, domains):
        records = records_of(source, levels, one, split, "train")[:limit]
        names = {record.domain for record in records}
        # Records that say no domain are of a general one, which says nothing among several.
        told = len(names) == 1 and (len(data) == 1 or names != {GENERAL})
        knob = names.pop() if told else Path(source).stem
        if len(data) * len(domains) > 1 and not _NAME.fullmatch(knob):
            raise AlignvecError(f"'{knob}' cannot be the name of a knob's folder: {_NAMES}")
        if knob in found:
            raise AlignvecError(f"two knobs would be called '{knob}'; give each its own domain")
        found[knob] = records
    return found


def passes_over(records: int, levels: int) -> float:
    """Every record at every level once, and more over few records: a line takes some 200 rows."""
    return max(levels, min(6.0, 216 / records))


def held_out(
    data: list[str], records: dict[str, list[Record]], levels: list[str], split: str | None
) -> dict[str, list[Record]]:
    """Knob -> records for the check: of the validation part if the train part was trained on, else
    those that were trained on."""
    from alignvec.data.sources import BUILTIN

    found = {}
    sources = data if len(data) > 1 else data * len(records)
    for source, (knob, some) in zip(sources, records.items(), strict=True):
        found[knob] = some[:_CHECKED]
        if split == "train" or (split is None and source == BUILTIN):
            domain = some[0].domain
            with contextlib.suppress(AlignvecError):  # too few records to have such a part
                found[knob] = records_of(source, levels, domain, "validation", "")[:_CHECKED]
    return found
