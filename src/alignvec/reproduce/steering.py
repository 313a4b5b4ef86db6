"""Activation steering: a vector added to what a decoder layer returns, for what a model writes.

Which tokens: from the last one of the prompt on, the one that the first token of an answer is read
off, and so every token of the answer; the rest of the prompt is read as the base reads it. So does
the code of CAA (Rimsky et al. 2024, arXiv 2312.06681), which adds "at all token positions after the
user's prompt" from the end of the instruction on. The code of BiPO (Cao et al. 2024, arXiv
2406.00045) steers the question as well; here every vector acts on the same tokens, however it was
found, and in scoring the same as in writing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignvec.base.likelihood import response_scores
from alignvec.base.logprobs import Row
from alignvec.base.messages import Messages
from alignvec.base.prompts import Prompt
from alignvec.data import Record
from alignvec.errors import AlignvecError, NoNumbersError
from alignvec.evaluate.rates import response_rows
from alignvec.knobs.model import KnobModel


class Steered:
    """A base whose answers a vector steers: a `Subject`."""

    identity: str | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        vector: torch.Tensor,
        layer: int,
        strength: float,
    ) -> None:
        """Nothing is left on the model between the calls.

        Args:
            vector: [H], one for all tokens.
            layer: after which it is added; 0 is the first.
            strength: how often; 0 is the base, below 0 the opposite.

        Raises:
            AlignvecError: no such layer, or a vector of another width.
            NoNumbersError: the vector's are not finite.
        """
        self.model, self.tokenizer, self.layer = model, tokenizer, layer
        self.added = strength * vector.detach()
        width = model.config.get_text_config().hidden_size
        fits = vector.shape == (width,)
        if not fits or not self.added.isfinite().all():
            raise (NoNumbersError if fits else AlignvecError)(
                f"what steers this model is {width} finite numbers, not a vector of shape "
                f"{list(vector.shape)} times {strength:g}; take one found on this model, or turn "
                "it less far"
            )
        decoder_layer(model, layer)

    def scores(self, records: Sequence[Record], levels: Sequence[str]) -> NDArray[np.float64]:
        """[Q, L]: s(l) of each record's response of each level, in nats a token."""
        rows = response_rows(self.tokenizer, records, levels)
        within = steered_rows(self.model, self.layer, self.added, rows)
        return np.array(response_scores(self.model, rows, within=within))

    def answers(self, queries: Sequence[Messages], max_new_tokens: int) -> list[str]:
        """A greedy answer to each query, all in one batch."""
        lengths = [len(Prompt(self.tokenizer, query).tokens) for query in queries]
        # Padded on the left: all prompts end in the same column.
        last = torch.tensor([max(lengths, default=1) - 1])
        with steered(self.model, self.layer, self.added, last):
            return self._writer.generate(queries, max_new_tokens=max_new_tokens)

    @cached_property
    def _writer(self) -> KnobModel:
        """The model with no knobs: what answers of all subjects are written by."""
        return KnobModel(self.model, self.tokenizer, {})


def steered_rows(
    model: PreTrainedModel, layer: int, added: torch.Tensor, rows: Sequence[Row]
) -> Callable[[list[int]], AbstractContextManager[None]]:
    """`within` of `read_rows` and `response_scores`: `added` [H] to the answers of `rows`.

    Gradients flow to `added` if enabled.
    """
    last = torch.tensor([len(row.prompt) - 1 for row in rows])
    return lambda owners: steered(model, layer, added, last[owners])


@contextmanager
def steered(
    model: PreTrainedModel, layer: int, added: torch.Tensor, last: torch.Tensor
) -> Iterator[None]:
    """Add a vector to what a layer returns for the last token of each prompt and all that follow.

    Args:
        added: [H].
        last: [R] or [1] int64, the column of each row in which its prompt ends.
    """

    def add(hidden: torch.Tensor) -> torch.Tensor:
        moved = hidden + added.to(hidden)
        length = hidden.shape[1]
        if length <= int(last.max()):  # of a cached sequence the new tokens alone
            return moved
        columns = torch.arange(length, device=hidden.device)
        answer = columns >= last[:, None].to(hidden.device)
        return torch.where(answer[:, :, None], moved, hidden)

    with hidden_states(model, layer, add):
        yield


@contextmanager
def hidden_states(
    model: PreTrainedModel, layer: int, change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Within, `change` sees the hidden states [R, T, H] that a layer returns, and replaces them.

    Raises:
        AlignvecError: no such layer, or what it returns has another form.
    """

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.ndim != 3:
            raise AlignvecError(
                f"{type(module).__name__} returns hidden states of {hidden.ndim} dimensions, not "
                "rows of tokens; such a model cannot be steered"
            )
        hidden = change(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = decoder_layer(model, layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def decoder_layer(model: PreTrainedModel, layer: int) -> nn.Module:
    """One of the layers that a text goes through.

    Raises:
        AlignvecError: the model has no such layer, or no list of layers.
    """
    depth = model.config.get_text_config().num_hidden_layers
    # The first in the order of the tree: experts lie within the layers.
    layers = next(
        (
            module
            for module in model.get_decoder().modules()
            if isinstance(module, nn.ModuleList) and len(module) == depth
        ),
        None,
    )
    if layers is None:
        raise AlignvecError(f"{type(model).__name__} has no list of its {depth} layers to steer")
    if not 0 <= layer < depth:
        raise AlignvecError(f"the model has no layer {layer}; they go from 0 to {depth - 1}")
    return layers[layer]
