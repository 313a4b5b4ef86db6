"""Two ways to a steering vector from records: a difference of means, and a training (BiPO)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from torch.nn.functional import logsigmoid
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_cosine_schedule_with_warmup,
)

from alignvec.base.branching import read_rows
from alignvec.base.likelihood import response_scores
from alignvec.base.logprobs import Row, separate_rows
from alignvec.base.prompts import Prompt
from alignvec.data import Record
from alignvec.errors import AlignvecError
from alignvec.evaluate.rates import response_rows
from alignvec.progress import progress
from alignvec.reproduce.steering import hidden_states, steered_rows

_NO_RECORDS = "a steering vector is found on records, and there are none"
_CLIP = 1.0  # the norm of the gradient: what the trainer that BiPO's code uses does by default


def difference_of_means(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    low: str,
    high: str,
    layer: int,
) -> torch.Tensor:
    """The mean hidden state of the responses of one level minus that of another.

    CAA takes the states at one token, the letter of a multiple choice. A response written out has
    no such token, and its last one is a full stop at every level: the mean over all of its tokens
    is taken, each record counting the same. The prompt's last token is not among them.

    Returns:
        [H] float32, from `low` to `high`; at strength 1 as far as their responses are apart.

    Raises:
        AlignvecError: no such layer, no records, or a response is empty.
    """
    if not records:
        raise AlignvecError(_NO_RECORDS)
    rows = separate_rows(response_rows(tokenizer, records, [low, high]))
    means = torch.zeros(len(rows), model.config.get_text_config().hidden_size)

    @contextmanager
    def noting(owners: list[int]) -> Iterator[None]:
        def note(hidden: torch.Tensor) -> torch.Tensor:
            for states, owner in zip(hidden, owners, strict=True):
                first, (response,) = len(rows[owner].prompt), rows[owner].responses
                means[owner] = states[first : first + len(response)].float().mean(0).cpu()
            return hidden

        with hidden_states(model, layer, note):
            yield

    response_scores(model, rows, within=noting)
    return means[1::2].mean(0) - means[::2].mean(0)


@dataclass(frozen=True)
class BiPOSettings:
    """How a BiPO vector is trained.

    What the authors' code does is kept: beta, AdamW without weight decay (their options have one of
    .05, which their trainer is not given) from a vector of zeros, gradients clipped to a norm of 1,
    a rate that rises and then falls on a cosine, batches of 4 pairs with one direction each. The
    rate is not: theirs is 5e-4 for up to 100 epochs on two models of 7B. Adam moves each number of
    the vector by the rate a step, and what that does depends on the hidden states it is added to,
    which differ in size between models and layers. So it is a share of that size here, and high
    enough to get there in few steps.

    Attributes:
        beta: DPO's pull towards the base.
        learning_rate: at its height, as a share of the median size of the numbers in hidden states.
        batch_size: records a step.
        steps: in all.
        warmup: share of them in which the rate rises.
        seed: of the order of records and the directions.
    """

    beta: float = 0.1
    learning_rate: float = 0.02
    batch_size: int = 4
    steps: int = 120
    warmup: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("beta", "learning_rate", "batch_size", "steps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise AlignvecError(f"{name} must be a positive number, not {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise AlignvecError(f"warmup is a share of the steps, at most 1, not {self.warmup}")


def bipo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    low: str,
    high: str,
    layer: int,
    settings: BiPOSettings | None = None,
) -> torch.Tensor:
    """A vector trained by the bi-directional preference objective (arXiv 2406.00045, equation 2).

    Of a batch and a direction d of -1 or 1, with m(v) = log p(high | q; v) - log p(low | q; v) in
    sums over the tokens that a training teaches (the end of the turn among them), the loss is the
    mean of -log sigmoid(d beta (m(d v) - m(0))).

    Returns:
        [H] float32. The weights of the model are not touched.

    Raises:
        AlignvecError: no such layer, or no records.
    """
    if not records:
        raise AlignvecError(_NO_RECORDS)
    told = settings or BiPOSettings()
    rows = [_taught(tokenizer, record, [low, high]) for record in records]
    width = model.config.get_text_config().hidden_size
    vector = torch.zeros(width, device=model.device, requires_grad=True)
    random = Random(told.seed)
    with _frozen(model), progress("BiPO", "step", told.steps) as bar:
        before, size = _of_base(model, rows, layer, told.batch_size)
        optimizer = torch.optim.AdamW([vector], lr=told.learning_rate * size, weight_decay=0.0)
        rises = round(told.warmup * told.steps)
        schedule = get_cosine_schedule_with_warmup(optimizer, rises, told.steps)
        for batch in islice(_batches(len(rows), told.batch_size, random), told.steps):
            direction = random.choice((-1.0, 1.0))
            moved = direction * vector
            margin = _margins(model, [rows[index] for index in batch], layer, moved)
            gain = direction * (margin - before[batch])
            loss = -logsigmoid(told.beta * gain).mean()
            (vector.grad,) = torch.autograd.grad(loss, vector)
            torch.nn.utils.clip_grad_norm_([vector], _CLIP)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", margin=f"{gain.mean().item():.2f}")
            bar.update()
    return vector.detach().cpu()


def _taught(tokenizer: PreTrainedTokenizerBase, record: Record, levels: Sequence[str]) -> Row:
    prompt = Prompt(tokenizer, record.prompt)
    return Row(prompt.tokens, [prompt.taught(record.levels[level]) for level in levels])


def _margins(
    model: PreTrainedModel, rows: Sequence[Row], layer: int, added: torch.Tensor
) -> torch.Tensor:
    """[R]: how much likelier each row's second response is than its first, in nats."""
    found = read_rows(model, rows, steered_rows(model, layer, added, rows))
    return torch.stack([second.sum() - first.sum() for first, second in found])


def _of_base(
    model: PreTrainedModel, rows: Sequence[Row], layer: int, batch_size: int
) -> tuple[torch.Tensor, float]:
    """The margins [R] without a vector, and how large the numbers are that one is added to."""
    sizes: list[float] = []

    def note(hidden: torch.Tensor) -> torch.Tensor:
        # The median: the first token of a text is hundreds of times larger than the others.
        sizes.append(hidden.float().abs().median().item())
        return hidden

    def noting(_: list[int]) -> AbstractContextManager[None]:
        return hidden_states(model, layer, note)

    with torch.no_grad():
        found = [
            second.sum() - first.sum()
            for start in range(0, len(rows), batch_size)
            for first, second in read_rows(model, rows[start : start + batch_size], noting)
        ]
    return torch.stack(found), sum(sizes) / len(sizes)


def _batches(count: int, size: int, random: Random) -> Iterator[list[int]]:
    """Records in an order of their own every time through, without end."""
    while True:
        order = random.sample(range(count), count)
        yield from (order[start : start + size] for start in range(0, count, size))


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Without gradients to the weights: the layers below the vector then cost no memory."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
