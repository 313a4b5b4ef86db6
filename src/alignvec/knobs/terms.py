"""Terms: what the knobs add to the output of one module, with a strength for each row.

The factors of all vectors are stacked into one A and one B a layer, so a layer costs two small
products whatever the number of knobs and of settings. Between the two, the hidden values of each
row are multiplied by the strengths of that row: nothing is copied or switched for a request.

What is not low-rank is linear in the weights all the same. Of any module whose output is affine in
its parameters, f(x; w + lambda d) = f(x; w) + lambda (f(x; d) - f(x; 0)); a copy of the module that
holds d instead of w computes it. Embeddings, norms of every spelling and dense deltas of linear
layers go this way. Whether a module is affine is found out by trying, so no list of architectures
is needed.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from alignvec.base.rows import per_row
from alignvec.errors import AlignvecError
from alignvec.vector.delta import Delta, LowRank

Changes = Mapping[str, Mapping[int, Delta]]  # parameter of a module -> knob's number -> change
Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments


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
        hidden = torch.nn.functional.linear(call[0][0], self.a).mul_(strengths[..., :rank])
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
    def of(cls, module: nn.Module, changes: Changes) -> AffineCopies:
        nothing = {
            part: None if parameter is None else torch.zeros_like(parameter)
            for part, parameter in module._parameters.items()
        }
        columns = sorted({knob for by_knob in changes.values() for knob in by_knob})
        copies = [
            _with_parameters(
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
        return cls(tuple(columns), copies, _with_parameters(module, nothing))

    def add(self, call: Call, output: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
        args, kwargs = call
        origin = 0 if self.origin is None else self.origin(*args, **kwargs)
        for copied, strength in zip(self.copies, strengths.unbind(1), strict=True):
            by = per_row(strength[:, None], output, may_widen=True).to(output.dtype)
            output = output + by * (copied(*args, **kwargs) - origin)
        return output

    def verified(self, module: nn.Module, call: Call, name: str) -> AffineCopies:
        """The same, once the module has been seen to be affine in its parameters.

        Raises:
            AlignvecError: it is not; `name` is that of a tensor that would be changed.
        """
        args, kwargs = call
        own = {part: p for part, p in module._parameters.items() if p is not None}
        swing = {
            part: torch.arange(p.numel(), device=p.device).cos().view_as(p).to(p)
            * p.detach().abs().max().clamp(min=0.1)
            for part, p in own.items()
        }
        moved = {part: own[part] + swing[part] for part in own}
        assert self.origin is not None
        try:
            with torch.no_grad():
                origin = self.origin(*args, **kwargs)
                here, away, there = (
                    _with_parameters(module, {**module._parameters, **values})(*args, **kwargs)
                    for values in (own, swing, moved)
                )
                error = float((here + away - origin - there).abs().max())
            affine = error <= 0.05 * float(there.abs().max())
        except (RuntimeError, TypeError, ValueError, AttributeError):
            affine = False  # it returns no tensor, or does not run with other weights
        if not affine:
            raise not_gateable(name, f"{type(module).__name__} is not affine in it")
        return replace(self, origin=self.origin if origin.any() else None)


def _with_parameters(module: nn.Module, parameters: dict[str, Any]) -> nn.Module:
    """A copy of a module with other values for its parameters and without its hooks."""
    copied = copy.copy(module)
    copied._parameters = parameters
    copied._forward_hooks = OrderedDict()
    return copied


def not_gateable(name: str, why: str) -> AlignvecError:
    """The refusal of a tensor, by its name."""
    return AlignvecError(f"{name} cannot be gated: {why}; fold the vector (mode 'fold')")
