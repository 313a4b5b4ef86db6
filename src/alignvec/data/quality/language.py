"""In which language a text reads, if it is long enough to tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from py3langid import classify

from alignvec.data.words import lone_letters

_ENOUGH = 80  # letters from which the language is plain
_LONE_WEIGHT = 3  # a letter that stands alone is a third of a word, or half of it
_MOST = 0.6  # share of the texts that are in one language, if they have one
# ISO 639's languages within a language, as far as the classifier tells them apart.
_WITHIN = {"wuu": "zh", "yue": "zh", "lzh": "zh", "nb": "no", "nn": "no"}


def language_of(text: str) -> str | None:
    """Its code (ISO 639-1, where there is one)."""
    if len(text) + (_LONE_WEIGHT - 1) * lone_letters(text) < _ENOUGH:
        return None
    return whole_language(classify(text)[0])


def whole_language(code: str) -> str:
    """`no` for `nb`, and the like."""
    return _WITHIN.get(code, code)


def common_language(texts: Iterable[str]) -> str | None:
    """The language that most texts read as; None if there is none or all are short."""
    counts = Counter(language for text in texts if (language := language_of(text)))
    (language, count), *_ = counts.most_common(1) or [("", 0)]
    return language if count and count >= _MOST * counts.total() else None
