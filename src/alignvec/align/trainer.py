"""DPO through TRL, with each query of a batch read once.

TRL reads every pair as two rows, prompt included. Levels make that wasteful: the pairs of one
query share their prompt, and neighbours share a response (expert>generic, generic>avoidance).
`SharedPromptTrainer` hands TRL the same log-probabilities from one row a query, and leaves the
loss, the reference, the optimiser and the checkpoints to TRL.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.helpers import rescale_adapter_scale
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from alignvec.base.logprobs import Row, can_branch, logprobs
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


class SharedPromptTrainer(DPOTrainer):
    """DPOTrainer that reads each query of a batch once, and can train both ends of a knob."""

    def __init__(self, two_sided: bool = False, **kwargs: Any) -> None:
        self.shares_prompts = can_branch(kwargs["model"])
        self.two_sided = two_sided
        super().__init__(**kwargs)
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss
        if self.two_sided and self.state.global_step % 2:
            with rescale_adapter_scale(model, -1):
                return loss(self._with_shared_prompts(model), _swapped(inputs), *args, **kwargs)
        return loss(self._with_shared_prompts(model), inputs, *args, **kwargs)

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        return super().compute_ref_log_probs(self._with_shared_prompts(model), inputs)

    def _with_shared_prompts(self, model: Any) -> Any:
        if not self.shares_prompts:
            return model

        def forward(
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            labels: torch.Tensor,
            **_: Any,
        ) -> FusedCausalLMOutput:
            """Log-probabilities [2B, T - 1] of the labels of 2B rows, from one row a prompt."""
            rows, places = _rows_by_prompt(input_ids, attention_mask, labels)
            found = logprobs(model, rows)
            zeros = torch.zeros(labels[:, 1:].shape, device=labels.device)
            log_probs = torch.stack(
                [
                    torch.nn.functional.pad(
                        found[row][response], _padding(rows[row], response, zeros.shape[1])
                    )
                    for row, response in places
                ]
            )
            # TRL logs the other three; they would cost more than the loss does, and nobody
            # reads them here.
            return FusedCausalLMOutput(
                log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
            )

        return forward


def _swapped(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch with chosen and rejected exchanged; TRL stacks the chosen rows on the rejected."""
    other = {"ref_chosen_logps": "ref_rejected_logps", "ref_rejected_logps": "ref_chosen_logps"}
    return {
        name: batch[other[name]] if name in other else torch.cat(rows.chunk(2)[::-1])
        for name, rows in batch.items()
    }


def _padding(row: Row, response: int, width: int) -> tuple[int, int]:
    """How many positions of a row of `width` lie before and after those that predict a response."""
    before = len(row.prompt) - 1
    return before, width - before - len(row.responses[response])


def _rows_by_prompt(
    input_ids: Any, attention_mask: Any, labels: Any
) -> tuple[list[Row], list[tuple[int, int]]]:
    """Group a padded batch by prompt, equal responses once.

    Returns:
        The rows, and for each line of the batch its (row, response).
    """
    rows: list[Row] = []
    row_of: dict[tuple[int, ...], int] = {}
    places = []
    lengths = attention_mask.sum(dim=1).tolist()
    prompts = (attention_mask.bool() & (labels == -100)).sum(dim=1).tolist()
    for tokens, length, prompt_length in zip(input_ids.tolist(), lengths, prompts, strict=True):
        prompt, response = tuple(tokens[:prompt_length]), tokens[prompt_length:length]
        if prompt not in row_of:
            row_of[prompt] = len(rows)
            rows.append(Row(prompt, []))
        responses: list[Any] = rows[row_of[prompt]].responses  # type: ignore[assignment]
        if response not in responses:
            responses.append(response)
        places.append((row_of[prompt], responses.index(response)))
    return rows, places
