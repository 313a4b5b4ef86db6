"""Gate: vectors kept beside the weights, a strength for each row of the batch.

    y = W x + sum_k lambda_k B_k (A_k x)

Forward hooks add to what each module returns (`terms`); which term a module gets is planned once,
when the knobs are put on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignvec.knobs.setting import SettingLike, check_setting
from alignvec.knobs.terms import AffineCopies, Call, Changes, Product, Term, not_gateable
from alignvec.vector.alignment_vector import AlignmentVector
from alignvec.vector.delta import LowRank


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
        terms = _plan(model, self.vectors)
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


def _plan(
    model: PreTrainedModel, vectors: Mapping[str, AlignmentVector]
) -> list[tuple[nn.Module, Term]]:
    """What is added to the output of each module that holds a parameter that a vector changes."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    changes = {module: _changes(module, names, vectors) for module in model.modules()}
    changes = {module: found for module, found in changes.items() if any(found.values())}
    # One tensor of each module, for messages.
    first = {
        module: next(names[module._parameters[part]] for part, by_knob in found.items() if by_knob)
        for module, found in changes.items()
    }
    calls = _calls(model, first)
    terms: list[tuple[nn.Module, Term]] = []
    for module, found in changes.items():
        products, rest = _split(module, found)
        if any(products.values()):
            terms.append((module, Product.of(module, products)))
        if any(rest.values()):
            copies = AffineCopies.of(module, rest)
            terms.append((module, copies.verified(module, calls[module], first[module])))
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
    """The changes that `Product` can take, and the others."""
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
    rows, tokens = 2, 7
    calls: dict[nn.Module, Call] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls[module] = (args, kwargs)
        if isinstance(output, torch.Tensor) and len(output) not in (1, rows, rows * tokens):
            raise not_gateable(names[module], f"{type(module).__name__} does not see rows")

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
            raise not_gateable(name, f"{type(module).__name__} is not called on its own")
    return calls
