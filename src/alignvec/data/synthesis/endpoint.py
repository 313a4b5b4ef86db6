"""A writer behind any endpoint that speaks OpenAI's API; its quirks are met here."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import openai

from alignvec.data.synthesis.chat import Completion, Task, UnwrittenError, tokens_in
from alignvec.errors import AlignvecError

_TRIES = 5  # at an answer that is no answer; the client itself retries 429, 5xx and timeouts
_LONGEST_PAUSE = 8.0  # seconds


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
                raise AlignvecError(f"{self._where}: {_reason(error)}") from None
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                raise UnwrittenError(_reason(error)) from None
            except openai.APIStatusError as error:  # still a server error after all retries
                reason = _reason(error)
            except (openai.APIError, json.JSONDecodeError, UnicodeError, _AnswerError) as error:
                reason = f"no readable answer ({_reason(error)})"
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


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
