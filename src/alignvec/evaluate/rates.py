"""Preference rates: which level's reference response a model finds most likely.

s(l) = (1/|r_l|) sum_t log p(r_l,t | q, r_l,<t); the rate of level l is the share of queries for
which s(l) is the highest (the paper calls it preference accuracy). Levels that tie share a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignvec.base.likelihood import response_scores
from alignvec.base.logprobs import Row
from alignvec.base.prompts import Prompt
from alignvec.data import Record
from alignvec.evaluate.intervals import wilson_interval
from alignvec.evaluate.measurable import Measurable
from alignvec.knobs.setting import SettingLike

_EQUAL = 1e-6  # nats a token


@dataclass(frozen=True)
class Rates:
    """Preference rates over a set of queries.

    Attributes:
        queries: how many.
        rate: level -> share of queries, in [0, 1]; they sum to 1.
        interval: level -> 95% interval of the rate, over queries (Wilson).
        score: level -> mean s(l), natural-log likelihood per token.
    """

    queries: int
    rate: dict[str, float]
    interval: dict[str, tuple[float, float]]
    score: dict[str, float]

    @property
    def top(self) -> list[str]:
        """The levels with the highest rate: one, unless some tie."""
        highest = max(self.rate.values())
        return [level for level, rate in self.rate.items() if rate == highest]


def response_rows(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], levels: Sequence[str]
) -> list[Row]:
    """One row a record: its query and the responses of `levels`, in that order, as tokens."""
    return [
        Prompt(tokenizer, record.prompt).row([record.levels[level] for level in levels])
        for record in records
    ]


def preference_rates(model: PreTrainedModel, rows: Sequence[Row], levels: Sequence[str]) -> Rates:
    """Score every row and count which level wins.

    Args:
        rows: as `response_rows` makes them, one response for each of `levels`.
    """
    return rates_of(np.array(response_scores(model, rows)), levels)


def rates_at(
    model: Measurable, setting: SettingLike, rows: Sequence[Row], levels: Sequence[str]
) -> Rates:
    """The same of a model with its knobs at a setting."""
    return rates_of(np.array(model.scores(rows, [setting] * len(rows))), levels)


def wins(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., L] scores -> [..., L] shares: 1 for the highest, as much for each of those that tie.

    Equal up to rounding: that of a mean of float32 is less than a millionth of a nat.
    """
    tied = scores >= scores.max(-1, keepdims=True) - _EQUAL
    share: NDArray[np.float64] = tied / tied.sum(-1, keepdims=True)
    return share


def rates_of(scores: NDArray[np.float64], levels: Sequence[str]) -> Rates:
    """Count which level wins.

    Args:
        scores: [Q, L], s(l) of each query.
        levels: L names.
    """
    share = wins(scores).mean(0).tolist()
    return Rates(
        queries=len(scores),
        rate=dict(zip(levels, share, strict=True)),
        interval={
            level: wilson_interval(rate, len(scores))
            for level, rate in zip(levels, share, strict=True)
        },
        score={level: float(scores[:, i].mean()) for i, level in enumerate(levels)},
    )
