"""Preference rates: which level's reference response a model finds most likely.

s(l) = (1/|r_l|) sum_t log p(r_l,t | q, r_l,<t); the rate of level l is the share of queries for
which s(l) is the highest (the paper calls it preference accuracy).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignvec.base.logprobs import Row
from alignvec.base.prompts import prompt_tokens
from alignvec.data import Record
from alignvec.evaluate.intervals import bootstrap_interval
from alignvec.evaluate.likelihood import response_scores


@dataclass(frozen=True)
class Rates:
    """Preference rates over a set of queries.

    Attributes:
        queries: how many.
        rate: level -> share of queries, in [0, 1]; they sum to 1.
        interval: level -> 95% bootstrap interval of the rate, over queries.
        score: level -> mean s(l), natural-log likelihood per token.
    """

    queries: int
    rate: dict[str, float]
    interval: dict[str, tuple[float, float]]
    score: dict[str, float]


def response_rows(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], levels: Sequence[str]
) -> list[Row]:
    """One row a record: its query and the responses of `levels`, in that order, as tokens."""
    return [
        Row(
            prompt_tokens(tokenizer, record.query),
            [
                tokenizer(record.levels[level], add_special_tokens=False)["input_ids"]
                for level in levels
            ],
        )
        for record in records
    ]


def preference_rates(
    model: PreTrainedModel,
    rows: Sequence[Row],
    levels: Sequence[str],
    seed: int = 0,
) -> Rates:
    """Score every row and count which level wins.

    Args:
        rows: as `response_rows` makes them, one response for each of `levels`.
        seed: of the bootstrap.
    """
    return rates_of(np.array(response_scores(model, rows)), levels, seed)


def rates_of(scores: NDArray[np.float64], levels: Sequence[str], seed: int = 0) -> Rates:
    """Count which level wins.

    Args:
        scores: [Q, L], s(l) of each query.
        levels: L names.
        seed: of the bootstrap.
    """
    wins = scores.argmax(axis=1)[:, None] == np.arange(len(levels))
    low, high = bootstrap_interval(wins, seed)
    return Rates(
        queries=len(scores),
        rate={level: float(wins[:, i].mean()) for i, level in enumerate(levels)},
        interval={level: (float(low[i]), float(high[i])) for i, level in enumerate(levels)},
        score={level: float(scores[:, i].mean()) for i, level in enumerate(levels)},
    )
