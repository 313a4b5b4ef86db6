"""Rotary positions that are scaled by the longest row of a forward pass.

Beyond a length LongRoPE takes other factors for every token of the pass, and dynamic NTK scales
by that very length, so a row has its own numbers only among rows like it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

_STEPWISE = "longrope"
_BY_LENGTH = "dynamic"  # also of kinds with more words in their names


def scaled_beyond(model: PreTrainedModel) -> float:
    """The length of a row from which on its numbers depend on that length."""
    return min((limit for _, limit in _scalings(model)), default=math.inf)


def alike(model: PreTrainedModel, lengths: Sequence[int]) -> list[list[int]]:
    """The indices of rows of some lengths, those together that may share a forward pass."""
    scalings = list(_scalings(model))
    if not scalings:
        return [list(range(len(lengths)))] if lengths else []

    def key(index: int) -> list[int]:
        length = lengths[index]
        return [
            0 if length <= limit else length if _BY_LENGTH in kind else 1
            for kind, limit in scalings
        ]

    indices = sorted(range(len(lengths)), key=key)
    return [list(group) for _, group in itertools.groupby(indices, key)]


def forget_lengths(model: PreTrainedModel) -> None:
    """Dynamic NTK goes on scaling by the longest row it ever saw, until it sees a short one."""
    if not any(_BY_LENGTH in kind for kind, _ in _scalings(model)):
        return
    for module in model.modules():
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, 0)  # computed anew at the next pass


def _scalings(model: PreTrainedModel) -> Iterator[tuple[str, int]]:
    """(kind, length up to which nothing is scaled) of the positions, also layer by layer."""
    config: Any = model.config.get_text_config()
    told = getattr(config, "rope_parameters", None)
    if not isinstance(told, Mapping):
        return
    whole = getattr(config, "max_position_embeddings", None)
    for one in (told, *told.values()):
        kind = one.get("rope_type", one.get("type")) if isinstance(one, Mapping) else None
        if isinstance(kind, str) and (kind == _STEPWISE or _BY_LENGTH in kind):
            own = one.get("original_max_position_embeddings")
            limits = [int(limit) for limit in (own, whole) if isinstance(limit, int | float)]
            yield kind, min(limits, default=0)
