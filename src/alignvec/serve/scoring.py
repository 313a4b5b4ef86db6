"""Likelihoods that are asked for: a part of the responses a step; answers go on meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from alignvec.base.logprobs import Row

Sums = list[tuple[float, int]]  # of each response its log-likelihood in nats, and its tokens

_TOGETHER = 2048  # tokens of a prompt with responses that are read in a step, unless one is longer


def parts(row: Row) -> Iterator[Row]:
    """A prompt with its responses, few enough at a time."""
    part: list[Sequence[int]] = []
    for response in row.responses:
        if part and len(Row(row.prompt, [*part, response])) > _TOGETHER:
            yield Row(row.prompt, part)
            part = []
        part.append(response)
    yield Row(row.prompt, part)


class Scoring:
    """One request for likelihoods, and the loop that waits for it."""

    def __init__(self, row: Row, likelihoods: Callable[[Row], Sums]) -> None:
        """Args: likelihoods: of a part; called in the engine's thread."""
        self._parts = deque(parts(row))
        self._likelihoods = likelihoods
        self._found: Sums = []
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Sums] = self._loop.create_future()

    def step(self) -> bool:
        """From the engine's thread: score a part; whether there is more to do."""
        if self.done.cancelled():
            return False
        try:
            self._found += self._likelihoods(self._parts.popleft())
        except Exception as error:
            self.fail(error)
            return False
        if not self._parts:
            self._tell(self._found)
        return bool(self._parts)

    def fail(self, error: Exception) -> None:
        """From the engine's thread: it is not to be had."""
        self._tell(error)

    def _tell(self, found: Sums | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle, found)

    def _settle(self, found: Sums | Exception) -> None:
        if self.done.done():
            return
        if isinstance(found, Exception):
            self.done.set_exception(found)
        else:
            self.done.set_result(found)
