"""What was written, as a file of JSON Lines that may be completed later."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignvec.errors import AlignvecError
from alignvec.files import atomic_file
from alignvec.owned import foreign, note


def write_entries(
    out: Path, entries: Iterable[dict[str, Any]], if_none: str, overwrite: bool = False
) -> int:
    """Write entries, one a line; returns how many.

    An earlier output may be completed without asking, not replaced.

    Args:
        if_none: what to say if there is no entry.

    Raises:
        AlignvecError: there is none, or lines that are there would be lost (with `overwrite`, lines
            of somebody else's).
    """
    count = 0
    with atomic_file(out) as partial:
        with partial.open("w", encoding="utf-8") as file:
            for entry in entries:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                count += 1
        if count == 0:
            raise AlignvecError(if_none)
        if out.exists() and not _lines(out) <= _lines(partial):
            way = "choose another name" + ("" if foreign(out) else " or pass --overwrite")
            if foreign(out) or not overwrite:
                raise AlignvecError(
                    f"{out} holds other lines than these; {way} (the new texts are in its journal)"
                )
    note(out)
    return count


def _lines(path: Path) -> set[bytes]:
    return set(path.read_bytes().splitlines())
