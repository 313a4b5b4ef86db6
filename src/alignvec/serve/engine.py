"""The engine: requests of all clients in shared forward passes, one thread with the model.

A step is one forward pass that gives every running answer a token. Between two steps who has gone
is dropped, and who waits is let in: prompts are read a chunk a step, so that a long one does not
keep the others waiting, and then join. Waiting requests are let in by turns of their clients.

From outside it is asyncio: `generate` is an asynchronous iterator, and to close it is to cancel.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

from alignvec.base.branching import read_rows
from alignvec.base.logprobs import NO_NUMBERS, Row
from alignvec.base.messages import Messages
from alignvec.base.prompts import Prompt
from alignvec.base.rope import scaled_beyond
from alignvec.errors import AlignvecError, NoNumbersError
from alignvec.knobs.model import KnobModel
from alignvec.knobs.setting import Setting
from alignvec.serve.request import Busy, Job, Piece, Request, Stopped
from alignvec.serve.scoring import Scoring, Sums
from alignvec.serve.text import check_streams
from alignvec.serve.turns import Turns
from alignvec.serve.writing import Writing

Result = TypeVar("Result")

_LONG = 2048  # tokens of prompt and answer that a row has room for on average


class Engine:
    """Answers requests of any settings, joined between steps.

    Attributes:
        context: most tokens of a prompt with its answer.
        cells: tokens that there is room for, of all answers and their prompts; a single answer of
            more is written alone.
    """

    def __init__(
        self,
        model: KnobModel,
        max_rows: int = 32,
        max_waiting: int = 256,
        prefill_tokens: int = 512,
    ) -> None:
        """The model is the engine's from here on.

        Args:
            max_rows: answers that are written at once.
            max_waiting: requests that wait, of all clients; more are refused (`Busy`).
            prefill_tokens: of prompts that are read between two steps.

        Raises:
            AlignvecError: a vector cannot be gated in this model, or its rows cannot be joined.
        """
        check_streams(model.tokenizer)
        self.model = model
        self.max_rows, self.max_waiting = max_rows, max_waiting
        # Positions that are scaled by the longest row would make rows depend on each other.
        limits = model.context, scaled_beyond(model.model)
        self.context = int(min(2**20, *filter(None, limits)))
        model.set({})
        self.cells = max_rows * min(self.context, _LONG)
        self._writing = Writing(model, max_rows, self.cells, prefill_tokens)
        self._wake = threading.Condition()
        self._turns = Turns()
        self._scorings: deque[Scoring] = deque()
        self._scored = 0  # requests whose responses are read, wait or are computed
        # Not the loop's own: at the end that one is waited for.
        self._reader = ThreadPoolExecutor(1, "alignvec-responses")
        self._state = "new"  # -> open -> draining -> closed
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return self._writing.running

    @property
    def waiting(self) -> int:
        """Requests that are not let in yet."""
        return len(self._turns)

    @property
    def tokens(self) -> int:
        """That were written since the start."""
        return self._writing.tokens

    @property
    def steps(self) -> int:
        """Forward passes since the start."""
        return self._writing.steps

    # From the event loop.

    async def start(self) -> None:
        """Begin to answer."""
        self._state = "open"
        self._thread.start()

    async def stop(self, drain: float = 0.0) -> None:
        """End: nothing new is taken, what runs or waits may still end; then it is told `Stopped`.

        Args:
            drain: seconds that it may take.
        """
        with self._wake:
            self._state = "draining"
            self._wake.notify()
        end = time.monotonic() + drain
        while time.monotonic() < end and not self._rests():
            await asyncio.sleep(0.02)
        with self._wake:
            self._state = "closed"
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    async def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Pieces of the answers as they are written. Close it to cancel them.

        Raises:
            Busy: too many wait already.
            Stopped: the server ends.
            Failed: a step failed.
            NoNumbersError: the setting breaks the model, so that it computes no numbers.
        """
        job = Job(request)
        with self._wake:
            self._check_open()
            if self.waiting >= self.max_waiting:
                self._make_room(request.client)
            self._turns.add(job)
            self._wake.notify()
        try:
            async for piece in job.pieces():
                yield piece
        finally:
            with self._wake:
                job.cancelled = True
                self._turns.remove(job)
                self._wake.notify()

    async def score(self, messages: Messages, responses: Sequence[str], setting: Setting) -> Sums:
        """The log-likelihood of each response, in nats, and its number of tokens.

        Raises:
            Busy, Stopped, AlignvecError: as `generate`; or a response is empty or too long.
        """
        if self._scored >= self.max_waiting:
            raise self._busy
        self._scored += 1
        try:
            row = await self._row(messages, responses)
            scoring = Scoring(row, partial(self._likelihoods, setting))
            with self._wake:
                self._check_open()
                self._scorings.append(scoring)
                self._wake.notify()
            return await scoring.done
        finally:
            self._scored -= 1

    def _check_open(self) -> None:
        if self._state != "open":
            raise Stopped

    def _make_room(self, client: str) -> None:
        """In a full queue, who has most gives a place to a client that has less."""
        other = self._turns.last_of_most(client)
        if other is None:
            raise self._busy
        self._turns.remove(other)
        other.tell(self._busy)

    @property
    def _busy(self) -> Busy:
        return Busy(max(1.0, self._writing.seconds * self.waiting / self.max_rows))

    async def _row(self, messages: Messages, responses: Sequence[str]) -> Row:
        """Part by part: none is read for who has gone, at the end, or behind one too long."""
        prompt = await self._aside(Prompt, self.model.tokenizer, messages)
        self._check_fits("the prompt", len(prompt.tokens))
        parts = prompt.parts(responses)
        tokens = await self._aside(next, parts)
        if not tokens:
            raise AlignvecError("an empty prompt: there is nothing that a response could follow")
        read: list[list[int]] = []
        for number in range(len(responses)):
            read.append(await self._aside(next, parts))
            if not read[-1]:
                raise AlignvecError(f"response {number} has no tokens: it has no likelihood")
            self._check_fits(f"the prompt with response {number}", len(tokens) + len(read[-1]))
        return Row(tokens, read)

    async def _aside(self, work: Callable[..., Result], *given: Any) -> Result:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, *given)

    def _check_fits(self, what: str, tokens: int) -> None:
        if tokens > self.context:
            raise AlignvecError(
                f"this model's context is {self.context} tokens; {what} has {tokens}"
            )

    def _rests(self) -> bool:
        with self._wake:  # who is being let in is in no queue
            return self._at_rest

    @property
    def _at_rest(self) -> bool:
        return self._writing.idle and not self._scorings and not self._turns

    # In the engine's thread.

    def _run(self) -> None:
        while self._await_work():
            try:
                self._writing.drop_cancelled()
                self._score()
                with self._wake:
                    self._writing.admit(self._turns)
                self._writing.step()
            except Exception as error:
                self._writing.fail(error)
        self._close()

    def _await_work(self) -> bool:
        """Sleep until there is something to do; false if there never will be."""
        with self._wake:
            self._wake.wait_for(lambda: self._state == "closed" or not self._at_rest)
            return self._state != "closed"

    def _close(self) -> None:
        """Tell all who are still there."""
        self._writing.stop()
        with self._wake:
            while self._turns:
                self._turns.pop().tell(Stopped())
            while self._scorings:
                self._scorings.popleft().fail(Stopped())

    def _score(self) -> None:
        """A part of what is to be scored; then it is another's turn."""
        if self._scorings:
            more = self._scorings[0].step()
            scoring = self._scorings.popleft()
            if more:
                self._scorings.append(scoring)

    def _likelihoods(self, setting: Setting, row: Row) -> Sums:
        gate = self.model.gate
        with torch.inference_mode(), gate.rows(gate.tensor([setting])):
            (found,) = read_rows(self.model.model, [row])
        sums = [float(one.double().sum()) for one in found]
        if not torch.tensor(sums).isfinite().all():
            raise NoNumbersError(NO_NUMBERS)
        return [(value, len(one)) for value, one in zip(sums, found, strict=True)]
