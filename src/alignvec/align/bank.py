"""The knobs of a training, side by side in one adapter, turned row by row.

    y = W x + B diag(lambda) A x

A is [K r, in] and B [out, K r]: each knob has r of the columns between them, which are multiplied
by its strength in that row. So K knobs cost one product, and PEFT and the trainer see one adapter.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from alignvec.base.rows import per_row
from alignvec.errors import AlignvecError
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import LowRank

_ADAPTER = "default"  # what PEFT calls the only one
_MODEL = "base_model.model"  # where it has the model that the adapter is on


class Bank:
    """Knobs on a model with a LoRA adapter that holds the columns of all of them.

    Attributes:
        knobs: their names, in the order of the columns.
        layers: those of the model that have the columns, by their names there.
    """

    def __init__(self, model: PeftModel, knobs: Sequence[str], ranks: Sequence[int]) -> None:
        self.model, self.knobs = model, list(knobs)
        ends = list(itertools.accumulate(ranks))
        self._span = {
            knob: slice(end - rank, end) for knob, rank, end in zip(knobs, ranks, ends, strict=True)
        }
        self._knob_of_column = torch.repeat_interleave(
            torch.arange(len(ranks)), torch.tensor(ranks)
        )
        self._strengths: torch.Tensor | None = None
        self.layers: Mapping[str, Any] = {
            name: module
            for name, module in model.get_base_model().named_modules()
            if isinstance(module, LoraLayer)
        }
        for layer in self.layers.values():
            layer.lora_A[_ADAPTER].register_forward_hook(self._turn)

    @contextmanager
    def turned(self, strengths: torch.Tensor) -> Iterator[None]:
        """Rows of the forward passes in this block have strengths [rows, K]."""
        columns = self._knob_of_column.to(strengths.device)
        self._strengths = strengths[:, columns]
        try:
            yield
        finally:
            self._strengths = None

    def keep(self, knob: str, vector: AlignmentVector) -> None:
        """Fill a knob's columns with a finished vector, which training then leaves as it is.

        Raises:
            AlignvecError: it is not low-rank, or changes what this adapter does not reach.
        """
        layers, span = self.layers, self._span[knob]
        for name, delta in vector.deltas.items():
            layer = layers.get(name.removesuffix(".weight"))
            if not isinstance(delta, LowRank) or layer is None:
                raise AlignvecError(
                    f"knob '{knob}' changes {name} in a way that cannot be trained beside; "
                    "compress the vector first"
                )
            a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            with torch.no_grad():
                a[span][: delta.rank] = delta.a.to(a)
                b[:, span][:, : delta.rank] = delta.b.to(b) / layer.scaling[_ADAPTER]
        for layer in layers.values():
            layer.lora_A[_ADAPTER].weight.register_hook(lambda grad: _zeroed(grad, 0, span))
            layer.lora_B[_ADAPTER].weight.register_hook(lambda grad: _zeroed(grad, 1, span))

    def rank(self, knob: str) -> int:
        """How many columns a knob has."""
        return self._span[knob].stop - self._span[knob].start

    def look(self, knob: str, layer: str, directions: torch.Tensor) -> None:
        """Let a knob's A in a layer be `directions` [r, in]."""
        weight = self.layers[layer].lora_A[_ADAPTER].weight
        with torch.no_grad():
            weight[self._span[knob]] = directions.to(weight)

    def keep_directions(self) -> None:
        """Leave every knob's A as it is in training."""
        for layer in self.layers.values():
            layer.lora_A[_ADAPTER].weight.requires_grad_(False)

    def factors(
        self, knob: str, state: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, LowRank]:
        """Weight name -> B A of one knob, its scaling multiplied in.

        Args:
            state: the model's weights by name, where they are not whole in the model.
        """
        span, state = self._span[knob], state or self.model.state_dict()
        return {
            f"{name}.weight": LowRank(
                state[f"{_MODEL}.{name}.lora_A.{_ADAPTER}.weight"][span].clone(),
                state[f"{_MODEL}.{name}.lora_B.{_ADAPTER}.weight"][:, span]
                * layer.scaling[_ADAPTER],
                transposed=bool(layer.fan_in_fan_out),
            )
            for name, layer in self.layers.items()
        }

    def _turn(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        if self._strengths is None:
            return output
        return output * per_row(self._strengths, output)


def _zeroed(grad: torch.Tensor, dim: int, span: slice) -> torch.Tensor:
    """The gradient without a part, which Adam then leaves where it is."""
    grad = grad.clone()
    grad.narrow(dim, span.start, span.stop - span.start).zero_()
    return grad


def rank_of(vector: AlignmentVector) -> int:
    """The largest rank among a vector's tensors; 0 if it has no factors."""
    ranks = (delta.rank for delta in vector.deltas.values() if isinstance(delta, LowRank))
    return max(ranks, default=0)
