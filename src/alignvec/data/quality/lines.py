"""The lines of a source, records or not: one that cannot be read does not stop the others."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignvec.data.records import Record
from alignvec.data.sources import BUILTIN, builtin_levels, from_json, one_a_line, rows
from alignvec.errors import AlignvecError
from alignvec.files import validated


@dataclass
class Line:
    """A line that is not blank.

    Attributes:
        record: None if it is no record.
        faults: (rule, reason); the first one counts.
    """

    place: str
    text: str
    record: Record | None = None
    faults: list[tuple[str, str]] = field(default_factory=list)


def read_lines(source: str | Path) -> list[Line]:
    """The lines of any source of records. What is no record breaks the rule `schema`.

    Of JSON Lines these are the lines; of another layout (`rows`) its rows, as JSON.

    Raises:
        AlignvecError: there is no such source, or not one record in it.
    """
    path = Path(source).expanduser()
    lines = []
    for file in builtin_levels() if source == BUILTIN else [path]:
        if not file.is_file() or not one_a_line(file):
            of = source if file is path else file
            lines += [_judged(place, fields) for place, fields in rows(str(of))]
            continue
        with file.open("rb") as content:
            lines += [
                _parsed(f"{file.name}, line {number}", raw.rstrip(b"\r\n"))
                for number, raw in enumerate(content, start=1)
                if raw.strip()
            ]
    if not any(line.record for line in lines):
        why = f" ({lines[0].place}: {lines[0].faults[0][1]})" if lines else ""
        raise AlignvecError(f"{source} holds no records{why}")
    return lines


def _parsed(place: str, raw: bytes) -> Line:
    try:
        text = raw.decode("utf-8-sig")
        return _judged(place, from_json(text), text)
    except UnicodeDecodeError:
        reason = "not UTF-8 text"
    except RecursionError:
        reason = "nested too deep"
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg}"
    except ValueError as error:
        reason = str(error)
    return Line(place, raw.decode("utf-8", "backslashreplace"), faults=[("schema", reason)])


def _judged(place: str, fields: Any, text: str | None = None) -> Line:
    text = json.dumps(fields, ensure_ascii=False, default=str) if text is None else text
    if not isinstance(fields, dict):
        return Line(place, text, faults=[("schema", "a record is a JSON object")])
    try:
        return Line(place, text, validated(Record, fields, place))
    except AlignvecError as error:
        return Line(place, text, faults=[("schema", str(error).removeprefix(f"{place}: "))])
