"""What a router sees of a text alone: its words and their pieces, without any model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WIDTH = 2**14


def text_features(queries: Sequence[str]) -> NDArray[np.float32]:
    """[N, WIDTH] float32: counts of words and of pairs of words, hashed, each row of length 1.

    English stop words are left out; in other languages none are. A hash needs no vocabulary, so a
    router that reads texts is two tensors like any other.
    """
    # An extra, as for fitting.
    from sklearn.feature_extraction.text import HashingVectorizer

    reader = HashingVectorizer(
        n_features=WIDTH, ngram_range=(1, 2), alternate_sign=False, stop_words="english"
    )
    found: NDArray[np.float32] = reader.transform(queries).toarray().astype(np.float32)
    return found
