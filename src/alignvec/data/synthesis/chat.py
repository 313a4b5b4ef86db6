"""What a writer is asked, what it answers, and what every writer can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from alignvec.data.synthesis.prompts import Message


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
