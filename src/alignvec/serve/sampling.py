"""From logits to the next token of each row, each by its own wishes and its own chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import torch

_FEW = 1024  # of the likeliest tokens nearly always have `top_p` together


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn, in OpenAI's words.

    Attributes:
        max_tokens: of the answer.
        temperature: 0 is greedy.
        top_p: the likeliest tokens that have this probability together.
        seed: the same seed gives the same answer; None: another each time.
        stop: texts before which the answer ends.
        frequency_penalty: what a token's logit loses for each time it was written.
        presence_penalty: likewise, once.
        logit_bias: token -> what is added to its logit.
        top_logprobs: how many alternatives are told with each token; None: no likelihoods at all.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None


class Chance:
    """What draws the tokens of one answer: its generator, and what was written so far."""

    def __init__(
        self, sampling: Sampling, index: int, prompt: Sequence[int] = (), repetition: float = 1.0
    ) -> None:
        """Args:
        index: of the answer among those of its request; each is another one.
        repetition: the base's own penalty of what the prompt or the answer has already, as its
            generation_config has it for every answer; 1 is none.
        """
        self.sampling = sampling
        self.repetition = repetition
        self.seen = set(prompt) if repetition != 1 else set()
        self.counts: Counter[int] = Counter()
        bias = sampling.logit_bias
        self.biased = torch.tensor(list(bias), dtype=torch.long), torch.tensor(list(bias.values()))
        seed = sampling.seed
        self._random = Random(None if seed is None else f"{seed} {index}")

    def draw(self) -> float:
        """The next number in [0, 1)."""
        return self._random.random()


@dataclass(frozen=True)
class Likelihood:
    """How likely a token was, in nats, and those that were likeliest in its place."""

    logprob: float
    top: Sequence[tuple[int, float]]


def next_tokens(logits: torch.Tensor, chances: Sequence[Chance]) -> list[int]:
    """The next token of each row.

    A row depends on its own logits and its own chance alone, and takes one number of it a token:
    the same seed gives the same answer, whoever else is in the batch.

    Args:
        logits: [R, V] float32; changed in place where a row has penalties or a bias.
    """
    for row, chance in enumerate(chances):
        _penalise(logits[row], chance)
    chosen = logits.argmax(-1)
    drawn = [row for row, chance in enumerate(chances) if chance.sampling.temperature > 0]
    if drawn:
        wishes = [chances[row].sampling for row in drawn]
        heat = torch.tensor([wish.temperature for wish in wishes], device=logits.device)
        # From the likeliest down: what is divided by little never overflows.
        likely = logits[drawn]
        likely = torch.softmax((likely - likely.amax(-1, keepdim=True)) / heat[:, None], -1)
        for place, wish in enumerate(wishes):
            if wish.top_p < 1:
                _cut(likely[place], wish.top_p)
        # Where the sum of probabilities passes a number drawn evenly between 0 and their sum.
        sums = likely.cumsum(-1, dtype=torch.float64)
        numbers = torch.tensor([[chances[row].draw()] for row in drawn], dtype=torch.float64)
        found = torch.searchsorted(sums, numbers.to(sums.device) * sums[:, -1:], right=True)
        chosen[drawn] = found[:, 0].clamp(max=logits.shape[-1] - 1)
    return [int(token) for token in chosen.tolist()]


def likelihoods(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[Likelihood]:
    """Of each row's token, and of the `top` likeliest ones.

    Args:
        logits: [R, V] float32, as the model gave them: without penalties, at temperature 1.
    """
    every = torch.log_softmax(logits, -1)
    own = every[range(len(tokens)), list(tokens)].tolist()
    values, indices = every.topk(min(top, every.shape[-1]), -1)
    return [
        Likelihood(value, list(zip(index, best, strict=True)))
        for value, index, best in zip(own, indices.tolist(), values.tolist(), strict=True)
    ]


def _penalise(logits: torch.Tensor, chance: Chance) -> None:
    """Change the logits [V] of one row as its answer so far, and its wishes, demand."""
    wish = chance.sampling
    if chance.repetition != 1:
        seen = torch.tensor(
            [*chance.seen | chance.counts.keys()], dtype=torch.long, device=logits.device
        )
        found = logits[seen]
        logits[seen] = torch.where(found < 0, found * chance.repetition, found / chance.repetition)
    if wish.logit_bias:
        tokens, biases = (one.to(logits.device) for one in chance.biased)
        logits[tokens] += biases
    if (wish.frequency_penalty or wish.presence_penalty) and chance.counts:
        index = torch.tensor(list(chance.counts), device=logits.device)
        times = torch.tensor(list(chance.counts.values()), device=logits.device)
        logits[index] -= wish.frequency_penalty * times + wish.presence_penalty


def _cut(likely: torch.Tensor, top_p: float) -> None:
    """Take away, in place, all but the likeliest tokens that have `top_p` of it together."""
    values, order = likely.topk(min(_FEW, len(likely)))
    if values.sum() < top_p:
        values, order = likely.sort(descending=True)
    spare = values.cumsum(-1) - values >= top_p
    spare[0] = False  # one is always left
    kept = order[~spare]
    shares = likely[kept]
    likely.zero_()[kept] = shares
