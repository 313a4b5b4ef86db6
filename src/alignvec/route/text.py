"""What a router sees of a text alone: its words and their pieces, without any model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignvec.data.words import lone_letters, words

WIDTH = 2**14


def text_features(queries: Sequence[str]) -> NDArray[np.float32]:
    """[N, WIDTH] float32: counts of words and of pairs of words, hashed, each row of length 1.

    Where no spaces tell the words, letters stand for them. English stop words are left out; in
    other languages none are. A hash needs no vocabulary, so a router that reads texts is two
    tensors like any other.
    """
    # An extra, as for fitting.
    from sklearn.feature_extraction.text import HashingVectorizer

    reader = HashingVectorizer(
        n_features=WIDTH, ngram_range=(1, 2), alternate_sign=False, stop_words="english",
        tokenizer=_read, token_pattern=None,
    )  # fmt: skip
    if not queries:
        return np.zeros((0, WIDTH), np.float32)
    found: NDArray[np.float32] = reader.transform(queries).toarray().astype(np.float32)
    return found


def _read(text: str) -> list[str]:
    """Words of two letters and more, and letters that are one."""
    return [word for word in words(text) if len(word) > 1 or lone_letters(word)]
