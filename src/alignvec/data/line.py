"""The line on which a knob's levels lie: which strength stands for which level."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alignvec.errors import AlignvecError

Places = dict[str, float]  # level -> strength, from low to high
JITTER = 0.15  # of a strength, up or down, in training: a level has a neighbourhood, not a point


def spaced(levels: Sequence[str]) -> Places:
    """Levels, from low to high, on a line from -1 to 1 that has the base at 0.

    The lowest is at -1, the others share the way from the base to the aligned model: two levels are
    at -1 and 1, three at -1, .5 and 1. None is at 0, where no vector can change anything.
    """
    above = len(levels) - 1
    return dict(zip(levels, [-1.0, *(step / above for step in range(1, above + 1))], strict=True))


def parse_places(text: str) -> Places:
    """`avoidance=-1,generic=0.5,expert=1`, or the names alone, from low to high, spaced.

    Raises:
        AlignvecError: it is not of that form, names fewer than two levels or one twice, or a level
            is at 0 or where another one is.
    """
    form = f"'{text}' are no levels; write LOW,...,HIGH or LOW=STRENGTH,...,HIGH=STRENGTH"
    names = [part.partition("=")[0].strip() for part in text.split(",")]
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise AlignvecError(form)
    if "=" not in text:
        return spaced(names)
    try:
        places = [float(part.partition("=")[2]) for part in text.split(",")]
    except ValueError:
        raise AlignvecError(form) from None
    if not all(map(math.isfinite, places)) or 0.0 in places or len(set(places)) < len(places):
        raise AlignvecError(f"'{text}': levels lie at finite strengths, none at 0, no two at one")
    return dict(sorted(zip(names, places, strict=True), key=lambda item: item[1]))
