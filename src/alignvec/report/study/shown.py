"""Text of people and models in a report: as it was written, but for what would act on the page."""

from __future__ import annotations

import unicodedata

_ACTING = {"Cc", "Cs", "Co", "Cn"}  # controls, halves of pairs, characters of no script
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # what follows
_MARKS = "\u061c\u200e\u200f"  # of direction, too


def shown(text: str) -> str:
    """`text` with its control characters and those that turn its direction spelled out.

    Spaces and joiners of all scripts stay: without them a word is another one.
    """
    return "".join(repr(one)[1:-1] if _acts(one) else one for one in text)


def _acts(one: str) -> bool:
    turns = one in _MARKS or unicodedata.bidirectional(one) in _TURNING
    return turns or unicodedata.category(one) in _ACTING
