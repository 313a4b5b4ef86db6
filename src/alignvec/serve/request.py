"""What is asked of an engine, and what it tells of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from alignvec.errors import AlignvecError
from alignvec.knobs.setting import Setting
from alignvec.serve.sampling import Sampling


class Busy(AlignvecError):
    """The queue is full.

    Attributes:
        retry_after: seconds after which there may be room.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many requests are waiting; try again a little later")
        self.retry_after = retry_after


class Stopped(AlignvecError):
    """The server ends, and the answer with it."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class Failed(AlignvecError):
    """A step of the engine failed, through no fault of the request's."""


@dataclass(frozen=True)
class Request:
    """What is asked of the engine.

    Attributes:
        tokens: the prompt.
        setting: of every knob; checked.
        n: answers, each drawn on its own.
        client: requests of different clients are let in by turns.
        continues: whether the answer is one text with the prompt, not a turn of its own.
    """

    tokens: Sequence[int]
    setting: Setting
    sampling: Sampling
    n: int = 1
    client: str = ""
    continues: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the prompt and of an answer, at most."""
        return len(self.tokens) + self.sampling.max_tokens


@dataclass(frozen=True)
class TokenLogprob:
    """A token, and how likely the model found it, in nats.

    Attributes:
        bytes: of its text; a character may be in several tokens.
        top: the likeliest tokens in its place.
    """

    id: int
    text: str
    bytes: list[int]
    logprob: float
    top: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """What a step gives to one answer.

    Attributes:
        index: of the answer among those of its request.
        text: new text; empty inside a character, or where a stop text may begin.
        logprobs: of the tokens whose text this ends, if asked for.
        tokens: of the answer so far.
        finish: `stop` or `length` with the last piece, else None.
    """

    index: int
    text: str
    logprobs: list[TokenLogprob]
    tokens: int
    finish: str | None


class Job:
    """A request with the loop that waits for it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def tell(self, piece: Piece | Exception) -> None:
        """From the engine's thread."""
        if not self.cancelled and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def pieces(self) -> AsyncIterator[Piece]:
        open_answers = self.request.n
        while open_answers:
            piece = await self._pieces.get()
            if isinstance(piece, Exception):
                raise piece
            open_answers -= piece.finish is not None
            yield piece
