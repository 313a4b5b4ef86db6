"""What a study lacks, so that the report of one that is under way, or of a broken knob, says it."""

from __future__ import annotations

from collections.abc import Sequence

from alignvec.report.study.results import Results

_SHOWN = 6  # of the names that are missing
_NONE = {
    "behaviours": "this part needs several domains; the data has one.",
    "change": "this part needs several domains; the data has one.",
    "judging": "there was no second judge.",
}


def missing(study: Results, part: str) -> list[str]:
    """What a part lacks of the results that the study says it is to have, and what has none."""
    wanted = study.items.get(part, [])
    if not wanted:
        return [_NONE.get(part, "this study does not say what it is to have of this part.")]
    there = study.found.keys() | study.failed.keys()
    if not there & set(wanted):
        return ["this study has no results of this part."]
    lines = []
    if absent := [name for name in wanted if name not in there]:
        lines.append(f"{len(absent)} of {len(wanted)} results are missing: {_shown(absent)}.")
    for why in dict.fromkeys(study.failed.values()):
        names = [
            name for name, one in study.failed.items()
            if one == why and name.partition(": ")[0] in wanted
        ]  # fmt: skip
        if names:
            lines.append(f"{len(names)} could not be measured ({why}): {_shown(names)}.")
    return lines


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
