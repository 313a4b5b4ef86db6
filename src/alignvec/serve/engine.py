"""The engine: requests of all clients in shared forward passes, one thread with the model.

A step is one forward pass that gives every running answer a token. Between two steps who has gone
is dropped, and who waits is let in: prompts are read a chunk a step, so that a long one does not
keep the others waiting, and then join. Waiting requests are let in by turns of their clients.

From outside it is asyncio: `generate` is an asynchronous iterator, and to close it is to cancel.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from alignvec.base.branching import read_rows
from alignvec.base.logprobs import NO_NUMBERS, no_numbers
from alignvec.base.messages import Messages
from alignvec.base.prompts import Prompt
from alignvec.base.rope import scaled_beyond
from alignvec.errors import AlignvecError, one_line
from alignvec.knobs.model import KnobModel
from alignvec.knobs.setting import Setting
from alignvec.serve.rows import Joinable, Rows
from alignvec.serve.sampling import Chance, Likelihood, Sampling, likelihoods, next_tokens
from alignvec.serve.text import Text, Told, check_streams

logger = logging.getLogger(__name__)

_LONG = 2048  # tokens of prompt and answer that a row has room for on average


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


class _Job:
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


class _Answer:
    """One answer being written: a row of the batch."""

    def __init__(self, job: _Job, index: int, tokenizer: Any) -> None:
        request = job.request
        self.job, self.index = job, index
        self.chance = Chance(request.sampling, index)
        before = request.tokens if request.continues else ()
        self.text = Text(tokenizer, request.sampling.stop, before)
        self.tokens = 0
        self.began = time.monotonic()
        self.likely: list[tuple[int, Likelihood]] = []  # of the tokens that are not told yet


class _Reading:
    """Prompts of a few requests on their way into the batch, a chunk a step."""

    def __init__(self, model: Joinable, jobs: Sequence[_Job]) -> None:
        self.jobs = jobs
        lists = [list(job.request.tokens) for job in jobs]
        length = max(map(len, lists))
        self.real = torch.tensor([[False] * (length - len(x)) + [True] * len(x) for x in lists])
        self.tokens = torch.tensor([[0] * (length - len(x)) + x for x in lists])
        settings = [job.request.setting for job in jobs]
        self.rows = model.rows(
            torch.tensor([[one[knob] for knob in model.gate.vectors] for one in settings])
        )
        self._at = 0

    def read(self, budget: int) -> torch.Tensor | None:
        """[J, V]: the logits after the prompts, once they are read to their end.

        Args:
            budget: tokens that one forward pass may have.
        """
        end = self._at + max(1, budget // len(self.tokens))
        logits = self.rows.read(self.tokens[:, self._at : end], self.real[:, self._at : end])
        self._at = end
        return logits if end >= self.tokens.shape[1] else None


class Engine:
    """Answers requests of any settings, joined between steps.

    Attributes:
        context: most tokens of a prompt with its answer.
        running: answers being written. waiting: requests that are not let in yet.
        tokens: that were written since the start. steps: forward passes since the start.
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
        self.running = self.tokens = self.steps = 0
        config = model.model.config.get_text_config()
        # Positions that are scaled by the longest row would make rows depend on each other.
        limits = getattr(config, "max_position_embeddings", None), scaled_beyond(model.model)
        self.context = int(min(2**20, *filter(None, limits)))
        model.set({})
        self._joinable = Joinable(model.model, model.gate)
        self._prefill_tokens = prefill_tokens
        self._cells = max_rows * min(self.context, _LONG)
        ends = model.model.generation_config.eos_token_id
        told = ends if isinstance(ends, list) else [ends]
        self._ends = {*told, model.tokenizer.eos_token_id} - {None}
        self._wake = threading.Condition()
        self._queues: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._calls: deque[Callable[[], None]] = deque()
        self._state = "new"  # -> open -> draining -> closed
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._answers: list[_Answer] = []
        self._rows: Rows | None = None
        self._last: list[int] = []
        self._reading: _Reading | None = None
        self._seconds = 0.0  # that an answer takes, about

    @property
    def waiting(self) -> int:
        """Requests that are not let in yet."""
        return sum(map(len, list(self._queues.values())))

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
        while time.monotonic() < end and (self.running or self.waiting or self._reading):
            await asyncio.sleep(0.02)
        with self._wake:
            self._state = "closed"
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    async def generate(self, request: Request) -> AsyncIterator[Piece]:
        """Pieces of the answers as they are written. Close it to cancel them.

        Raises:
            Busy: too many wait already.
            Stopped: the server ends.
            AlignvecError: the setting breaks the model, so that it computes no numbers.
        """
        job = _Job(request)
        self._submit(job)
        try:
            async for piece in job.pieces():
                yield piece
        finally:
            job.cancelled = True
            with self._wake:
                queue = self._queues.get(request.client)
                if queue and job in queue:
                    queue.remove(job)
                self._wake.notify()

    async def score(
        self, messages: Messages, responses: Sequence[str], setting: Setting
    ) -> list[tuple[float, int]]:
        """The log-likelihood of each response, in nats, and its number of tokens.

        Raises:
            Stopped, AlignvecError: as `generate`.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[tuple[float, int]]] = loop.create_future()

        def settle(method: Callable[[Any], None], value: Any) -> None:
            if not done.done():
                method(value)

        def call() -> None:
            try:
                if self._state == "closed":
                    raise Stopped
                found = self._score(messages, responses, setting)
            except Exception as error:
                loop.call_soon_threadsafe(settle, done.set_exception, error)
            else:
                loop.call_soon_threadsafe(settle, done.set_result, found)

        with self._wake:
            if self._state != "open":
                raise Stopped
            if len(self._calls) >= self.max_waiting:
                raise Busy(self._retry_after())
            self._calls.append(call)
            self._wake.notify()
        return await done

    def _submit(self, job: _Job) -> None:
        with self._wake:
            if self._state != "open":
                raise Stopped
            if self.waiting >= self.max_waiting:
                raise Busy(self._retry_after())
            self._queues.setdefault(job.request.client, deque()).append(job)
            self._wake.notify()

    def _retry_after(self) -> float:
        return max(1.0, self._seconds * self.waiting / self.max_rows)

    # In the engine's thread.

    def _run(self) -> None:
        while self._await_work():
            try:
                self._drop_cancelled()
                if self._calls:
                    self._calls.popleft()()
                self._read()
                self._step()
            except Exception as error:
                logger.error("a step failed, and its requests are told: %s", one_line(error))
                self._fail(AlignvecError(f"a step failed: {one_line(error)}"))
        self._fail(Stopped())

    def _await_work(self) -> bool:
        """Sleep until there is something to do; false if there never will be."""
        with self._wake:
            while self._state != "closed" and not (
                self._answers or self._reading or self._calls or self.waiting
            ):
                self._wake.wait()
            return self._state != "closed"

    def _fail(self, error: AlignvecError) -> None:
        """Tell everyone in work, and if the engine is closed everyone who waits."""
        jobs = [answer.job for answer in self._answers]
        jobs += self._reading.jobs if self._reading else []
        with self._wake:
            if self._state == "closed":
                jobs += [job for queue in self._queues.values() for job in queue]
                self._queues.clear()
                calls, self._calls = self._calls, deque()
            else:
                calls = deque()
        for job in dict.fromkeys(jobs):
            job.tell(error)
        for call in calls:
            call()
        self._answers, self._rows, self._reading, self._last = [], None, None, []
        self.running = 0

    def _drop_cancelled(self) -> None:
        self._keep([not answer.job.cancelled for answer in self._answers])
        if self._reading and all(job.cancelled for job in self._reading.jobs):
            self._reading = None

    def _keep(self, kept: Sequence[bool]) -> None:
        if all(kept):
            return
        which = [row for row, keep in enumerate(kept) if keep]
        self._answers = [self._answers[row] for row in which]
        self._last = [self._last[row] for row in which]
        self.running = len(which)
        if self._rows and which:
            self._rows.select(which)
        else:
            self._rows = None

    def _admit(self) -> list[_Job]:
        """Those who are let in now: by turns of clients, as long as there is room."""
        let_in: list[_Job] = []
        rows = len(self._answers)
        longest = max((answer.job.request.longest for answer in self._answers), default=0)
        with self._wake:
            while self._queues:
                client, queue = next(iter(self._queues.items()))
                if not queue:
                    del self._queues[client]
                    continue
                request = queue[0].request
                rows, longest = rows + request.n, max(longest, request.longest)
                width = max(len(job.request.tokens) for job in [*let_in, queue[0]])
                alone = not self._answers and not let_in
                full = rows > self.max_rows or rows * longest > self._cells
                # Prompts that are read together are padded to the longest.
                wide = let_in and width * (len(let_in) + 1) > self._prefill_tokens
                if not alone and (full or wide):
                    break
                let_in.append(queue.popleft())
                self._queues.move_to_end(client)
                if not queue:
                    del self._queues[client]
        return let_in

    def _read(self) -> None:
        """A chunk of the prompts that are being read; at their end they join."""
        if self._reading is None:
            jobs = self._admit()
            if not jobs:
                return
            self._reading = _Reading(self._joinable, jobs)
        reading = self._reading
        logits = reading.read(self._prefill_tokens)
        self.steps += 1
        if logits is None:
            return
        self._reading = None
        pairs = [
            (row, _Answer(job, index, self.model.tokenizer))
            for row, job in enumerate(reading.jobs)
            if not job.cancelled
            for index in range(job.request.n)
        ]
        if not pairs:
            return
        which = [row for row, _ in pairs]
        reading.rows.select(which)
        if self._rows is None:
            self._rows = reading.rows
        else:
            self._rows.join(reading.rows)
        first = len(self._answers)
        self._answers += [answer for _, answer in pairs]
        self._last += [0] * len(pairs)
        self.running = len(self._answers)
        self._write(logits[which], first)

    def _step(self) -> None:
        """A token for every answer."""
        if self._rows is None or not self._answers:
            return
        logits = self._rows.read(torch.tensor(self._last)[:, None])
        self.steps += 1
        self._write(logits, 0)

    def _write(self, logits: torch.Tensor, first: int) -> None:
        """Draw the tokens of the answers from `first` on, and tell them."""
        answers = self._answers[first:]
        broken = no_numbers(logits).tolist()
        top = [answer.job.request.sampling.top_logprobs for answer in answers]
        asked = [row for row, wanted in enumerate(top) if wanted is not None]
        plain = logits[asked].clone() if asked else None  # before penalties
        tokens = next_tokens(logits.nan_to_num(), [answer.chance for answer in answers])
        likely: dict[int, Likelihood] = {}
        if plain is not None:
            wanted = max(top[row] or 0 for row in asked)
            found = likelihoods(plain, [tokens[row] for row in asked], wanted)
            likely = dict(zip(asked, found, strict=True))
        kept = [True] * first
        for row, (answer, token) in enumerate(zip(answers, tokens, strict=True)):
            if broken[row]:
                answer.job.tell(AlignvecError(NO_NUMBERS))
                answer.job.cancelled = True
                kept.append(False)
                continue
            self._last[first + row] = token
            kept.append(not self._tell(answer, token, likely.get(row)))
        self._keep(kept)

    def _tell(self, answer: _Answer, token: int, likely: Likelihood | None) -> bool:
        """Tell an answer's client of a token; true if it was the last."""
        wish = answer.job.request.sampling
        answer.tokens += 1
        self.tokens += 1
        answer.chance.counts[token] += 1
        full = answer.tokens >= wish.max_tokens
        finish = "length" if full else None
        if token in self._ends:
            told, finish = answer.text.end(), "stop"
        else:
            if likely is not None:
                answer.likely.append((token, likely))
            told = answer.text.add(token, last=full)
            finish = "stop" if told.stopped else finish
        logprobs = self._logprobs(answer, told)
        answer.job.tell(Piece(answer.index, told.text, logprobs, answer.tokens, finish))
        if finish is not None:
            took = time.monotonic() - answer.began
            self._seconds = 0.9 * self._seconds + 0.1 * took if self._seconds else took
        return finish is not None

    def _logprobs(self, answer: _Answer, told: Told) -> list[TokenLogprob]:
        count = min(len(told.tokens), len(answer.likely))
        ready, answer.likely = answer.likely[:count], answer.likely[count:]
        most = answer.job.request.sampling.top_logprobs or 0
        return [
            self._token(token, of.logprob, [self._token(*one) for one in of.top[:most]])
            for token, of in ready
        ]

    def _token(self, token: int, logprob: float, top: Sequence[TokenLogprob] = ()) -> TokenLogprob:
        text = self.model.tokenizer.decode([token])
        return TokenLogprob(token, text, list(text.encode()), logprob, list(top))

    def _score(
        self, messages: Messages, responses: Sequence[str], setting: Setting
    ) -> list[tuple[float, int]]:
        row = Prompt(self.model.tokenizer, messages).row(responses)
        if not all(row.responses):
            raise AlignvecError("a response has no tokens: it has no likelihood")
        gate = self.model.gate
        with torch.inference_mode(), gate.rows(gate.tensor([setting])):
            (found,) = read_rows(self.model.model, [row])
        sums = [float(one.double().sum()) for one in found]
        if not torch.tensor(sums).isfinite().all():
            raise AlignvecError(NO_NUMBERS)
        return [(value, len(one)) for value, one in zip(sums, found, strict=True)]
