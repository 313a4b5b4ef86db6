"""Terms: what the knobs add to the output of one module, with a strength for each row.

The factors of all vectors are stacked into one A and one B a layer, so a layer costs two small
products whatever the number of knobs and of settings. Between the two, the hidden values of each
row are multiplied by the strengths of that row: nothing is copied or switched for a request.

What is not low-rank is linear in the weights all the same. Of any module whose output is affine in
its parameters, f(x; w + lambda d) = f(x; w) + lambda (f(x; d) - f(x; 0)); a copy of the module that
holds d instead of w computes it. Embeddings, norms of every spelling and dense deltas of linear
layers go this way. Whether a module is affine is found out by `trial`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from alignvec.base.rows import per_row
from alignvec.knobs.trial import Call, with_parameters
from alignvec.vector.delta import Delta, LowRank

Changes = Mapping[str, Mapping[int, Delta]]  # parameter of a module -> knob's number -> change


class Term(ABC):
    """What the knobs add to the output of one module.

    Attributes:
        columns: for each column of the strengths that `add` takes, the number of its knob.
    """

    columns: tuple[int, ...]

    @abstractmethod
    def add(self, call: Call, output: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
        """`output` [rows, ..., width] with the change added, of strengths [R, C]."""


@dataclass(frozen=True)
class Product(Term):
    """Of a linear layer: the low-rank changes of its weight, and the changes of its bias.

    Attributes:
        columns: [C] of the factors, then [D] of the biases.
        a: [C, in], the factors A of all knobs one below the other.
        b: [C, out], the factors B, transposed.
        bias: [D, out].
    """

    columns: tuple[int, ...]
    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(cls, module: nn.Module, changes: Changes) -> Product:
        weight, biases = module.weight, changes.get("bias", {})
        assert isinstance(weight, torch.Tensor)
        stored_in_out = not isinstance(module, torch.nn.Linear)  # Conv1D
        width_in, width_out = weight.shape if stored_in_out else weight.shape[::-1]
        columns, a, b = [], [weight.new_empty(0, width_in)], [weight.new_empty(0, width_out)]
        for knob, delta in changes["weight"].items():
            assert isinstance(delta, LowRank)
            turned = delta.transposed != stored_in_out
            a.append((delta.b.T if turned else delta.a).to(weight))
            b.append((delta.a if turned else delta.b.T).to(weight))
            columns += [knob] * delta.rank
        rows = [delta.dense().to(weight) for delta in biases.values()]
        bias = torch.stack(rows) if rows else weight.new_empty(0, width_out)
        return cls((*columns, *biases), torch.cat(a), torch.cat(b), bias)

    def add(self, call: Call, output: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
        strengths = per_row(strengths, output)
        rank = len(self.a)
        if len(self.bias):
            output = output + strengths[..., rank:].to(output.dtype) @ self.bias
        if not rank:
            return output
        # In place, and so computed in float32: a strength is never rounded to bfloat16.
        args, kwargs = call
        inputs = args[0] if args else next(iter(kwargs.values()))
        hidden = torch.nn.functional.linear(inputs, self.a).mul_(strengths[..., :rank])
        flat = torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), self.b)
        return flat.view(output.shape)


@dataclass(frozen=True)
class AffineCopies(Term):
    """Of any module that is affine in its parameters.

    Attributes:
        copies: for each column the module with that knob's change in the place of its weights.
        origin: the module with zeros instead; None if it returns zeros then.
    """

    columns: tuple[int, ...]
    copies: Sequence[nn.Module]
    origin: nn.Module | None

    @classmethod
    def of(cls, module: nn.Module, changes: Changes, call: Call) -> AffineCopies:
        """Args: call: of the module, as it was seen."""
        nothing = {
            part: None if parameter is None else torch.zeros_like(parameter)
            for part, parameter in module._parameters.items()
        }
        columns = sorted({knob for by_knob in changes.values() for knob in by_knob})
        copies = [
            with_parameters(
                module,
                nothing
                | {
                    part: by_knob[knob].dense().to(module._parameters[part])
                    for part, by_knob in changes.items()
                    if knob in by_knob
                },
            )
            for knob in columns
        ]
        origin, (args, kwargs) = with_parameters(module, nothing), call
        with torch.no_grad():
            returns_zeros = not origin(*args, **kwargs).any()
        return cls(tuple(columns), copies, None if returns_zeros else origin)

    def add(self, call: Call, output: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
        args, kwargs = call
        origin = 0 if self.origin is None else self.origin(*args, **kwargs)
        for copied, strength in zip(self.copies, strengths.unbind(1), strict=True):
            by = per_row(strength[:, None], output, may_widen=True).to(output.dtype)
            output = output + by * (copied(*args, **kwargs) - origin)
        return output
