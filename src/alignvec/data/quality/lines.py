"""The lines of a source, records or not: one that cannot be read does not stop the others."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from alignvec.data.records import BUILTIN, Record, builtin_levels
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
    """The lines of `builtin` or of a JSON Lines file. What is no record breaks the rule `schema`.

    Raises:
        AlignvecError: there is no such file, or not one record in it.
    """
    path = Path(source).expanduser()
    files = [path]
    if source == BUILTIN:
        files = builtin_levels()
    elif not path.is_file():
        raise AlignvecError(f"no file '{source}'; give a .jsonl file, or '{BUILTIN}'")
    lines = []
    for file in files:
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
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError(f"a record is a JSON object, not {type(fields).__name__}")
        return Line(place, text, validated(Record, fields, place))
    except UnicodeDecodeError:
        reason = "not UTF-8 text"
    except RecursionError:
        reason = "nested too deep"
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg}"
    except (ValueError, AlignvecError) as error:
        reason = str(error).removeprefix(f"{place}: ")
    return Line(place, raw.decode("utf-8", "backslashreplace"), faults=[("schema", reason)])
