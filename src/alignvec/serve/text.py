"""The text of an answer as its tokens come: whole characters, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignvec.errors import AlignvecError

_HALF = "\N{REPLACEMENT CHARACTER}"  # what the bytes of a character are until they are all there
_SEEN = 16  # tokens before an answer: more than its first text depends on


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
        self._backend: Any = tokenizer.backend_tokenizer
        # The last tokens whose text is known, since the text of a token depends on what is before
        # it, and behind them those that are no whole character yet.
        self._window = list(before[-_SEEN:])
        self._known = len(self._window)
        self._before = self._decode(self._window).rstrip(_HALF)
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
        self._window.append(token)
        self._open += 1
        return self._next(last)

    def end(self) -> Told:
        """All that was held back: no token follows."""
        return self._next(last=True)

    def _next(self, last: bool) -> Told:
        new = self._new(last)
        self._held += new
        self._seen += len(new)
        if new or last:
            self._ends += [self._seen] * self._open
            self._open = 0
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            return self._tell(min(found), stopped=True)
        return self._tell(len(self._held) - (0 if last else self._beginning()))

    def _new(self, last: bool) -> str:
        """The text that is complete; at the end, up to where a character begins that never is."""
        text = self._decode(self._window)
        if text.endswith(_HALF) and not last:
            return ""
        if text.startswith(self._before):
            new = text[len(self._before) :]
        else:  # bytes that are no text: together with them, what is told would read otherwise
            new = self._decode(self._window[self._known :])
        if last:
            new = new.rstrip(_HALF)
        if new:
            self._window = self._window[self._known :]
            self._known = len(self._window)
            self._before = self._decode(self._window)
        return new

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._backend.decode(list(tokens), skip_special_tokens=True))

    def _tell(self, length: int, stopped: bool = False) -> Told:
        text, self._held = self._held[:length], self._held[length:]
        self._told += length
        count = sum(end <= self._told for end in self._ends)
        tokens = list(range(self._first, self._first + count))
        self._first += count
        del self._ends[:count]
        return Told(text, tokens, stopped)

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
