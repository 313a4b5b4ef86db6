"""In a worker: a factor for each token and column, between the two products of the adapter.

    y = W x + sum_k lambda_k B_k (A_k x) = W x + B (factors * (A x))

The factors lie in one buffer for as long as the engine runs, which graphs and compiled code read
where it is, and are written before every step that has an adapter in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.lora.request import LoRARequest

from alignvec.serve.vllm.request import is_ours, setting_of

_SETTINGS = 4096  # whose strengths are kept as rows


class Factors:
    """What each column of the adapter is multiplied by, token for token.

    Attributes:
        values: [tokens, columns]. Of a token whose request turns knobs their strengths, of one
            with another adapter 1, of one without any 0.
        used: [1] int64, on the CPU: whether any request of the step has an adapter.
    """

    def __init__(
        self, knobs: Sequence[str], columns: Sequence[int], tokens: int, like: torch.Tensor
    ) -> None:
        """Args:
        columns: of each column the number of its knob.
        tokens: of a step, at most.
        like: of what dtype and on what device they are.
        """
        self._knobs = list(knobs)
        self._columns = np.array(columns)  # here: what lies on a device, vLLM may put to sleep
        self.values = like.new_zeros(tokens, len(columns))
        self.used = torch.zeros(1, dtype=torch.int64)
        self._row = lru_cache(_SETTINGS)(self._row_of)
        self._others = np.ones(len(knobs), np.float32)
        self._none = np.zeros(len(knobs), np.float32)

    def write(self, requests: Sequence[LoRARequest | None], counts: np.ndarray) -> None:
        """For the step to come.

        Args:
            requests: the adapter of each request in the batch, in the order of its tokens.
            counts: [requests] tokens of each.
        """
        self.used[0] = any(requests)
        if not self.used:
            return
        rows = np.stack([self._strengths(request) for request in requests])[:, self._columns]
        factors = torch.from_numpy(rows.repeat(counts, axis=0))
        self.values[: len(factors)].copy_(factors)  # into it: a graph that was captured reads there

    def of(self, width: int, rank: int, tokens: int) -> torch.Tensor:
        """[tokens, width]: all columns, or those that a worker holds of them (fully sharded)."""
        start = width * rank if width < self.values.shape[1] else 0
        return self.values[:tokens, start : start + width]

    def _strengths(self, request: LoRARequest | None) -> np.ndarray:
        if request is None:
            return self._none
        return self._row(request.lora_path) if is_ours(request) else self._others

    def _row_of(self, path: str) -> np.ndarray:
        setting = setting_of(path)
        return np.array([setting.get(knob, 0.0) for knob in self._knobs], np.float32)


class Gated(PunicaWrapperBase):
    """vLLM's products of adapters, with the factors between them."""

    factors: Factors
    shard: int

    def add_shrink(self, y: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """y = factors * (A x)."""
        found = super().add_shrink(y, x, *args, **kwargs)
        parts = y if isinstance(y, tuple | list) else (y,)
        for part in parts if found is None else (found,):
            tokens, width = part.shape[-2:]
            part.mul_(self.factors.of(width, self.shard, tokens))
        return found


def products_of(manager: Any) -> tuple[set[Any], int]:
    """What computes an engine's adapters, and of how many tokens in a step at most."""
    wrappers = set(manager.punica_wrapper_mapping.values())
    return wrappers, max(len(wrapper._token_lora_indices) for wrapper in wrappers)


def put(manager: Any, told: Mapping[str, Any], like: torch.Tensor, shard: int) -> Factors:
    """Make the products of an engine gated ones.

    Args:
        like: a tensor in float32, as vLLM's kernels have what is between the products.
        shard: the worker's place among those that share a layer.
    """
    wrappers, tokens = products_of(manager)
    factors = Factors(told["knobs"], told["columns"], tokens, like)
    for wrapper in wrappers:
        kind = type(wrapper)
        wrapper.__class__ = type(f"Gated{kind.__name__}", (Gated, kind), {})
        wrapper.factors, wrapper.shard = factors, shard
    return factors
