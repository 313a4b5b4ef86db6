"""A writer on this machine, answering in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase, RepetitionPenaltyLogitsProcessor

from alignvec.data.synthesis.chat import Completion, Task
from alignvec.data.synthesis.prompts import Message

_PENALTY = 1.15  # on what it said already: small models go round in circles


class Generates(Protocol):
    """What is asked of a model: a `KnobModel` has it."""

    tokenizer: PreTrainedTokenizerBase

    def generate(
        self, messages: Sequence[list[Message]], *, max_new_tokens: int, **options: Any
    ) -> list[str]:
        """An answer for each conversation."""


class Local:
    """A model on this machine, answering in batches."""

    def __init__(self, model: Generates, name: str, temperature: float, batch: int = 16) -> None:
        self.name, self.temperature = name, temperature
        self._model, self._batch = model, batch
        self._waiting: list[tuple[Task, asyncio.Future[Completion]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def complete(self, task: Task) -> Completion:
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((task, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        await asyncio.sleep(0)  # until all that are about to ask have asked
        while self._waiting:
            length = self._waiting[0][0].max_tokens  # a text is given its own room, and no more
            batch = [one for one in self._waiting if one[0].max_tokens == length][: self._batch]
            self._waiting = [one for one in self._waiting if one not in batch]
            try:
                found = await asyncio.to_thread(self._answers, [task for task, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), completion in zip(batch, found, strict=True):
                if not future.done():
                    future.set_result(completion)

    def _answers(self, tasks: list[Task]) -> list[Completion]:
        torch.manual_seed(hash(tuple(task.sample for task in tasks)) % 2**31)
        longest = tasks[0].max_tokens
        sampling: dict[str, Any] = {"logits_processor": [_AnswerRepetitionPenalty()]}
        if self.temperature > 0:
            sampling |= {"do_sample": True, "temperature": self.temperature, "top_p": 0.9}
        texts = self._model.generate(
            [task.chat for task in tasks], max_new_tokens=longest, **sampling
        )

        def tokens(text: str) -> int:
            return len(self._model.tokenizer(text)["input_ids"])

        return [
            Completion(
                text,
                sum(tokens(content) for _, content in task.messages),
                tokens(text),
                cut_off=tokens(text) >= longest - 1,
                rejected="" if text else "an empty text",
            )
            for task, text in zip(tasks, texts, strict=True)
        ]

    async def close(self) -> None:
        if self._worker is not None:
            await self._worker


class _AnswerRepetitionPenalty:
    """A penalty on tokens that were written already; those of the prompt may be used."""

    def __init__(self) -> None:
        self._penalise: Any = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._penalise is None:
            self._penalise = RepetitionPenaltyLogitsProcessor(
                _PENALTY, prompt_ignore_length=input_ids.shape[1]
            )
            return scores
        penalised: torch.Tensor = self._penalise(input_ids, scores)
        return penalised
