"""Length-normalised likelihoods of responses, s(l), batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

from alignvec.base.branching import read_rows
from alignvec.base.logprobs import NO_NUMBERS, Row
from alignvec.errors import AlignvecError, NoNumbersError
from alignvec.progress import progress


def response_scores(
    model: PreTrainedModel,
    rows: Sequence[Row],
    tokens_per_batch: int = 3072,
    within: Callable[[list[int]], AbstractContextManager[None]] | None = None,
) -> list[list[float]]:
    """s(l) = (1/|r_l|) sum_t log p(r_l,t | q, r_l,<t) for every response of every row.

    Rows of similar length share a batch, so little is padded.

    Args:
        tokens_per_batch: at most so many tokens a forward pass (at least one row).
        within: a context for a forward pass, given of each of its rows which of `rows` it is of.

    Returns:
        Natural-log likelihoods per token, `[row][response]`, in the order given.

    Raises:
        AlignvecError: a response has no tokens.
        NoNumbersError: a likelihood is none.
    """
    if not all(response for row in rows for response in row.responses):
        raise AlignvecError("a response has no tokens: it has no likelihood")
    # A text that is given twice is one, and has one score, to the last bit.
    distinct = [Row(row.prompt, _distinct(row.responses)) for row in rows]
    results: list[list[float]] = [[] for _ in rows]
    with torch.inference_mode(), progress("scoring", "query", len(rows)) as bar:
        for batch in _batches(distinct, tokens_per_batch):
            chosen = [distinct[index] for index in batch]

            def of_batch(
                owners: list[int], batch: list[int] = batch
            ) -> AbstractContextManager[None]:
                return within([batch[one] for one in owners]) if within else nullcontext()

            found = read_rows(model, chosen, of_batch)
            for index, values in zip(batch, found, strict=True):
                means = [one.mean().item() for one in values]
                of = dict(zip(map(tuple, distinct[index].responses), means, strict=True))
                results[index] = [of[tuple(response)] for response in rows[index].responses]
            bar.update(len(batch))
    if not all(math.isfinite(value) for row in results for value in row):
        raise NoNumbersError(NO_NUMBERS)
    return results


def _distinct(responses: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    return list(dict.fromkeys(tuple(response) for response in responses))


def _batches(rows: Sequence[Row], tokens_per_batch: int) -> Iterable[list[int]]:
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: -len(rows[index])):
        if batch and len(rows[batch[0]]) * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
