"""Answers in work: prompts are read and join, and every step writes a token of each answer.

All of it happens in one thread, the engine's.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from alignvec.base.logprobs import NO_NUMBERS, no_numbers
from alignvec.base.prompts import end_tokens
from alignvec.errors import NoNumbersError, one_line, untold
from alignvec.knobs.model import KnobModel
from alignvec.serve.request import Failed, Job, Piece, Stopped, TokenLogprob
from alignvec.serve.rows import Joinable, Rows
from alignvec.serve.sampling import Chance, Likelihood, likelihoods, next_tokens
from alignvec.serve.spelling import Spelling, shown
from alignvec.serve.text import Text, Told
from alignvec.serve.turns import Turns

logger = logging.getLogger(__name__)

# Prompts are padded to a multiple of this, and read in such chunks: on a CPU PyTorch makes a kernel
# for every new shape of a product of bfloat16 numbers, and keeps it.
_GRAIN = 16

# What bases for chat have not, and `generate` would do.
_PASSED_OVER = (
    "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "suppress_tokens",
    "begin_suppress_tokens", "min_length", "min_new_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "exponential_decay_length_penalty",
)  # fmt: skip


def _fail(jobs: Sequence[Job], error: Exception) -> None:
    """Tell requests that the engine failed them."""
    # The message of torch's own errors says what there was no room for; others may quote a text.
    said = one_line(error) if isinstance(error, RuntimeError) else ""
    logger.error("a step failed, and its requests are told: %s %s", untold(error), said)
    for job in jobs:
        job.tell(Failed("a step of the engine failed; try again"))


class _Answer:
    """One answer being written: a row of the batch."""

    def __init__(self, job: Job, index: int, tokenizer: Any, repetition: float) -> None:
        request = job.request
        self.job, self.index = job, index
        self.chance = Chance(request.sampling, index, request.tokens, repetition)
        before = request.tokens if request.continues else ()
        self.text = Text(tokenizer, request.sampling.stop, before)
        self.tokens = 0
        self.began = time.monotonic()
        self.likely: list[tuple[int, Likelihood]] = []  # of the tokens that are not told yet


class _Reading:
    """Prompts of a few requests on their way into the batch, a chunk a step."""

    def __init__(self, model: Joinable, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        lists = [list(job.request.tokens) for job in jobs]
        length = -(-max(map(len, lists)) // _GRAIN) * _GRAIN
        self.real = torch.tensor([[False] * (length - len(x)) + [True] * len(x) for x in lists])
        self.tokens = torch.tensor([[0] * (length - len(x)) + x for x in lists])
        settings = [job.request.setting for job in jobs]
        self.rows = model.rows(
            torch.tensor([[one[knob] for knob in model.gate.vectors] for one in settings])
        )
        self._at = 0

    @property
    def left(self) -> int:
        """Tokens of the longest prompt that are not read yet."""
        return self.tokens.shape[1] - self._at

    def read(self, budget: int) -> torch.Tensor | None:
        """[J, V]: the logits after the prompts, once they are read to their end.

        Args:
            budget: tokens that one forward pass may have.
        """
        end = self._at + max(1, budget // len(self.tokens) // _GRAIN) * _GRAIN
        logits = self.rows.read(self.tokens[:, self._at : end], self.real[:, self._at : end])
        self._at = end
        return None if self.left > 0 else logits


class Writing:
    """The answers that are being written.

    Attributes:
        running: answers. tokens, steps: that were written, and computed, since the start.
        seconds: that an answer took of late.
    """

    def __init__(self, model: KnobModel, max_rows: int, max_cells: int, prefill_tokens: int):
        """As `Engine`. Args: max_cells: rows times the longest of them, padding and all."""
        self._model, self._joinable = model, Joinable(model.model, model.gate)
        self._max_rows, self._max_cells, self._prefill = max_rows, max_cells, prefill_tokens
        self._ends = {*end_tokens(model.model), model.tokenizer.eos_token_id} - {None}
        self._repetition = _repetition(model.model.generation_config)
        self._spelling = Spelling(model.tokenizer)
        self.running = self.tokens = self.steps = 0
        self.seconds = 0.0
        self._answers: list[_Answer] = []
        self._last: list[int] = []  # the newest token of each
        self._rows: Rows | None = None
        self._readings: deque[_Reading] = deque()  # a long one, and a short one that it lets by

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._answers and not self._readings

    def drop_cancelled(self) -> None:
        """Nothing is computed any more for who has gone."""
        self._keep([not answer.job.cancelled for answer in self._answers])
        for reading in list(self._readings):
            if all(job.cancelled for job in reading.jobs):
                self._readings.remove(reading)

    def admit(self, turns: Turns) -> None:
        """Let in who is next, as long as there is room and prompts are not being read already; a
        long one lets those by that a step can read.
        """
        beside = bool(self._readings)
        if len(self._readings) > 1 or (beside and self._readings[0].left <= self._prefill):
            return
        jobs: list[Job] = []
        inside = [job.request for reading in self._readings for job in reading.jobs]
        rows = len(self._answers) + sum(request.n for request in inside)
        inside += [answer.job.request for answer in self._answers]
        longest = max((request.longest for request in inside), default=0)
        while job := turns.first():
            rows, longest = rows + job.request.n, max(longest, job.request.longest)
            full = rows > self._max_rows or rows * longest > self._max_cells
            # Prompts that are read together are padded to the longest.
            width = max(len(one.request.tokens) for one in (*jobs, job))
            wide = width * (len(jobs) + 1) > self._prefill
            if (full and (inside or jobs)) or (wide and (beside or jobs)):
                break
            jobs.append(turns.pop())
        if not jobs:
            return
        try:
            self._readings.append(_Reading(self._joinable, jobs))
        except Exception as error:
            _fail(jobs, error)

    def step(self) -> None:
        """Read a chunk of prompts, if there are any, and write a token of every answer."""
        self._read()
        if self._rows is not None and self._answers:
            logits = self._rows.read(torch.tensor(self._last)[:, None])
            self.steps += 1
            self._write(logits, 0)

    def fail(self, error: Exception) -> None:
        """A step failed: everyone is told, and forgotten."""
        _fail(self._forget(), error)

    def stop(self) -> None:
        """The engine stops: everyone is told, and forgotten."""
        for job in self._forget():
            job.tell(Stopped())

    def _forget(self) -> list[Job]:
        jobs = [answer.job for answer in self._answers]
        jobs += [job for reading in self._readings for job in reading.jobs]
        self._answers, self._rows, self._last = [], None, []
        self._readings.clear()
        self.running = 0
        return list(dict.fromkeys(jobs))

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

    def _read(self) -> None:
        """A chunk of the prompts; at their end they join."""
        if not self._readings:
            return
        reading = self._readings[0]
        try:
            logits = reading.read(self._prefill)
        except Exception as error:  # what is written already has rows of its own
            self._readings.popleft()
            _fail(reading.jobs, error)
            return
        self.steps += 1
        if logits is None:
            self._readings.rotate(-1)
            return
        pairs = [
            (row, _Answer(job, index, self._model.tokenizer, self._repetition))
            for row, job in enumerate(reading.jobs)
            if not job.cancelled
            for index in range(job.request.n)
        ]
        if not pairs:
            self._readings.popleft()
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
        self._readings.popleft()  # not before: who is in neither is never told
        self._write(logits[which], first)

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
                answer.job.tell(NoNumbersError(NO_NUMBERS))
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
            self.seconds = 0.9 * self.seconds + 0.1 * took if self.seconds else took
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
        spelled = self._spelling(token)
        return TokenLogprob(token, shown(spelled), list(spelled), logprob, list(top))


def _repetition(config: Any) -> float:
    """The penalty of repetition that a base's generation_config has, as `generate` heeds it.

    What else is there that changes logits is said to be passed over; how answers are drawn
    (temperature, top_p) is for the request to say, as OpenAI has it.
    """
    passed = [name for name in _PASSED_OVER if getattr(config, name, None)]
    if passed:
        logger.warning("the base's generation_config has %s: passed over", ", ".join(passed))
    return float(getattr(config, "repetition_penalty", None) or 1.0)
