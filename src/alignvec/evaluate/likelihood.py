"""Length-normalised likelihoods of responses, s(l), batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

from alignvec.base.logprobs import Row, can_branch, logprobs, separate_rows
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
        within: a context for the forward pass of a batch, given the indices of its rows.

    Returns:
        Natural-log likelihoods per token, `[row][response]`, in the order given.
    """
    longest = max((len(row) for row in rows), default=0)
    shared = can_branch(model, longest)
    results: list[list[float]] = [[] for _ in rows]
    with torch.inference_mode(), progress("scoring", "query", len(rows)) as bar:
        for batch in _batches(rows, tokens_per_batch):
            chosen = [rows[index] for index in batch]
            with within(batch) if within else nullcontext():
                found = logprobs(model, chosen if shared else separate_rows(chosen))
            means = iter([values.mean().item() for row in found for values in row])
            for index in batch:
                results[index] = [next(means) for _ in rows[index].responses]
            bar.update(len(batch))
    return results


def _batches(rows: Sequence[Row], tokens_per_batch: int) -> Iterable[list[int]]:
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: -len(rows[index])):
        if batch and len(rows[batch[0]]) * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
