"""The file in which a server keeps what must last: profiles and keys."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import MetaData

from alignvec.sqlite import Database

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"  # of a profile or a key
NAME_RULE = "a name has 1 to 64 letters, digits, '.', '_' and '-', the first a letter or a digit"

_APPLICATION_ID = 0x616C7673  # SQLite's application id: "alvs"


def open_state(file: Path, tables: MetaData, make: bool = True) -> Database:
    """The state file with some tables.

    Args:
        make: the file, if it is not there.

    Raises:
        AlignvecError: there is none, or it is something else.
    """
    return Database(file, _APPLICATION_ID, "profiles and keys", tables, make)


def is_name(text: str) -> bool:
    """Whether a profile or a key can be called so."""
    return re.fullmatch(NAME, text, re.ASCII) is not None
