"""The model's own answers, in the place of responses that were broken on purpose.

A preference compares given texts, and nothing in it says that what the model writes by itself is
one of them: greedy decoding of a small model falls into texts that no pair has, of numbers one day,
of circles the next. So from some step on the model answers, greedily and under each row's own
strengths, the queries that it is about to be trained on, and the reference is preferred to that
answer (self-play, SPIN, Chen et al. 2024, arXiv 2401.01335).

Such an answer is likelier than any reference by far, and is to become less so, not unlikely. So
both count by how much they changed since it was written: the difference of their mean
log-likelihoods at that time is what the objective starts from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase, TrainerCallback

from alignvec.align.bank import Bank
from alignvec.align.processes import from_main
from alignvec.base.likelihood import response_scores
from alignvec.base.logprobs import Row
from alignvec.base.prompts import end_tokens
from alignvec.errors import NoNumbersError
from alignvec.files import read_json, write_json

EVERY = 24  # steps between two writings: the answers are of the model that is trained on them
_AHEAD = 2  # batches that the trainer has read before it begins a step
_ROWS = 64  # written at once: all, where a step has two rows
_BEYOND = 8  # tokens that an answer may be longer than the longest response beside it


class OwnAnswers(TrainerCallback):
    """Writes answers for the steps to come, and keeps them: a resumed run has the same."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        bank: Bank,
        dataset: Any,
        work: Path,
        start: int,
        max_length: int,
    ) -> None:
        """Watch a training.

        Args:
            dataset: its pairs, in the order of training, with which of them are `broken`.
            start: the step from which on there are own answers.
            max_length: tokens of a prompt with its answer.
        """
        self.model, self.tokenizer, self.bank = model, tokenizer, bank
        self.dataset, self.work, self.start = dataset, work, start
        self.max_length = max_length
        self._known: dict[int, tuple[list[int], float]] = {}  # place -> answer, difference
        self._until = start
        # Of a frozen head torch makes a copy for each row, where its input is a slice of a tensor.
        head = model.get_output_embeddings()
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))

    def replaced(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The pairs with own answers where there are some, and the difference to start from."""
        return [
            {**one, "rejected_ids": known[0], "before": known[1]}
            if (known := self._known.get(one["place"]))
            else {**one, "before": 0.0}
            for one in examples
        ]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Of a run that goes on: what it had written for the batches that are read ahead."""
        files = (self._file(step) for step in range(self.start, state.global_step, EVERY))

        def answers() -> dict[str, Any]:
            return {k: v for file in files if file.exists() for k, v in read_json(file).items()}

        self._keep(from_main(PartialState(), answers))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step < self._until:
            return
        first = self.start + (state.global_step - self.start) // EVERY * EVERY
        self._until = first + EVERY
        size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        file = self._file(first)

        def answers() -> dict[str, Any]:
            if not file.exists():
                begin, end = ((step + _AHEAD) * size for step in (first, self._until))
                places = range(begin, min(end, len(self.dataset)))
                pairs = [self.dataset[place] for place in places]
                write_json(file, self._write([one for one in pairs if one["broken"]]))
            found: dict[str, Any] = read_json(file)
            return found

        self._keep(from_main(PartialState(), answers))

    def _file(self, step: int) -> Path:
        """Where the answers lie that were written before a step."""
        return self.work / f"own-{step}.json"

    def _keep(self, found: Mapping[str, Any]) -> None:
        self._known |= {int(place): tuple(one) for place, one in found.items()}

    def _write(self, pairs: Sequence[Mapping[str, Any]]) -> dict[int, tuple[list[int], float]]:
        """Place -> an answer, and how much likelier than it the chosen response is, a token."""
        found: dict[int, tuple[list[int], float]] = {}
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            longest = max((len(one["chosen_ids"]) for one in pairs), default=0) + _BEYOND

            def room(one: Mapping[str, Any]) -> int:
                return min(longest, self.max_length - len(one["prompt_ids"]))

            told = [
                (one, answer)
                for most, some in itertools.groupby(sorted(pairs, key=room), room)
                for one, answer in self._answered([*some], most)
                if answer and answer != one["chosen_ids"][: len(answer)]
            ]
            with suppress(NoNumbersError):  # the loss says what is wrong
                for (one, answer), before in zip(told, self._compared(told), strict=True):
                    found[one["place"]] = answer, before
        self.model.train(training)
        return found

    def _answered(
        self, pairs: Sequence[Mapping[str, Any]], most: int
    ) -> Iterator[tuple[Mapping[str, Any], list[int]]]:
        """Each with its answer of `most` tokens."""
        for start in range(0, len(pairs), _ROWS):
            some = pairs[start : start + _ROWS]
            yield from zip(some, self._answers(some, most), strict=True)

    def _compared(self, told: Sequence[tuple[Mapping[str, Any], list[int]]]) -> list[float]:
        """How much likelier each chosen response is than the answer, in nats a token."""
        rows = [
            Row(prompt, [one["chosen_ids"][: self.max_length - len(prompt)], answer])
            for one, answer in told
            for prompt in [one["prompt_ids"]]
        ]
        turned = _strengths([one for one, _ in told], self.model.device)
        found = response_scores(self.model, rows, within=lambda of: self.bank.turned(turned[of]))
        return [chosen - answer for chosen, answer in found]

    def _answers(self, pairs: Sequence[Mapping[str, Any]], most: int) -> list[list[int]]:
        """Greedy answers as `most` tokens, with the end of the turn if it came."""
        inputs = self.tokenizer.pad(
            {"input_ids": [one["prompt_ids"] for one in pairs]},
            padding_side="left",
            return_tensors="pt",
        ).to(self.model.device)
        width = inputs["input_ids"].shape[1]
        ends = end_tokens(self.model)
        with self.bank.turned(_strengths(pairs, self.model.device)):
            output = self.model.generate(
                **inputs, max_new_tokens=most, do_sample=False, use_cache=True,
                pad_token_id=self.tokenizer.pad_token_id,
            )  # fmt: skip
        answers = []
        for line in output[:, width:].tolist():
            end = next((at for at, token in enumerate(line) if token in ends), len(line))
            answers.append(line[: end + 1])
        return answers


def _strengths(pairs: Sequence[Mapping[str, Any]], device: Any) -> torch.Tensor:
    return torch.tensor([one["strengths"] for one in pairs], device=device)
