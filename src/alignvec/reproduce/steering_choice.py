"""Where to steer and how hard: tried on validation records, by likelihood alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignvec.data import Record
from alignvec.errors import NoNumbersError
from alignvec.evaluate.rates import wins
from alignvec.progress import progress
from alignvec.reproduce.steering import Steered

DEPTHS = (0.25, 0.5, 0.75)  # shares of the layers
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
_LOST = 0.25  # nats a token: a perplexity 1.3 times that of the base


@dataclass(frozen=True)
class Choice:
    """A vector, its place, and how hard it is turned.

    Attributes:
        vector: [H].
        layer: after which it is added.
        strength: what counts as 1 from here on.
        spread: rate of the high level at `strength` minus that at `-strength`, of the two levels.
        margin: the same of the mean difference of their scores, nats a token.
    """

    vector: torch.Tensor
    layer: int
    strength: float
    spread: float
    margin: float


def choose(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    low: str,
    high: str,
    vector_at: Callable[[int], torch.Tensor],
    depths: Sequence[float] = DEPTHS,
    strengths: Sequence[float] = STRENGTHS,
) -> Choice:
    """The layer and strength that move the rate of `high` over `low` farthest between both ends.

    A strength that leaves no numbers, or makes the text it is for unlikely, breaks the model:
    beside the lowest of each layer, those count at whose ends the wanted level's responses are at
    most .25 nats a token less likely than to the base. Of equal spreads the larger margin is taken.

    Args:
        records: some for validation; the vectors are of others.
        vector_at: a vector for a layer.

    Raises:
        NoNumbersError: none of them leaves any.
    """
    depth = model.config.get_text_config().num_hidden_layers
    layers = list(dict.fromkeys(min(depth - 1, int(depth * share)) for share in depths))

    def scores(vector: torch.Tensor, layer: int, strength: float) -> NDArray[np.float64]:
        return Steered(model, tokenizer, vector, layer, strength).scores(records, [low, high])

    tried: list[Choice] = []
    with progress("choosing a layer", "setting", len(layers) * len(strengths)) as bar:
        base = scores(vector_at(layers[0]), layers[0], 0.0).mean(0)
        for layer in layers:
            vector = vector_at(layer)
            for strength in sorted(strengths):
                bar.update()
                try:
                    ends = [scores(vector, layer, sign * strength) for sign in (-1, 1)]
                except NoNumbersError as error:
                    why = error
                    continue
                wanted = np.array([end[:, level].mean() for level, end in enumerate(ends)])
                below, above = (wins(end)[:, 1].mean() for end in ends)
                away, towards = ((end[:, 1] - end[:, 0]).mean() for end in ends)
                one = Choice(vector, layer, strength, above - below, towards - away)
                lost = bool((wanted < base - _LOST).any())
                if not lost or strength == min(strengths):
                    tried.append(one)
    if not tried:
        raise why
    return max(tried, key=lambda one: (one.spread, one.margin))
