"""`study.json`: what a folder is a study of, so that no other one is mixed with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignvec.errors import AlignvecError
from alignvec.files import read_object

NOTE = "study.json"


def check_folder(
    folder: Path,
    told: Mapping[str, Any],
    judge: str | None,
    prints: Callable[[], Mapping[str, str]],
) -> str | None:
    """Make sure that a folder holds nothing, or the same study.

    A judge and a reader may come later than the first results.

    Args:
        told: what tells a study from others, with its `reader`.
        judge: the name of a second one.
        prints: the fingerprints of its models: two may have one name. Not asked of a folder that
            does not say any.

    Returns:
        The second judge, this one or that of earlier results.

    Raises:
        AlignvecError: it holds another study, or what another reader or second judge read.
    """
    note = folder / NOTE
    earlier = read_object(note) if note.exists() else {}
    former, known = earlier.pop("judge", None), earlier.pop("fingerprints", None)
    if earlier and {**earlier, "reader": None} != {**told, "reader": None}:
        raise AlignvecError(
            f"{folder} holds a study of other models, data or scale ({NOTE}); choose another folder"
        )
    reader = earlier.get("reader")
    if reader and reader != told["reader"]:
        raise AlignvecError(
            f"{folder} holds answers that '{reader}' read; give it as --reader, or choose another "
            "folder"
        )
    if former and judge and former != judge:
        raise AlignvecError(
            f"{folder} holds what the judge '{former}' read; give that one, or another folder"
        )
    for role, found in prints().items() if known else ():
        if known.get(role, found) != found:
            raise AlignvecError(
                f"{folder} holds results of another {role} that is called '{told[role]}' as well "
                f"(fingerprint in {NOTE}); choose another folder"
            )
    return judge or former
