"""How likely a model finds a response: each prompt read once, its responses branching off.

Scoring levels and training on preferences both compare several responses to one prompt. Laid out
one response a row, the prompt is computed again for each. Here they share a row:

    p0 p1 .. pn-2 | pn-1 a0 a1 a2 | pn-1 b0 b1      tokens
     0  1 .. n-2  |  n-1  n  ..   |  n-1  n ..      positions

An attention mask lets a branch see the prompt and itself, never its sibling, so the numbers are
those of separate rows. The last prompt token is repeated because it predicts the first response
token of each branch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from alignvec.errors import AlignvecError

Tokens = Sequence[int]
_AT_A_TIME = 2**19  # logits
NO_NUMBERS = (
    "the model computes no numbers any more: a knob is turned too far, or some of the base's own "
    "weights are none"
)


def no_numbers(logits: torch.Tensor) -> torch.Tensor:
    """[...]: whether logits [..., V] say nothing: NaN or an overflow among them, or all alike, as
    behind a norm whose input overflowed.
    """
    low, high = logits.aminmax(dim=-1)
    return ~((high > low) & (high < torch.inf))  # NaN is greater than nothing


@dataclass
class Row:
    """One prompt with its responses, all as token ids. A prompt has at least one token."""

    prompt: Tokens
    responses: Sequence[Tokens]

    def __len__(self) -> int:
        return len(self.prompt) - 1 + sum(1 + len(response) for response in self.responses)


@dataclass
class Packed:
    """Rows as tensors. R rows, T tokens in the longest.

    Attributes:
        input_ids: [R, T] int64.
        position_ids: [R, T] int64; a branch goes on counting where its prompt ends.
        attention_mask: [R, 1, T, T] bool, true where a token may look.
        next_token: [R, T] int64, what each position has to predict, -100 where nothing.
        branches: for each row and response, the slice of positions that predict its tokens.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    next_token: torch.Tensor
    branches: list[list[slice]]

    def to(self, device: torch.device) -> Packed:
        return Packed(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.attention_mask.to(device),
            self.next_token.to(device),
            self.branches,
        )

    @property
    def model_inputs(self) -> dict[str, torch.Tensor]:
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
        }


def pack(rows: Sequence[Row], pad_id: int = 0) -> Packed:
    """Lay rows out as tensors, padded on the right to the longest."""
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id)
    position_ids = torch.zeros((len(rows), longest), dtype=torch.long)
    next_token = torch.full((len(rows), longest), -100)
    # Padding looks at itself: a row that may look nowhere is NaN after the softmax.
    mask = torch.eye(longest, dtype=torch.bool).repeat(len(rows), 1, 1)
    causal = torch.ones((longest, longest), dtype=torch.bool).tril()
    branches: list[list[slice]] = []
    for index, row in enumerate(rows):
        shared = len(row.prompt) - 1
        input_ids[index, :shared] = torch.tensor(row.prompt[:-1], dtype=torch.long)
        position_ids[index, :shared] = torch.arange(shared)
        mask[index, :shared, :shared] = causal[:shared, :shared]
        start, slices = shared, []
        for response in row.responses:
            branch = slice(start, start + 1 + len(response))
            input_ids[index, branch] = torch.tensor([row.prompt[-1], *response])
            position_ids[index, branch] = torch.arange(shared, shared + 1 + len(response))
            next_token[index, start : branch.stop - 1] = torch.tensor(response, dtype=torch.long)
            mask[index, branch, :shared] = True
            mask[index, branch, branch] = causal[branch, branch]
            slices.append(slice(start, branch.stop - 1))
            start = branch.stop
        branches.append(slices)
    return Packed(input_ids, position_ids, mask.unsqueeze(1), next_token, branches)


def logprobs(model: PreTrainedModel, rows: Sequence[Row]) -> list[list[torch.Tensor]]:
    """log p(r_t | q, r_<t) of every response token, one forward pass over all rows.

    Returns:
        For each row and response a float32 tensor of one value a token. Gradients flow if enabled.
    """
    packed = pack(rows).to(model.device)
    inputs = packed.model_inputs
    if all(len(row.responses) == 1 for row in rows):  # plain rows need no 4-D mask
        lengths = torch.tensor([len(row) for row in rows], device=model.device)
        positions = torch.arange(packed.input_ids.shape[1], device=model.device)
        inputs["attention_mask"] = (positions < lengths[:, None]).long()
    # The vocabulary is wide: logits only from where the first branch of any row starts.
    first = min(slices[0].start for slices in packed.branches)
    keep = torch.arange(first, packed.input_ids.shape[1], device=model.device)
    logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits
    targets = packed.next_token[:, first:]
    scores = _log_likelihoods(logits.flatten(0, 1), targets.flatten()).view(targets.shape)
    return [
        [score[branch.start - first : branch.stop - first] for branch in slices]
        for score, slices in zip(scores, packed.branches, strict=True)
    ]


class _LogLikelihoods(torch.autograd.Function):
    """[T] float32, log p of each token; 0 where it is -100.

    A few positions at a time, forth and back: that fits a cache, and there is never a float32 copy
    of all logits. What the gradient needs of them it computes again from the norms.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Args: logits: [T, V]."""
        highest = logits.amax(-1, keepdim=True).float()
        sums = torch.cat([exp.sum(-1) for exp in _exponentials(logits, highest)])
        norms = highest + sums.log()[:, None]
        said = logits.gather(1, tokens.clamp(min=0)[:, None]).float()
        ctx.save_for_backward(logits, tokens, norms)
        return torch.where(tokens == -100, 0, (said - norms)[:, 0])

    @staticmethod
    def backward(ctx: Any, *above: torch.Tensor) -> tuple[torch.Tensor, None]:
        """d log p(t) / d logit(v) = [v = t] - p(v)."""
        logits, tokens, norms = ctx.saved_tensors
        weight = torch.where(tokens == -100, 0, above[0])
        gradient, start = torch.empty_like(logits), 0
        for shares in _exponentials(logits, norms):
            piece = slice(start, start := start + len(shares))
            gradient[piece] = shares.mul_(-weight[piece, None])
        rows = torch.arange(len(tokens), device=tokens.device)
        gradient[rows, tokens.clamp(min=0)] += weight.to(gradient.dtype)
        return gradient, None


_log_likelihoods: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _LogLikelihoods.apply


def _exponentials(logits: torch.Tensor, less: torch.Tensor) -> Iterator[torch.Tensor]:
    """exp(logits - less) in float32, a few lines at a time, each in the place of the one before."""
    few = max(1, _AT_A_TIME // logits.shape[-1])
    place = logits.new_empty((few, logits.shape[-1]), dtype=torch.float32)
    for some, apart in zip(torch.split(logits, few), torch.split(less, few), strict=True):
        yield place[: len(some)].copy_(some).sub_(apart).exp_()


def separate_rows(rows: Iterable[Row]) -> list[Row]:
    """The same prompts and responses, one response a row, in the same order."""
    return [Row(row.prompt, [response]) for row in rows for response in row.responses]


def out_of_place(
    model: PreTrainedModel, tokens: torch.Tensor, asked: str, way_out: str
) -> AlignvecError:
    """What an IndexError of a forward pass says: a token, or a position, that was never learnt."""
    known = model.get_input_embeddings().weight.shape[0]
    last = int(tokens.max())
    if last >= known:
        return AlignvecError(
            f"the tokenizer has a token {last}, and the model's vocabulary ends at {known - 1}; "
            "take the tokenizer that belongs to the model"
        )
    return AlignvecError(f"{asked} more than the model has positions for; {way_out}")
