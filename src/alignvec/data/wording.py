"""How a text is worded, as numbers that a linear model learns from: words and pieces of words."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion, make_union

from alignvec.data.words import words


def wording() -> FeatureUnion:
    """TF-IDF of words, of pairs of words and of runs of 2 to 4 letters, to be fitted; float32.

    Its `fit` raises ValueError if no word comes twice.
    """
    options: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float32}
    spoken = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, tokenizer=words, token_pattern=None, **options
    )
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=3, **options)
    return make_union(spoken, letters)
