"""The text of an answer as its tokens come: whole characters, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from alignvec.errors import AlignvecError


def check_streams(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose text cannot be had token by token.

    Raises:
        AlignvecError: it is none of the tokenizers library.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise AlignvecError(
            f"{type(tokenizer).__name__} cannot be served: it has no tokenizer.json of the "
            "tokenizers library"
        )


@dataclass(frozen=True)
class Told:
    """What can be told now: a text, and the numbers of the tokens that it ends with it."""

    text: str
    tokens: list[int]
    stopped: bool = False


class Text:
    """The text of one answer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        before: Sequence[int] = (),
    ) -> None:
        """Args: before: the prompt that the answer goes on with, where it is one text with it."""
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(list(before), skip_special_tokens=True)
        self._stop = tuple(filter(None, stop))
        self._held = ""  # might be the beginning of a stop text
        self._told = self._seen = 0  # characters
        self._ends: list[int] = []  # where the text of each token that is not told yet ends
        self._first = 0  # the number of the first of these
        self._open = 0  # tokens after these, of a character that is not whole

    def add(self, token: int, last: bool = False) -> Told:
        """Take a token.

        Args:
            last: nothing follows, so nothing is held back.

        Returns:
            The text that is certain, and the tokens (0 is the first of the answer) that are told
            with it. A text that stops ends before the stop text, as OpenAI has it.
        """
        new = self._stream.step(self._backend, token) or ""
        self._held += new
        self._seen += len(new)
        self._open += 1
        if new:
            self._close()
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            return self._tell(min(found), stopped=True)
        if last:
            return self.end()
        return self._tell(len(self._held) - self._beginning())

    def end(self) -> Told:
        """All that was held back: no token follows."""
        self._close()
        return self._tell(len(self._held))

    def _tell(self, length: int, stopped: bool = False) -> Told:
        text, self._held = self._held[:length], self._held[length:]
        self._told += length
        count = sum(end <= self._told for end in self._ends)
        tokens = list(range(self._first, self._first + count))
        self._first += count
        del self._ends[:count]
        return Told(text, tokens, stopped)

    def _close(self) -> None:
        self._ends += [self._seen] * self._open
        self._open = 0

    def _beginning(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        longest = max(map(len, self._stop), default=1) - 1
        return next(
            (
                size
                for size in range(min(longest, len(self._held)), 0, -1)
                if any(stop.startswith(self._held[-size:]) for stop in self._stop)
            ),
            0,
        )
