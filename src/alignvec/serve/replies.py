"""What an endpoint sends for what the engine gives: the parts that chat and completions share."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openai.types import CompletionUsage
from pydantic import BaseModel

from alignvec.serve.request import Piece, TokenLogprob

_LEAST = -9999.0  # what OpenAI has for a token that is not likely at all


@dataclass
class Answer:
    """One of a request's answers, as far as it has come."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tokens: int = 0
    finish: str | None = None

    def take(self, piece: Piece) -> None:
        """Go on with what a step gave."""
        self.text += piece.text
        self.logprobs += piece.logprobs
        self.tokens = piece.tokens
        self.finish = piece.finish


class Reply(ABC):
    """The reply to one request, in chunks or as a whole.

    Attributes:
        answers: in the order of prompts, then of answers to each.
    """

    prefix: str  # of the id

    def __init__(
        self,
        model: str,
        fingerprint: str,
        turned: dict[str, Any],
        prompt_tokens: int,
        answers: int,
        tells_usage: bool,
        logprobs: bool,
    ) -> None:
        """Args:
        turned: which setting answers, as JSON.
        prompt_tokens: of all prompts.
        tells_usage: whether a stream has a last chunk that says what it took.
        """
        self.answers = [Answer() for _ in range(answers)]
        self._base: dict[str, Any] = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._alignvec: dict[str, Any] = {"alignvec": turned}
        self._prompt_tokens = prompt_tokens
        self._tells_usage = tells_usage
        # Of a chunk before the last: there, but not known.
        self._no_usage: dict[str, Any] = {"usage": None} if tells_usage else {}
        self._logprobs = logprobs

    @abstractmethod
    def opening(self) -> Sequence[BaseModel]:
        """The chunks before any text."""

    @abstractmethod
    def chunk(self, index: int, piece: Piece) -> BaseModel:
        """What a step gave to answer `index`."""

    @abstractmethod
    def whole(self) -> BaseModel:
        """All answers, once they are finished."""

    @abstractmethod
    def last(self) -> BaseModel:
        """The chunk without answers that says what it took."""

    def take(self, index: int, piece: Piece) -> None:
        """Keep what a step gave to answer `index`."""
        self.answers[index].take(piece)

    def closing(self) -> list[BaseModel]:
        """The chunks after all text."""
        return [self.last()] if self._tells_usage else []

    @property
    def usage(self) -> CompletionUsage:
        """Tokens so far."""
        written = sum(answer.tokens for answer in self.answers)
        return CompletionUsage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=written,
            total_tokens=self._prompt_tokens + written,
        )


def likelihood(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, _LEAST)
