"""Gate: vectors kept beside the weights, a strength for each row of the batch.

    y = W x + sum_k lambda_k B_k (A_k x)

The factors of all vectors are stacked into one A and one B a layer, so a layer costs two small
products whatever the number of knobs and of settings. Between the two, the hidden values of each
row are multiplied by the strengths of that row: nothing is copied or switched for a request.

What is not low-rank is linear in the weights all the same. Of any module whose output is affine in
its parameters, f(x; w + lambda d) = f(x; w) + lambda (f(x; d) - f(x; 0)); a twin of the module that
holds d instead of w computes it. Embeddings, norms of every spelling and dense deltas of linear
layers go this way. Whether a module is affine is found out by trying, so no list of architectures
is needed.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from alignvec.errors import AlignvecError
from alignvec.knobs.setting import Wanted, check_setting
from alignvec.vector.delta import LowRank

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from alignvec.vector import AlignmentVector
    from alignvec.vector.delta import Delta

Changes = Mapping[str, Mapping[int, "Delta"]]  # parameter of a module -> knob's number -> change
Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments


class Gate:
    """Vectors on a live model whose strengths differ from row to row of a batch.

    The base is not touched: forward hooks add to what its modules return, and `detach` removes
    them. Where no strength is set the hooks do nothing.

    Attributes:
        strengths: [R, K] float, one row for all of a batch or one for each; None is the base.
    """

    def __init__(self, model: PreTrainedModel, vectors: Mapping[str, AlignmentVector]) -> None:
        """Raises: AlignvecError: a tensor cannot be gated in this model, by its name."""
        self.vectors = dict(vectors)
        self.strengths: torch.Tensor | None = None
        terms = _terms(model, self.vectors)
        self._layouts = {term.columns for _, term in terms}
        self._columns: dict[tuple[int, ...], torch.Tensor] = {}
        self._device = model.device
        self._handles = [
            module.register_forward_hook(partial(self._add, term), with_kwargs=True)
            for module, term in terms
        ]

    def set(self, strengths: torch.Tensor | None) -> None:
        """Turn the knobs for the forward passes that follow.

        Args:
            strengths: [R, K], columns in the order of `vectors`; gradients flow to it. R is 1, or
                the rows of the batch, or a part of it: then each row stands for as many
                neighbours (beams and return sequences, as transformers lays them out). None is the
                base, at the base's speed.
        """
        self.strengths = strengths
        self._columns = {}
        if strengths is not None:
            strengths = strengths.to(self._device)
            self._columns = {layout: strengths[:, list(layout)] for layout in self._layouts}

    @contextmanager
    def rows(self, strengths: torch.Tensor | None) -> Iterator[None]:
        """`set` for the length of a block."""
        before = self.strengths
        self.set(strengths)
        try:
            yield
        finally:
            self.set(before)

    def tensor(self, settings: Sequence[Wanted]) -> torch.Tensor | None:
        """[R, K] float32 of one setting a row; None if all are zero.

        Raises:
            AlignvecError: an unknown knob, or a strength that is not finite.
        """
        import torch

        checked = [check_setting(setting, self.vectors) for setting in settings]
        strengths = torch.tensor([list(setting.values()) for setting in checked])
        return strengths if strengths.any() else None

    def detach(self) -> None:
        """Remove the hooks; the model is what it was before."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _add(
        self,
        term: _Term,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: torch.Tensor,
    ) -> torch.Tensor:
        if self.strengths is None:
            return output
        return term.add((args, kwargs), output, self._columns[term.columns])


class _Term(ABC):
    """What the knobs add to the output of one module.

    Attributes:
        columns: for each column of the strengths that `add` takes, the number of its knob.
    """

    columns: tuple[int, ...]

    @abstractmethod
    def add(self, call: Call, output: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
        """`output` [rows, ..., width] with the change added, of strengths [R, C]."""


@dataclass(frozen=True)
class _Product(_Term):
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
    def of(cls, module: nn.Module, changes: Changes) -> _Product:
        import torch

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
        import torch

        strengths = _spread(strengths, output)
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
class _Twins(_Term):
    """Of any module that is affine in its parameters.

    Attributes:
        twins: for each column the module with that knob's change in the place of its weights.
        origin: the module with zeros instead; None if it returns zeros then.
    """

    columns: tuple[int, ...]
    twins: Sequence[nn.Module]
    origin: nn.Module | None

    @classmethod
    def of(cls, module: nn.Module, changes: Changes) -> _Twins:
        import torch

        nothing = {
            part: None if parameter is None else torch.zeros_like(parameter)
            for part, parameter in module._parameters.items()
        }
        columns = sorted({knob for by_knob in changes.values() for knob in by_knob})
        twins = [
            _holding(
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
        return cls(tuple(columns), twins, _holding(module, nothing))

    def add(self, call: Call, output: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
        args, kwargs = call
        origin = 0 if self.origin is None else self.origin(*args, **kwargs)
        for twin, strength in zip(self.twins, strengths.unbind(1), strict=True):
            by = _spread(strength[:, None], output, may_widen=True).to(output.dtype)
            output = output + by * (twin(*args, **kwargs) - origin)
        return output

    def proven(self, module: nn.Module, call: Call, name: str) -> _Twins:
        """The same, once the module has been seen to be affine in its parameters.

        Raises:
            AlignvecError: it is not; `name` is that of a tensor that would be changed.
        """
        import torch

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
                    _holding(module, {**module._parameters, **values})(*args, **kwargs)
                    for values in (own, swing, moved)
                )
                error = float((here + away - origin - there).abs().max())
            affine = error <= 0.05 * float(there.abs().max())
        except (RuntimeError, TypeError, ValueError, AttributeError):
            affine = False  # it returns no tensor, or does not run with other weights
        if not affine:
            raise _refusal(name, f"{type(module).__name__} is not affine in it")
        return replace(self, origin=self.origin if origin.any() else None)


def _holding(module: nn.Module, parameters: dict[str, Any]) -> nn.Module:
    """A copy of a module with other values for its parameters and without its hooks."""
    twin = copy.copy(module)
    twin._parameters = parameters
    twin._forward_hooks = OrderedDict()
    return twin


def _spread(strengths: torch.Tensor, output: torch.Tensor, may_widen: bool = False) -> torch.Tensor:
    """[R, C] -> [rows, 1, ..., C] for an output [rows, ..., width].

    A module may see the tokens of all rows one after another: each row is then as many neighbours.

    Args:
        may_widen: an output of one row may become as many as there are strengths: positions are
            embedded once for the whole batch.

    Raises:
        AlignvecError: the rows are no multiple of the strengths.
    """
    rows, wanted = len(strengths), len(output)
    if rows not in (1, wanted) and not (may_widen and wanted == 1):
        if wanted % rows:
            raise AlignvecError(f"{rows} settings for a batch of {wanted}")
        strengths = strengths.repeat_interleave(wanted // rows, 0)
    return strengths.view(len(strengths), *(1,) * (output.ndim - 2), strengths.shape[1])


def _terms(
    model: PreTrainedModel, vectors: Mapping[str, AlignmentVector]
) -> list[tuple[nn.Module, _Term]]:
    """What is added to the output of each module that holds a parameter that a vector changes."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    changes = {module: _changes(module, names, vectors) for module in model.modules()}
    changes = {module: found for module, found in changes.items() if any(found.values())}
    # One tensor of each module, for messages.
    asking = {
        module: next(names[module._parameters[part]] for part, by_knob in found.items() if by_knob)
        for module, found in changes.items()
    }
    calls = _calls(model, asking)
    terms: list[tuple[nn.Module, _Term]] = []
    for module, found in changes.items():
        products, rest = _split(module, found)
        if any(products.values()):
            terms.append((module, _Product.of(module, products)))
        if any(rest.values()):
            twins = _Twins.of(module, rest)
            terms.append((module, twins.proven(module, calls[module], asking[module])))
    return terms


def _changes(
    module: nn.Module, names: Mapping[Any, str], vectors: Mapping[str, AlignmentVector]
) -> Changes:
    """What the vectors change in a module's own parameters. A tied one is that of two modules."""
    return {
        part: {
            number: vector.deltas[names[parameter]]
            for number, vector in enumerate(vectors.values())
            if names[parameter] in vector.deltas
        }
        for part, parameter in module._parameters.items()
        if parameter is not None
    }


def _split(module: nn.Module, changes: Changes) -> tuple[Changes, Changes]:
    """The changes that `_Product` can take, and the others."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, nn.Linear | Conv1D):
        return {}, changes
    low_rank = {k: d for k, d in changes["weight"].items() if isinstance(d, LowRank)}
    dense = {k: d for k, d in changes["weight"].items() if k not in low_rank}
    return {**changes, "weight": low_rank}, {"weight": dense}


def _calls(model: PreTrainedModel, names: Mapping[nn.Module, str]) -> dict[nn.Module, Call]:
    """How each module is called in a forward pass, over two rows of seven tokens.

    Raises:
        AlignvecError: it is not called, or not with the rows of the batch in front.
    """
    import torch

    rows, tokens = 2, 7
    calls: dict[nn.Module, Call] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls[module] = (args, kwargs)
        if isinstance(output, torch.Tensor) and len(output) not in (1, rows, rows * tokens):
            raise _refusal(names[module], f"{type(module).__name__} does not see rows")

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in names]
    training = model.training
    try:
        with torch.no_grad():
            ids = torch.arange(rows * tokens, device=model.device).view(rows, tokens)
            model.eval()(input_ids=ids, use_cache=False)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    for module, name in names.items():
        if module not in calls:
            raise _refusal(name, f"{type(module).__name__} is not called on its own")
    return calls


def _refusal(name: str, why: str) -> AlignvecError:
    return AlignvecError(f"{name} cannot be gated: {why}; fold the vector (mode 'fold')")
