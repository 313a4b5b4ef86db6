"""Many texts from a writer: at once, within a budget, each asked for and paid once."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from math import ceil

from alignvec.data.synthesis.chat import Chat, RefusedError, Task, UnwrittenError
from alignvec.data.synthesis.journal import Journal, Refusal, key_of
from alignvec.errors import AlignvecError
from alignvec.progress import Bar, progress

logger = logging.getLogger(__name__)

# Failures without one text: a wrong model name or option, not a wrong request.
_FAILURES_TO_STOP = 20
_GRACE = 120.0  # seconds for what is on its way when the run ends
_REASONS_SHOWN, _NAMES_SHOWN = 3, 6


@dataclass(frozen=True)
class Budget:
    """What all texts of a journal may cost together, earlier runs included.

    Attributes:
        tokens: read and written; None is no limit.
        money: in the currency of the prices; None is no limit.
        prices: of a million tokens read, and of a million written.
    """

    tokens: int | None = None
    money: float | None = None
    prices: tuple[float, float] = (0.0, 0.0)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """In money."""
        return (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6

    def covers(self, prompt_tokens: int, completion_tokens: int) -> bool:
        within_tokens = self.tokens is None or prompt_tokens + completion_tokens <= self.tokens
        return within_tokens and (
            self.money is None or self.cost(prompt_tokens, completion_tokens) <= self.money
        )


@dataclass
class Outcome:
    """What became of the texts that were asked for: their sum is the number of tasks.

    Attributes:
        known: written by an earlier run, or asked for twice.
        failed: refused, or only answered with what is no text to use. They are not asked for again.
        unanswered: the writer had an error of its own; a later run asks for them again.
        beyond: not asked for, the budget is spent.
        reasons: (name of a text, why) of the failed and the unanswered.
    """

    written: int = 0
    known: int = 0
    failed: int = 0
    unanswered: int = 0
    beyond: int = 0
    reasons: list[tuple[str, str]] = field(default_factory=list)

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def missing(self) -> str:
        """In a line, what is not there; empty if all is."""
        parts = []
        if self.failed or self.unanswered:
            count = self.failed + self.unanswered
            again = f"; {self.unanswered} of them may come if you run again" * bool(self.unanswered)
            way_out = "; change what is asked, or the model" * bool(self.failed)
            parts.append(f"{count} could not be had: {self._why()}{way_out}{again}")
        if self.beyond:
            parts.append(f"{self.beyond} are beyond the budget; raise it and run again")
        return "; ".join(parts)

    def _why(self) -> str:
        """The commonest reasons, each with the texts that it is about."""
        names = defaultdict[str, list[str]](list)
        for name, reason in self.reasons:
            names[reason].append(name)
        common = sorted(names, key=lambda reason: -len(names[reason]))
        parts = [f"{_listed(names[reason])} ({reason})" for reason in common[:_REASONS_SHOWN]]
        more = len(common) - _REASONS_SHOWN
        return "; ".join(parts) + (f"; and {more} other reasons" if more > 0 else "")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def write_texts(
    tasks: Callable[[], Iterable[Task]],
    chat: Chat,
    journal: Journal,
    budget: Budget | None = None,
    concurrency: int = 16,
    announce: bool = True,
) -> Outcome:
    """Have every text written that is not in the journal yet.

    Args:
        tasks: gives them, the same at every call; they need not fit the memory.
        concurrency: requests at the same time.
        announce: log before the start what it may cost.

    Raises:
        AlignvecError: the writer or the disk gives up; what is in the journal stays.
    """
    budget = budget or Budget()
    total = _estimate(tasks(), chat, journal, budget) if announce else None
    with progress("writing", "text", total) as bar:
        return asyncio.run(_write(iter(tasks()), chat, journal, budget, concurrency, bar))


def _estimate(tasks: Iterable[Task], chat: Chat, journal: Journal, budget: Budget) -> int:
    """The number of tasks; logs what the new ones may cost at most."""
    total = new = read = written = 0
    for task in tasks:
        total += 1
        if journal.key(task, chat) is None:
            new, read = new + 1, read + task.prompt_tokens
            written += task.max_tokens
    if new:
        price = f", {budget.cost(read, written):.2f} in money" if any(budget.prices) else ""
        logger.info(
            "%d texts, %d of them known; the others: about %d tokens read, at most %d written%s",
            total, total - new, read, written, price,
        )  # fmt: skip
    if not budget.covers(journal.prompt_tokens + read, journal.completion_tokens + written):
        logger.warning("the budget may not reach for all of them")
    return total


async def _write(
    tasks: Iterator[Task],
    chat: Chat,
    journal: Journal,
    budget: Budget,
    concurrency: int,
    bar: Bar,
) -> Outcome:
    run = _Run(chat, journal, budget)
    ended: list[AlignvecError] = []
    numbered = enumerate(tasks)

    async def work() -> None:
        for number, task in numbered:
            try:
                await run.work_on(number, task)
            except AlignvecError as error:  # what the others are being written is paid for
                ended.append(error)
                for one in workers:  # but one may wait for an hour that will not come
                    asyncio.get_running_loop().call_later(_GRACE, one.cancel)
            if ended:
                return
            bar.update()

    try:
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(work()) for _ in range(concurrency)]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        await chat.close()
    if ended:
        raise ended[0]
    return run.outcome


class _Run:
    """The texts of one run, several at a time.

    Attributes:
        outcome: so far.
    """

    def __init__(self, chat: Chat, journal: Journal, budget: Budget) -> None:
        self._chat, self._journal, self._budget = chat, journal, budget
        self._asked: dict[bytes, Task] = {}  # and not answered yet
        self._held: dict[bytes, Refusal] = {}  # not in the journal yet
        self._failed: list[int] = []  # numbers of texts
        self._in_vain = 0
        self._dearer = 1.0  # an answer is than its estimate, at most so far
        self.outcome = Outcome()

    async def work_on(self, number: int, task: Task) -> None:
        """Have it written, under another seed while the answers are rejected."""
        failed: Refusal | None = None
        asked = False
        for one in task.tries(self._chat.temperature):
            key = key_of(one, self._chat)
            if key in self._journal or key in self._asked:
                self.outcome.known += 1
                return
            failed = self._held.get(key) or self._journal.turned_away(key)
            if failed is None:
                if not self._covers(one):
                    self.outcome.beyond += 1
                    return
                asked = True
                try:
                    failed = await self._ask(one, key)
                except UnwrittenError as error:
                    self.outcome.unanswered += 1
                    self._note_failure(number, task, str(error), asked)
                    return
            if failed is None:
                self.outcome.written += 1
                return
            if failed.final:
                break
        assert failed is not None
        self.outcome.failed += 1
        self._note_failure(number, task, failed.reason, asked)

    def _covers(self, task: Task) -> bool:
        """The budget, with what is in flight."""
        pending = [task, *self._asked.values()]
        held = sum(refusal.prompt_tokens for refusal in self._held.values())
        read = held + ceil(self._dearer * sum(one.prompt_tokens for one in pending))
        written = ceil(self._dearer * sum(one.max_tokens for one in pending))
        return self._budget.covers(
            self._journal.prompt_tokens + read, self._journal.completion_tokens + written
        )

    async def _ask(self, task: Task, key: bytes) -> Refusal | None:
        """One answer, kept. Returns: why it is none to use; None of a text."""
        self._asked[key] = task
        try:
            answer = await self._chat.complete(task)
            await self._journal.add(key, answer)
            dearer = (answer.prompt_tokens + answer.completion_tokens) / (
                task.prompt_tokens + task.max_tokens
            )
            self._dearer = max(self._dearer, dearer)
            failed = self._journal.turned_away(key)
        except RefusedError as error:
            failed = self._held[key] = Refusal(str(error), task.prompt_tokens)
        finally:
            del self._asked[key]
        # Who refuses everything was asked in a wrong way, which somebody will mend.
        while self._held and len(self._journal):
            await self._journal.add(*self._held.popitem())
        return failed

    def _note_failure(self, number: int, task: Task, reason: str, asked: bool) -> None:
        place = bisect(self._failed, number)  # told in the order of the texts, not of the answers
        self._failed.insert(place, number)
        self.outcome.reasons.insert(place, (task.name, reason))
        self._in_vain += asked
        if self._in_vain == _FAILURES_TO_STOP and not self.outcome.written:
            raise AlignvecError(f"the first {_FAILURES_TO_STOP} all failed: {reason}")
