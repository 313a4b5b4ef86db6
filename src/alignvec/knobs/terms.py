"""Terms: what the knobs add to the output of one module, with a strength for each row.

Low-rank changes of linear layers are `products`. What is not low-rank is linear in the weights all
the same. Of any module whose output is affine in its parameters,
f(x; w + lambda d) = f(x; w) + lambda (f(x; d) - f(x; 0)); a copy of the module that holds d instead
of w computes it. Embeddings, norms of every spelling and dense deltas of linear layers go this way.
Whether a module is affine is found out by `trial`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from alignvec.base.rows import per_row
from alignvec.knobs.trial import Call, with_parameters
from alignvec.vector.delta import Delta

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
