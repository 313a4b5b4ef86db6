"""DPO and its kin through TRL, with each query of a batch read once, under strengths of its own.

TRL reads every pair as two rows, prompt included. Levels make that wasteful: the pairs of one
query share their prompt, and their responses. `SharedPromptTrainer` hands TRL the same
log-probabilities from one row a query, and leaves the loss, the reference, the optimiser and the
checkpoints to TRL.

Several processes share a step: each has as many of its pairs, and their losses average to that of
one process with all of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import FusedCausalLMOutput

from alignvec.align.bank import Bank
from alignvec.align.objectives import OBJECTIVES
from alignvec.align.own_answers import OwnAnswers
from alignvec.align.processes import gather_unequal
from alignvec.base.branching import read_rows
from alignvec.base.logprobs import Row
from alignvec.base.prompts import end_tokens
from alignvec.progress import Bar


class ProgressOnBar(TrainerCallback):
    """The steps done, with the loss and the margin, on a bar."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.total = state.max_steps
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            margin = logs.get("rewards/margins", 0)
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", margin=f"{margin:.2f}", refresh=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)


class Clock(TrainerCallback):
    """How long a training takes: of one that goes on from a checkpoint also what led there, which
    the log in the checkpoint says.
    """

    def __init__(self, started: float) -> None:
        """Args: started: when this process began, in seconds of `time.monotonic`."""
        self._started = started

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started -= max((entry.get("spent", 0.0) for entry in state.log_history), default=0.0)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.log_history[-1]["spent"] = self.seconds

    @property
    def seconds(self) -> float:
        """Since the start; without what a kill lost."""
        return time.monotonic() - self._started


@dataclass
class TurnedPairs(DataCollatorForPreference):
    """TRL's batch of pairs, with the strengths [B, K] that each holds under, which are held, and
    which count (others fill up the last step of several processes), and what the objective starts
    `before` from where the rejected response is the model's own.
    """

    own: OwnAnswers | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        if self.own:
            examples = self.own.replaced(examples)
        batch: dict[str, Any] = super().torch_call(examples)
        if self.own:
            batch["before"] = torch.tensor([one["before"] for one in examples])
        if "strengths" in examples[0]:
            batch["strengths"] = torch.tensor([one["strengths"] for one in examples])
            batch["hold"] = torch.tensor([one["hold"] for one in examples])
        if "counts" in examples[0]:
            batch["counts"] = torch.tensor([one["counts"] for one in examples])
        return batch


class SharedPromptTrainer(DPOTrainer):
    """DPOTrainer that reads each query of a batch once, every row under its own strengths.

    Attributes:
        bank: the knobs on the model, for pairs with strengths; plain ones train at lambda = 1.
    """

    bank: Bank

    def __init__(
        self,
        objective: str | None = None,
        margin: float = 0.0,
        likelihood: float = 0.0,
        hold: float = 0.0,
        ratio: float = 1.0,
        **kwargs: Any,
    ) -> None:
        """Args beside those of DPOTrainer.

        objective: one of `OBJECTIVES` in the place of TRL's loss.
        margin: of the objective.
        likelihood: weight of the chosen response's negative log-likelihood, in nats a token.
        hold: weight of what held responses move, in squared nats a token.
        ratio: of the learning rate of B to that of A.
        """
        self._objective = OBJECTIVES[objective] if objective else None
        self._margin, self._likelihood, self._hold = margin, likelihood, hold
        self._ratio = ratio
        super().__init__(**kwargs)
        self._counts = True  # whether what this process has is of the step
        if self.accelerator.num_processes > 1:
            gather = self.accelerator.gather
            self.accelerator.gather = lambda values: gather_unequal(
                gather, values if self._counts or not values.ndim else values[:0]
            )
        # What keeps the experts of a mixture evenly used TRL counts over the tokens of its rows;
        # these are others, since a prompt is read once.
        self.aux_loss_enabled = False
        self._ends = end_tokens(self.model)
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return (
            dataset  # of tokens already: TRL would cut them anew, and drop what it does not count
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "hold" not in self._signature_columns:
            self._signature_columns += [*_OURS, "place", "broken"]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        if self._ratio == 1:
            return super().create_optimizer(*args, **kwargs)
        self.optimizer = create_loraplus_optimizer(
            self.model,
            torch.optim.AdamW,
            lr=self.args.learning_rate,
            loraplus_lr_ratio=self._ratio,
        )
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logprobs = self._logprobs(model, inputs)
        every = torch.ones(len(logprobs) // 2, dtype=torch.bool, device=logprobs.device)
        counts, hold = inputs.get("counts", every), inputs.get("hold", ~every)
        steered, held = counts & ~hold, counts & hold
        said = inputs["completion_mask"][:, 1:].bool()
        own = torch.stack([steered.sum(), held.sum(), said[held.repeat(2)].sum()])
        # In the whole step, whosever pairs they are. So every process makes the passes that any
        # does: weights that are spread over them are gathered by all.
        all_steered, all_held, tokens = self.accelerator.reduce(own).tolist()
        scale = self.accelerator.num_processes / (all_steered + all_held)
        loss = logprobs.new_zeros(())
        if all_steered:
            some, self._counts = _some(steered), bool(steered.any())
            loss = self._preference(_part(inputs, some), logprobs[some.repeat(2)])
            loss = scale * steered.sum() * loss
        if all_held:
            some = _some(held)
            with torch.no_grad(), self.accelerator.unwrap_model(model).disable_adapter():
                before = self._logprobs(model, _part(inputs, some))
            apart = (logprobs[some.repeat(2)] - before)[said[some.repeat(2)]]
            moved = held.any() * apart.square().sum() / tokens
            loss = loss + scale * all_held * self._hold * moved
            moved = self.accelerator.reduce(moved.detach())
            self._metrics["train"]["moved"].append(moved.sqrt().item())
        return loss

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        inputs = {name: value for name, value in inputs.items() if name not in _OURS}
        return super().compute_ref_log_probs(
            lambda **_: _as_output(self._logprobs(model, inputs)), inputs
        )

    def _preference(self, inputs: Any, logprobs: torch.Tensor) -> Any:
        lengths = inputs["completion_mask"][:, 1:].sum(1)
        chosen, rejected = (logprobs.sum(1) / lengths).chunk(2)
        if self._objective is None:
            trl = {name: value for name, value in inputs.items() if name not in _OURS}
            loss = super().compute_loss(lambda **_: _as_output(logprobs), trl)
        else:
            _, places, _ = _rows_by_prompt(inputs)
            row = torch.tensor([row for row, _ in places[: len(chosen)]], device=chosen.device)
            beta = self.args.beta
            if "before" in inputs:  # of an own answer counts what changed since it was written
                rejected = rejected + inputs["before"]
            loss = self._objective(chosen, rejected, row, beta, self._margin).mean()
            reward = self.accelerator.gather(beta * (chosen - rejected).detach())
            self._metrics["train"]["rewards/margins"].append(reward.mean().item())
            self._metrics["train"]["rewards/accuracies"].append((reward > 0).float().mean().item())
        nll = self.accelerator.gather(-chosen.detach())
        self._metrics["train"]["nll"].append(nll.mean().item())
        return loss + self._likelihood * self._surprise(inputs, logprobs)

    def _surprise(self, inputs: Any, logprobs: torch.Tensor) -> torch.Tensor:
        """The chosen responses' negative log-likelihood, in nats a token.

        A token that is sure already is learnt: few records are not to be learnt by heart. The one
        that ends the turn counts as `_ENDING`: it is one of many, but without it the text does not
        end, and a text that does not end goes round in circles.
        """
        tokens = inputs["input_ids"].chunk(2)[0][:, 1:]
        mask = inputs["completion_mask"].chunk(2)[0][:, 1:]
        ends = torch.isin(tokens, tokens.new_tensor(self._ends))
        weight = mask * torch.where(ends, _ENDING, 1.0)
        said = logprobs.chunk(2)[0].clamp(max=_SURE)
        surprise: torch.Tensor = -((said * weight).sum(1) / mask.sum(1)).mean()
        return surprise

    def _logprobs(self, model: Any, inputs: Any) -> torch.Tensor:
        """[2B, T - 1], log-probabilities of the completions of 2B lines, 0 where there is none."""
        rows, places, strengths = _rows_by_prompt(inputs)

        def turned(owners: list[int]) -> AbstractContextManager[None]:
            return nullcontext() if strengths is None else self.bank.turned(strengths[owners])

        read = read_rows(model, rows, turned, self.accelerator.unwrap_model(model))
        width = inputs["input_ids"].shape[1] - 1
        return torch.stack(
            [
                torch.nn.functional.pad(read[row][response], _padding(rows[row], response, width))
                for row, response in places
            ]
        )


_ENDING = 20.0  # how often the token counts that ends a response
_SURE = -0.1  # the log-probability of a token at which there is nothing more to learn
_OURS = ("strengths", "hold", "counts", "before")  # columns that TRL does not know


def _as_output(logprobs: torch.Tensor) -> FusedCausalLMOutput:
    """What TRL asks of a model. It logs the other three; computed, they would cost more than the
    loss does, and nobody reads them here."""
    zeros = torch.zeros_like(logprobs)
    return FusedCausalLMOutput(
        log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )


def _part(inputs: Mapping[str, torch.Tensor], of: torch.Tensor) -> dict[str, torch.Tensor]:
    """Some pairs of a batch; TRL stacks the chosen lines on the rejected ones."""
    return {
        name: value[of if len(value) == len(of) else of.repeat(2)] for name, value in inputs.items()
    }


def _some(of: torch.Tensor) -> torch.Tensor:
    """The same pairs; where there are none the first, for a pass that others do, too."""
    if of.any():
        return of
    first = torch.zeros_like(of)
    first[0] = True
    return first


def _padding(row: Row, response: int, width: int) -> tuple[int, int]:
    """How many positions of a line lie before and after those that predict a response."""
    before = len(row.prompt) - 1
    return before, width - before - len(row.responses[response])


def _rows_by_prompt(
    inputs: Mapping[str, torch.Tensor],
) -> tuple[list[Row], list[tuple[int, int]], torch.Tensor | None]:
    """Group a padded batch by prompt and strengths, equal responses once.

    Returns:
        The rows, for each line of the batch its (row, response), and the strengths [rows, K].
    """
    rows: list[Row] = []
    turned: list[list[float]] = []
    row_of: dict[tuple[Any, ...], int] = {}
    places = []
    completion = inputs["completion_mask"]
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    prompts = (inputs["attention_mask"].bool() & (completion == 0)).sum(dim=1).tolist()
    strengths = inputs.get("strengths")
    of_line = [[]] * len(lengths) if strengths is None else strengths.tolist() * 2
    lines = zip(inputs["input_ids"].tolist(), lengths, prompts, of_line, strict=True)
    for tokens, length, prompt_length, setting in lines:
        prompt, response = tuple(tokens[:prompt_length]), tokens[prompt_length:length]
        key = (prompt, *setting)
        if key not in row_of:
            row_of[key] = len(rows)
            rows.append(Row(prompt, []))
            turned.append(setting)
        responses: list[Any] = rows[row_of[key]].responses  # type: ignore[assignment]
        if response not in responses:
            responses.append(response)
        places.append((row_of[key], responses.index(response)))
    device = completion.device
    return rows, places, None if strengths is None else torch.tensor(turned, device=device)
