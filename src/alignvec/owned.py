"""What alignvec wrote, so that it replaces and removes nothing else.

A folder with outputs holds a list of their names, `.alignvec`. What no list names is somebody
else's, whatever it is called.
"""

from __future__ import annotations

import os
from pathlib import Path

LIST = ".alignvec"
_HEAD = "# What alignvec wrote here; it replaces and removes nothing else.\n"
_ALL = "*"


def claim(folder: Path) -> None:
    """Mark a new folder as one in which everything is ours, until `list_all`."""
    (folder / LIST).write_text(f"{_HEAD}{_ALL}\n", encoding="utf-8")


def list_all(folder: Path) -> None:
    """Put the names of all that is in a folder, and below, into its list."""
    inside = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = sorted(str(path.relative_to(folder)) for path in inside)
    text = "".join(f"{name}\n" for name in names if name != LIST)
    partial = folder / f"{LIST}.partial"  # ours as all else, should this be the end
    partial.write_text(_HEAD + text, encoding="utf-8")
    partial.replace(folder / LIST)


def note(file: Path) -> None:
    """Add a file to the list of its folder; where the name of the list is taken, to none."""
    listed = file.parent / LIST
    names = _names(file.parent)
    if names is None and listed.exists():
        return
    if not names:
        listed.write_text(_HEAD, encoding="utf-8")  # a new one, or one that was cut off
    if not names or not names & {file.name, _ALL}:
        with listed.open("a", encoding="utf-8") as lines:
            lines.write(f"{file.name}\n")


def foreign(path: Path) -> Path | None:
    """The first file in or below a folder, or the file itself, that alignvec did not write."""
    if path.is_symlink() or not path.is_dir():
        return None if path.name in (_names(path.parent) or ()) else path
    ours: set[Path] = set()
    for name, folders, files in os.walk(path):
        folder = Path(name)
        names = _names(folder)
        if names is not None:
            ours |= {folder / one for one in (LIST, *names)}
        if folder / _ALL in ours:
            folders.clear()
            continue
        links = [one for one in folders if (folder / one).is_symlink()]
        for one in sorted([*files, *links]):
            if folder / one not in ours:
                return folder / one
    return None


def _names(folder: Path) -> frozenset[str] | None:
    """What a folder's list names, nothing if its writer was killed; None if there is no list."""
    try:
        text = (folder / LIST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if _HEAD.startswith(text):
        return frozenset()
    return frozenset(text.removeprefix(_HEAD).splitlines()) if text.startswith(_HEAD) else None
