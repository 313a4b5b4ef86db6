"""The one exception that reaches a user as one line."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from difflib import get_close_matches


class AlignvecError(Exception):
    """Something a user can mend: what is wrong, with the file or field, and what to do.

    The command line prints the message on one line and exits with 1; a traceback only with
    ``--debug``.
    """


class NoNumbersError(AlignvecError):
    """A model computes no numbers: a knob is turned too far, or a training diverged. Where many
    settings are tried it is what one of them gives, and no reason to stop.
    """


def check_known(what: str, name: object, known: Iterable[str]) -> None:
    """Raises: AlignvecError: `name` is none of the known; with the one that may be meant."""
    names = list(known)
    if name not in names:
        close = get_close_matches(str(name), names, n=1)
        others = f"one of {', '.join(names)}" if names else "there is none"
        hint = f"did you mean '{close[0]}'?" if close else others
        raise AlignvecError(f"unknown {what} '{name}'; {hint}")


def printable(text: str) -> str:
    """`text` with its control characters, and whatever else has no glyph, spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks, cut to what fits a terminal."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def untold(error: BaseException) -> str:
    """An exception's type and where it was raised, without its message, which may quote what was
    asked.
    """
    place = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__}\n{place}"
