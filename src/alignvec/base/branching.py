"""Whether branches in one row have the numbers of separate rows: found out by trying.

Attention with a free mask and position ids gives them, a recurrent or convolutional layer does not.
So no list of architectures is needed; only how far a layer looks back is read from the config,
since a mask of our own takes the place of the model's and does not cut what lies farther, and from
which length on positions are scaled by the length of all that is read at once.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from alignvec.base.logprobs import Row, logprobs, out_of_place, separate_rows
from alignvec.base.rope import alike, forget_lengths, scaled_beyond

_LONGEST: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
_ROWS = [Row([1, 2, 3, 4], [list(range(5, 17)), [3, 5, 9, 30, 31, 32]])]
_REACH = re.compile(
    r"(window|windows|window_size|window_len|local_attention|chunk_size|index_topk)$"
)


def can_branch(model: PreTrainedModel, length: int = 0) -> bool:
    """Whether `model` gives branches in a row of `length` the numbers of separate rows.

    Tried once per model. A row longer than the reach of a layer (a sliding window, a chunk of
    attention) is never shared.
    """
    if model not in _LONGEST:
        _LONGEST[model] = _longest(model)
    return max(1, length) <= _LONGEST[model]


def read_rows(
    model: PreTrainedModel,
    rows: Sequence[Row],
    within: Callable[[list[int]], AbstractContextManager[None]] | None = None,
    inner: PreTrainedModel | None = None,
) -> list[list[torch.Tensor]]:
    """`logprobs` with the numbers that each response has on its own, in the fewest passes.

    Args:
        within: a context for a forward pass, given of each of its rows which of `rows` it is of.
        inner: the model without what training wraps it in, where it is wrapped.

    Returns:
        As `logprobs`: `[row][response]`, whatever was read together.

    Raises:
        AlignvecError: the model has no such token, or no such position.
    """
    plain = inner or model
    if can_branch(plain, max(map(len, rows), default=0)):
        read, owners = list(rows), list(range(len(rows)))
    else:
        read = separate_rows(rows)
        owners = [index for index, row in enumerate(rows) for _ in row.responses]
    values: dict[int, list[torch.Tensor]] = {}
    for together in alike(plain, list(map(len, read))):
        forget_lengths(plain)
        batch = [read[index] for index in together]
        with within([owners[index] for index in together]) if within else nullcontext():
            try:
                found = logprobs(model, batch)
            except IndexError:  # of positions that were learnt one by one
                lines = [[*row.prompt, *row.responses[0]] for row in separate_rows(batch)]
                asked = f"a prompt with its response has {max(map(len, lines))} tokens,"
                tokens = torch.tensor([token for line in lines for token in line])
                raise out_of_place(plain, tokens, asked, "leave that record out") from None
        values |= dict(zip(together, found, strict=True))
    results: list[list[torch.Tensor]] = [[] for _ in rows]
    for index, owner in enumerate(owners):
        results[owner] += values[index]
    return results


def _longest(model: PreTrainedModel) -> float:
    """Up to which length rows may be shared; 0 if none may."""
    reach: float = min(_reaches(model.config.get_text_config().to_dict()), default=math.inf)
    reach = min(reach, scaled_beyond(model))
    if reach < max(map(len, _ROWS)):
        return 0
    training = model.training
    model.eval()
    try:
        # A trial in inference mode would not know gradients.
        with torch.inference_mode(False):
            exact = _is_blind_to_siblings(model) and _has_the_same_numbers(model)
    except Exception:  # it takes no such mask, or no such positions
        exact = False
    finally:
        model.train(training)
    return reach if exact else 0


def _reaches(config: Any) -> Iterator[int]:
    """How far layers look back, by the names that configs have for it, also layer by layer."""
    if isinstance(config, dict):
        for name, value in config.items():
            if isinstance(name, str) and _REACH.search(name):
                yield from _numbers(value)
            elif isinstance(value, dict | list):
                yield from _reaches(value)
    elif isinstance(config, list):
        for value in config:
            yield from _reaches(value)


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _numbers(one)
    elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
        yield value


def _is_blind_to_siblings(model: PreTrainedModel) -> bool:
    """Whether no gradient goes from a response to the tokens of the one before it.

    It is 0 exactly where a mask hides them, whatever the dtype; a state that leaks is not, however
    little it does.
    """
    embedded: list[torch.Tensor] = []

    def note(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0].clone()

    handle = model.get_input_embeddings().register_forward_hook(note)
    try:
        with torch.enable_grad():
            _, second = logprobs(model, _ROWS)[0]
            (gradient,) = torch.autograd.grad(second.sum(), embedded[0])
    finally:
        handle.remove()
    prompt, first = len(_ROWS[0].prompt) - 1, len(_ROWS[0].responses[0]) + 1
    seen = gradient[0].abs().amax(-1)
    return bool(seen[:prompt].any()) and not bool(seen[prompt : prompt + first].any())


def _has_the_same_numbers(model: PreTrainedModel) -> bool:
    """Whether the numbers of a shared row are those of separate ones, up to rounding.

    Other shapes sum in another order; how much that is in this dtype, separate rows show among
    themselves. Wrong positions are off by more.
    """

    def numbers(rows: list[Row]) -> torch.Tensor:
        return torch.cat([values for row in logprobs(model, rows) for values in row]).float()

    apart = separate_rows(_ROWS)
    with torch.no_grad():
        shared, beside = numbers(_ROWS), numbers(apart)
        alone = torch.cat([numbers([row]) for row in apart])
    rounding = max(_distance(beside, alone), 1e-4 if model.dtype.itemsize > 2 else 5e-4)
    return _distance(shared, beside) <= 4 * rounding


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Root mean square of the difference."""
    return float((one - other).square().mean().sqrt())
