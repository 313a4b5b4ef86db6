"""From requests to the engine's pieces, in time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from alignvec.errors import AlignvecError
from alignvec.serve.engine import Engine
from alignvec.serve.errors import Refused
from alignvec.serve.request import Busy, Failed, Piece, Request, Stopped

Pieces = AsyncGenerator[tuple[int, Piece], None]  # with the number of the answer


class Deadline:
    """The time that a request may take, from now on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = asyncio.get_running_loop().time() + seconds

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        """Cancels what is in the block when the time is over.

        Raises:
            Refused: it is.
        """
        try:
            async with asyncio.timeout_at(self._end):
                yield
        except TimeoutError:
            raise Refused(
                f"the answer was not finished after {self._seconds:g} s; ask for fewer tokens",
                504,
                "timeout",
            ) from None


async def pieces(engine: Engine, requests: Sequence[Request], in_time: Deadline) -> Pieces:
    """What the engine gives to one request or to several side by side.

    Closing it cancels them all.

    Yields:
        The number of the answer (those to the first request first), and what it goes on with.

    Raises:
        Refused: the engine is full or stops, the time is over, or a request cannot be answered.
    """
    async with aclosing(_merged(engine, requests)) as found:
        while True:
            async with in_time():
                try:
                    got = await anext(found, None)
                except AlignvecError as error:
                    raise refusal(error) from error
            if got is None:
                return
            yield got


def refusal(error: AlignvecError) -> Refused:
    """What the engine says, as clients are told."""
    if isinstance(error, Busy):
        wait = str(max(1, math.ceil(error.retry_after)))
        text, headers = f"the server is full; come again in {wait} s", {"Retry-After": wait}
        return Refused(text, 429, "rate_limit_exceeded", headers=headers)
    if isinstance(error, Stopped):
        return Refused("the server is going down", 503, "server_stopping")
    if isinstance(error, Failed):
        return Refused(str(error), 500, "engine_failed")
    return Refused(str(error), code="invalid_value")


async def _merged(engine: Engine, requests: Sequence[Request]) -> Pieces:
    if len(requests) == 1:
        async with aclosing(engine.generate(requests[0])) as found:
            async for piece in found:
                yield piece.index, piece
        return
    queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()

    async def follow(first: int, request: Request) -> None:
        try:
            async with aclosing(engine.generate(request)) as found:
                async for piece in found:
                    queue.put_nowait((first + piece.index, piece))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks, first = [], 0
    for request in requests:
        tasks.append(asyncio.create_task(follow(first, request)))
        first += request.n
    try:
        running = len(tasks)
        while running:
            got = await queue.get()
            if isinstance(got, Exception):
                raise got
            if got is None:
                running -= 1
            else:
                yield got
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
