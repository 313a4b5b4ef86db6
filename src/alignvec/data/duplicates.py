"""Texts that say nearly the same: MinHash over pairs of words, found by locality-sensitive hashing.

In scripts without spaces between words three letters stand for a pair of words.

Of the built-in set no two texts share more than 0.27 of their pairs of words; a query with three of
its words changed still shares 0.6 with what it was.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Any

from datasketch import MinHash, MinHashLSH

from alignvec.data.words import lone_letters, words

ALIKE = 0.4
_BANDS, _ROWS = 32, 3  # finds 88% of the pairs at 0.4, 99% at 0.5; 10 kB of memory a text


class NearDuplicates:
    """Texts by key that can be asked for the one most like another text."""

    def __init__(self) -> None:
        self._index = MinHashLSH(num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))
        self._texts: dict[Hashable, str] = {}

    def add(self, key: Hashable, text: str) -> None:
        """Raises: ValueError: the key is there already."""
        self._index.insert(key, _hashed(text))
        self._texts[key] = text

    def near(self, text: str) -> tuple[Any, float] | None:
        """The key of the most similar text and the similarity, if any is alike."""
        found = [
            (key, similarity(text, self._texts[key])) for key in self._index.query(_hashed(text))
        ]
        best = max(found, key=lambda one: (one[1], str(one[0])), default=None)
        return best if best and best[1] >= ALIKE else None

    def add_new(self, text: str) -> bool:
        """Add `text` unless one like it is there; says whether it was new."""
        if self.near(text):
            return False
        self.add(len(self._texts), text)
        return True


def similarity(one: str, other: str) -> float:
    """Share of the pairs of words of either text that both have (Jaccard); 1 for the same words."""
    left, right = _pairs(one), _pairs(other)
    return len(left & right) / (len(left | right) or 1)


def _pairs(text: str) -> set[str]:
    found = words(text.lower())
    run = 3 if 2 * lone_letters(text) > len(found) else 2
    return {" ".join(found[at : at + run]) for at in range(max(1, len(found) - run + 1))} - {""}


@lru_cache(maxsize=64)  # a text is mostly added after it was asked for
def _hashed(text: str) -> Any:
    hashed = _empty().copy()
    hashed.update_batch([pair.encode() for pair in _pairs(text)])
    return hashed


@lru_cache(maxsize=1)
def _empty() -> Any:
    return MinHash(num_perm=_BANDS * _ROWS, seed=1)
