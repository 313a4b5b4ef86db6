"""Who writes: a chat endpoint (any that speaks OpenAI's API), or a model on this machine."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from alignvec.data.synthesis.prompts import Message
from alignvec.errors import AlignvecError

if TYPE_CHECKING:
    import torch

    from alignvec.knobs import KnobModel

_TRIES = 5  # at an answer that is no answer; the client itself retries 429, 5xx and timeouts
_LONGEST_PAUSE = 8.0  # seconds
_PENALTY = 1.15  # on what it said already: small models go round in circles


@dataclass(frozen=True)
class Task:
    """One text to be written.

    Attributes:
        sample: which of several texts for the same messages.
    """

    messages: tuple[tuple[str, str], ...]  # (role, content)
    max_tokens: int
    sample: int = 0

    @classmethod
    def of(cls, messages: list[Message], max_tokens: int, sample: int = 0) -> Task:
        turns = tuple((message["role"], message["content"]) for message in messages)
        return cls(turns, max_tokens, sample)

    @property
    def chat(self) -> list[Message]:
        return [{"role": role, "content": content} for role, content in self.messages]

    @property
    def prompt_tokens(self) -> int:
        """About so many."""
        return sum(tokens_in(content) for _, content in self.messages)


def tokens_in(text: str) -> int:
    """About so many tokens: what English text has with most tokenizers."""
    return len(text) // 4 + 1


@dataclass(frozen=True)
class Completion:
    """What was written, and what it cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cut_off: bool  # at max_tokens


class UnwrittenError(Exception):
    """This one text cannot be had; others can."""


class Chat(Protocol):
    """A writer.

    Attributes:
        name: of the model; another one would write something else.
    """

    name: str
    temperature: float

    async def complete(self, task: Task) -> Completion:
        """Write one text.

        Raises:
            UnwrittenError: the writer refuses this task.
            AlignvecError: it will not write anything any more.
        """

    async def close(self) -> None:
        """Let go of connections and threads."""


class Endpoint:
    """A model behind an OpenAI-compatible endpoint."""

    def __init__(
        self,
        url: str | None,
        model: str,
        temperature: float = 0.8,
        timeout: float = 120.0,
        retries: int = 8,
    ) -> None:
        """Connect when first asked.

        Args:
            url: up to and with `/v1`; None is OpenAI's own.
            timeout: seconds that one try may take.
            retries: at rate limits, server errors, lost connections and timeouts, with pauses that
                double up to 8 s, or as long as the server says.

        Raises:
            AlignvecError: OpenAI wants a key and there is none.
        """
        import os

        import openai

        self.name, self.temperature = model, temperature
        self._where = url or "OpenAI"
        try:
            self._client = openai.AsyncOpenAI(
                base_url=url,
                # Local servers take any key, the client insists on one.
                api_key=os.environ.get("OPENAI_API_KEY") or ("none" if url else None),
                timeout=timeout,
                max_retries=retries,
            )
        except openai.OpenAIError:
            raise AlignvecError(
                "no key for OpenAI: set OPENAI_API_KEY, or give the --endpoint of another server"
            ) from None

    async def complete(self, task: Task) -> Completion:
        import openai

        for attempt in range(_TRIES):
            try:
                return _completion(
                    task,
                    await self._client.chat.completions.create(
                        model=self.name,
                        messages=task.chat,  # type: ignore[arg-type]
                        max_tokens=task.max_tokens,
                        temperature=self.temperature,
                        seed=task.sample,
                    ),
                )
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError,
                    openai.RateLimitError, openai.APIConnectionError) as error:  # fmt: skip
                raise AlignvecError(f"{self._where}: {_one_line(error)}") from None
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                raise UnwrittenError(_one_line(error)) from None
            except openai.APIStatusError as error:  # still a server error after all retries
                reason = _one_line(error)
            except (openai.APIError, json.JSONDecodeError, UnicodeError, _AnswerError) as error:
                reason = f"no readable answer ({_one_line(error)})"
            await asyncio.sleep(min(_LONGEST_PAUSE, 0.5 * 2**attempt))
        raise UnwrittenError(reason)

    async def close(self) -> None:
        await self._client.close()


class _AnswerError(Exception):
    """A body that says something else than it should."""


def _completion(task: Task, answer: Any) -> Completion:
    """Raises: _AnswerError: there is no text in it, or a damaged one."""
    try:
        choice = answer.choices[0]
        text, usage = choice.message.content, answer.usage
        if usage:
            spent = int(usage.prompt_tokens), int(usage.completion_tokens)
        else:  # not every server counts
            spent = task.prompt_tokens, tokens_in(text)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise _AnswerError(f"{type(error).__name__}: {error}") from None
    if not isinstance(text, str) or not text.strip():
        raise _AnswerError("an empty text")
    if "\N{REPLACEMENT CHARACTER}" in text:
        raise _AnswerError("a text in another encoding than it says")
    return Completion(text.strip(), *spent, choice.finish_reason == "length")


class Local:
    """A model on this machine, answering in batches."""

    def __init__(self, model: KnobModel, name: str, temperature: float, batch: int = 16) -> None:
        self.name, self.temperature = name, temperature
        self._model, self._batch = model, batch
        self._waiting: list[tuple[Task, asyncio.Future[Completion]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def complete(self, task: Task) -> Completion:
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((task, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        completion = await future
        if not completion.text:
            raise UnwrittenError("an empty text")
        return completion

    async def _work(self) -> None:
        await asyncio.sleep(0)  # until all that are about to ask have asked
        while self._waiting:
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
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
        import torch

        torch.manual_seed(hash(tuple(task.sample for task in tasks)) % 2**31)
        longest = max(task.max_tokens for task in tasks)
        sampling: dict[str, Any] = {"logits_processor": [_NewWords()]}
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
            )
            for task, text in zip(tasks, texts, strict=True)
        ]

    async def close(self) -> None:
        if self._worker is not None:
            await self._worker


class _NewWords:
    """A penalty on tokens that were written already; those of the prompt may be used."""

    def __init__(self) -> None:
        self._penalise: Any = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        from transformers import RepetitionPenaltyLogitsProcessor

        if self._penalise is None:
            self._penalise = RepetitionPenaltyLogitsProcessor(
                _PENALTY, prompt_ignore_length=input_ids.shape[1]
            )
            return scores
        penalised: torch.Tensor = self._penalise(input_ids, scores)
        return penalised


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
