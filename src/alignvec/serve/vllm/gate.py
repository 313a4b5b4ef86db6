"""In a worker: a factor for each token and column, between the two products of the adapter.

    y = W x + sum_k lambda_k B_k (A_k x) = W x + B (factors * (A x))

The factors lie in one buffer for as long as the engine runs, which graphs and compiled code read
where it is, and are written before every step that has an adapter in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.lora.request import LoRARequest

from alignvec.serve.vllm.request import is_ours, setting_of

_SETTINGS = 4096  # whose strengths are kept as rows


class Factors:
    """What each column of the adapter is multiplied by, token for token.

    Attributes:
        values: [tokens, rank] float32, on the worker's device. Of a token whose request turns
            knobs their strengths, of one with another adapter 1, of one without any 0.
    """

    def __init__(self, told: Mapping[str, Any], tokens: int, device: torch.device) -> None:
        """Args:
        told: see `Bank.to_json`.
        tokens: of a step, at most.
        """
        self._knobs: list[str] = told["knobs"]
        self._columns = torch.tensor(told["columns"], device=device)
        self.values = torch.zeros(tokens, told["rank"], device=device)
        self._row = lru_cache(_SETTINGS)(self._row_of)
        self._others = np.ones(len(self._knobs), np.float32)
        self._none = np.zeros(len(self._knobs), np.float32)

    def write(self, requests: Iterable[LoRARequest | None], counts: np.ndarray) -> None:
        """For the step to come.

        Args:
            requests: the adapter of each request in the batch, in the order of its tokens.
            counts: [requests] tokens of each.
        """
        rows = np.stack([self._strengths(request) for request in requests])
        strengths = torch.from_numpy(rows.repeat(counts, axis=0)).to(self.values.device)
        # Into the buffer itself: a graph that was captured reads there.
        torch.index_select(strengths, 1, self._columns, out=self.values[: len(strengths)])

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
    shard: int  # this worker's place among those that share a layer
    alone: bool  # whether ours is the only adapter there can be

    def add_shrink(self, y: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """y = factors * (A x)."""
        found = super().add_shrink(y, x, *args, **kwargs)
        parts = y if isinstance(y, tuple | list) else (y,)
        for part in parts if found is None else (found,):
            tokens, width = part.shape[-2:]
            part.mul_(self.factors.of(width, self.shard, tokens))
        return found

    def add_lora_logits(self, y: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """y: no knob changes the logits. vLLM's product also counts on one row a request, and those
        of a prompt's log-probabilities are more.
        """
        return y if self.alone else super().add_lora_logits(y, x, *args, **kwargs)


class GatedOnCPU(Gated, PunicaWrapperCPU):
    """On a CPU vLLM gathers an adapter's weights for each token. Where ours is the only one there
    can be, two products of the whole batch do.
    """

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """y += B (factors * (A x)), of each slice."""
        if not self.alone:
            super().add_lora_linear(
                y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, **kwargs
            )
            return
        if self.no_lora:
            return
        x = x.view(-1, x.shape[-1])
        rows = y.view(-1, y.shape[-1])
        factors = self.factors.values[: len(x)].to(x.dtype)
        start = 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            part = rows[:, start : start + width]
            torch.addmm(part, (x @ a[0, 0].T).mul_(factors), b[0, 0].T, out=part)
            start += width


def put(wrapper: PunicaWrapperBase, factors: Factors, shard: int, alone: bool) -> None:
    """Make the products of an engine gated ones."""
    kind = type(wrapper)
    bases = (GatedOnCPU,) if kind is PunicaWrapperCPU else (Gated, kind)
    wrapper.__class__ = type(f"Gated{kind.__name__}", bases, {})
    assert isinstance(wrapper, Gated)
    wrapper.factors, wrapper.shard, wrapper.alone = factors, shard, alone
