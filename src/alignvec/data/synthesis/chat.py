"""What a writer is asked, what it answers, and what every writer can do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from alignvec.data.synthesis.prompts import Message

_ANSWERS = 5  # that are paid for and rejected, before a text is given up
_SEEDS_APART = 1_000_003  # of those; further than there are samples of a text


@dataclass(frozen=True)
class Task:
    """One text to be written.

    Attributes:
        sample: which of several texts for the same messages; a writer takes it as its seed.
        name: for people, as in "q7 expert"; does not change the text.
    """

    messages: tuple[tuple[str, str], ...]  # (role, content)
    max_tokens: int
    sample: int = 0
    name: str = ""

    @classmethod
    def of(cls, messages: list[Message], max_tokens: int, sample: int = 0, name: str = "") -> Task:
        turns = tuple((message["role"], message["content"]) for message in messages)
        return cls(turns, max_tokens, sample, name)

    @property
    def chat(self) -> list[Message]:
        return [{"role": role, "content": content} for role, content in self.messages]

    @property
    def prompt_tokens(self) -> int:
        """About so many."""
        return sum(tokens_in(content) for _, content in self.messages)

    def tries(self, temperature: float) -> Iterator[Task]:
        """The same text under other seeds, itself first: asked for in turn while answers are
        rejected. A greedy writer would only say the same again.
        """
        for number in range(_ANSWERS if temperature > 0 else 1):
            yield replace(self, sample=self.sample + number * _SEEDS_APART)


def tokens_in(text: str) -> int:
    """About so many tokens: a quarter of the bytes, in English as in Chinese."""
    return len(text.encode("utf-8", "replace")) // 4 + 1


@dataclass(frozen=True)
class Completion:
    """What was written, and what it cost.

    Attributes:
        rejected: why the text is none to use, though it was paid for.
        estimated: the writer did not count its tokens.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cut_off: bool  # at max_tokens
    rejected: str = ""
    estimated: bool = False

    @property
    def given_up(self) -> bool:
        """Rejected, and another seed would not help: there was no room for a text."""
        return bool(self.rejected) and self.cut_off and not self.text


class UnwrittenError(Exception):
    """This one text cannot be had now; others can, and it may be had later."""


class RefusedError(UnwrittenError):
    """Nor can it be had later: the writer does not take what it is asked."""


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
            UnwrittenError: see there; nothing was paid for.
            AlignvecError: it will not write anything any more.
        """

    async def close(self) -> None:
        """Let go of connections and threads, those of this event loop; it may be asked again."""
