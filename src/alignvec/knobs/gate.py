"""Gate: vectors kept beside the weights, a strength for each row of the batch.

    y = W x + sum_k lambda_k B_k (A_k x)

Forward hooks add to what each module returns (`terms`); which term a module gets is planned once,
when the knobs are put on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from alignvec.base.wrappers import unwrapped
from alignvec.knobs.live import on_model
from alignvec.knobs.products import Bias, Factors, Product, Reading
from alignvec.knobs.setting import SettingLike, check_setting
from alignvec.knobs.terms import AffineCopies, Changes, Term
from alignvec.knobs.trial import (
    Seen,
    check_affine,
    is_linear,
    not_gateable,
    observed,
    reading_alike,
)
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import Delta, LowRank


class Gate:
    """Vectors on a live model whose strengths differ from row to row of a batch.

    The base is not touched: forward hooks add to what its modules return, and `detach` removes
    them. Where no strength is set the hooks do nothing.

    Attributes:
        strengths: [R, K] float, one row for all of a batch or one for each; None is the base.
    """

    def __init__(self, model: PreTrainedModel, vectors: Mapping[str, AlignmentVector]) -> None:
        """Raises: AlignvecError: a tensor cannot be gated in this model, by its name."""
        self.vectors = on_model(vectors, model)
        self.strengths: torch.Tensor | None = None
        terms = _plan(model, self.vectors)
        self._layouts = {term.columns for _, term in terms}
        self._columns: dict[tuple[int, ...], torch.Tensor] = {}
        self._device = model.device
        self._handles = [
            module.register_forward_hook(partial(self._add, term), with_kwargs=True)
            for module, term in terms
        ]
        _forget_compiled()

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

    def tensor(self, settings: Sequence[SettingLike]) -> torch.Tensor | None:
        """[R, K] float32 of one setting a row; None if all are zero.

        Raises:
            AlignvecError: an unknown knob, or a strength that is not finite.
        """
        checked = [check_setting(setting, self.vectors) for setting in settings]
        strengths = torch.tensor([list(setting.values()) for setting in checked])
        return strengths if strengths.any() else None

    def detach(self) -> None:
        """Remove the hooks; the model is what it was before."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.set(None)
        _forget_compiled()

    def _add(
        self,
        term: Term,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: torch.Tensor,
    ) -> torch.Tensor:
        if self.strengths is None:
            return output
        return term.add((args, kwargs), output, self._columns[term.columns])


def _forget_compiled() -> None:
    """What was compiled before a hook was added or removed would run on without looking for it."""
    if "torch._dynamo" in sys.modules:  # nothing was compiled where it was never imported
        torch.compiler.reset()


def _plan(
    model: PreTrainedModel, vectors: Mapping[str, AlignmentVector]
) -> list[tuple[nn.Module, Term]]:
    """What is added to the output of each module that holds a parameter that a vector changes."""
    names = {parameter: unwrapped(name) for name, parameter in model.named_parameters()}
    changes = {
        module: _changes(module, unwrapped(f"{prefix}."), names, vectors)
        for prefix, module in model.named_modules()
    }
    changes = {module: found for module, found in changes.items() if any(found.values())}
    buffers = {unwrapped(name) for name, _ in model.named_buffers()}
    for name in (name for vector in vectors.values() for name in vector.deltas):
        if name in buffers:
            raise not_gateable(name, "it is no parameter")
    # One tensor of each module, for messages.
    first = {
        module: next(names[module._parameters[part]] for part, by_knob in found.items() if by_knob)
        for module, found in changes.items()
    }
    seen = observed(model, first)
    terms: list[tuple[nn.Module, Term]] = []
    factors: dict[nn.Module, Factors] = {}
    for module, found in changes.items():
        low_rank, biases, rest = _split(module, found, seen[module])
        if low_rank:
            factors[module] = Factors.of(module, low_rank)
        if biases:
            rows = torch.stack([delta.dense().to(module.weight) for delta in biases.values()])
            terms.append((module, Bias(tuple(biases), rows)))
        if any(rest.values()):
            check_affine(module, seen[module], first[module])
            call, _ = seen[module][0]
            terms.append((module, AffineCopies.of(module, rest, call)))
    for alike in reading_alike({layer: seen[layer] for layer in factors}):
        reading = Reading([factors[layer] for layer in alike])
        terms += [
            (layer, Product(factors[layer], reading, place)) for place, layer in enumerate(alike)
        ]
    return terms


def _changes(
    module: nn.Module,
    prefix: str,
    names: Mapping[Any, str],
    vectors: Mapping[str, AlignmentVector],
) -> Changes:
    """What the vectors change in a module's own parameters; `prefix` is its name with a dot.

    A tied one is that of two modules: it moves both, and what a vector has for the second by its
    own name moves that one on top.
    """
    found: dict[str, dict[int, Delta]] = {}
    for part, parameter in module._parameters.items():
        if parameter is None:
            continue
        moved = dict.fromkeys((names[parameter], f"{prefix}{part}"))
        found[part] = {}
        for number, vector in enumerate(vectors.values()):
            if deltas := [vector.deltas[name] for name in moved if name in vector.deltas]:
                found[part][number] = reduce(add, deltas)
    return found


def _split(
    module: nn.Module, changes: Changes, seen: Seen
) -> tuple[dict[int, LowRank], Mapping[int, Delta], Changes]:
    """The changes that `Product` and `Bias` can take, and the others."""
    if not is_linear(module, seen):
        return {}, {}, changes
    low_rank = {k: d for k, d in changes["weight"].items() if isinstance(d, LowRank)}
    dense = {k: d for k, d in changes["weight"].items() if k not in low_rank}
    return low_rank, changes.get("bias", {}), {"weight": dense}
