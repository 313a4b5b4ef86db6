"""Products: what low-rank changes add to linear layers, with a strength for each row.

The factors of all vectors are stacked into one A and one B a layer, so a layer costs two small
products whatever the number of knobs and of settings. Between the two, the hidden values of each
row are multiplied by the strengths of that row: nothing is copied or switched for a request.
Layers that read the same tensor, as q, k and v do, and gate and up, share the first product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import nn

from alignvec.base.rows import per_row
from alignvec.knobs.terms import Term
from alignvec.knobs.trial import Call, first_argument
from alignvec.vector.delta import LowRank


class Factor:
    """What a product multiplies by.

    On a CPU PyTorch leaves products of half precision to oneDNN. To start it takes as long as to
    compute some hundred thousand multiplications in float32 (15 microseconds on one machine), so a
    factor that may have fewer is kept in float32 as well.
    """

    _FEW = 2**17

    def __init__(self, factor: torch.Tensor) -> None:
        """Args: factor: [in, out]."""
        slow = factor.device.type == "cpu" and factor.dtype.itemsize < 4
        self._factor = factor
        self._exact = factor.float() if slow and factor.numel() <= self._FEW else factor

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The factor for a product with x [..., in], whose numbers may be of another dtype."""
        return self._exact if x.numel() * self._factor.shape[1] <= self._FEW else self._factor


@dataclass(frozen=True)
class Factors:
    """The low-rank changes of one linear layer, by all vectors.

    Attributes:
        columns: [C], of each column the number of its knob.
        a: [C, in], the factors A one below the other.
        b: [C, out], the factors B, transposed.
    """

    columns: tuple[int, ...]
    a: torch.Tensor
    b: torch.Tensor

    @classmethod
    def of(cls, layer: nn.Module, changes: Mapping[int, LowRank]) -> Factors:
        """Args: changes: of the layer's weight, by the number of the knob; at least one."""
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        stored_in_out = not isinstance(layer, nn.Linear)  # Conv1D
        columns, a, b = [], [], []
        for knob, delta in changes.items():
            turned = delta.transposed != stored_in_out
            a.append((delta.b.T if turned else delta.a).to(weight))
            b.append((delta.a if turned else delta.b.T).to(weight))
            columns += [knob] * delta.rank
        return cls(tuple(columns), torch.cat(a), torch.cat(b))


class Reading:
    """A x of layers that are handed the same x: computed for the first of them in a forward pass,
    and kept until the last has had it.

    Attributes:
        columns: [C] of the factors of all layers.
    """

    def __init__(self, factors: Sequence[Factors]) -> None:
        self.columns = tuple(knob for one in factors for knob in one.columns)
        self._a = Factor(torch.cat([one.a for one in factors]).T)
        ends = accumulate((len(one.columns) for one in factors), initial=0)
        self._parts = [slice(*both) for both in pairwise(ends)]
        self._left = 0  # layers that have not had it
        self._of: tuple[torch.Tensor, torch.Tensor] | None = None
        self._hidden: torch.Tensor | None = None

    def hidden(self, layer: int, x: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
        """strengths * (A x) of one of the layers, [rows, ..., c].

        Args:
            x: [rows, ..., in].
            strengths: [R, C].
        """
        if self._of is None or x is not self._of[0] or strengths is not self._of[1]:
            a = self._a.of(x)
            hidden = x.to(a.dtype) @ a
            # In place, and so computed in float32: a strength is never rounded to bfloat16.
            self._hidden = hidden.mul_(per_row(strengths, hidden))
            self._of, self._left = (x, strengths), len(self._parts)
        assert self._hidden is not None
        hidden = self._hidden[..., self._parts[layer]]
        self._left -= 1
        if not self._left:
            self._of = self._hidden = None
        return hidden


class Product(Term):
    """Of a linear layer: the low-rank changes of its weight."""

    def __init__(self, factors: Factors, reading: Reading, layer: int) -> None:
        """Args: layer: its place among those of the reading."""
        self.columns = reading.columns
        self._reading, self._layer = reading, layer
        self._b = Factor(factors.b)

    def add(self, call: Call, output: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
        hidden = self._reading.hidden(self._layer, first_argument(call), strengths)
        hidden, flat = hidden.flatten(0, -2), output.flatten(0, -2)
        b = self._b.of(hidden)
        hidden = hidden.to(b.dtype)
        if b.dtype == flat.dtype:
            flat = torch.addmm(flat, hidden, b)
        else:
            flat = (flat + hidden @ b).to(flat.dtype)
        return flat.view(output.shape)


@dataclass(frozen=True)
class Bias(Term):
    """Of a linear layer: the changes of its bias.

    Attributes:
        bias: [C, out].
    """

    columns: tuple[int, ...]
    bias: torch.Tensor

    def add(self, call: Call, output: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
        return output + per_row(strengths, output).to(output.dtype) @ self.bias
