"""Many texts from a writer: at once, within a budget, each asked for and paid once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields

from alignvec.data.synthesis.chat import Chat, Task, UnwrittenError
from alignvec.data.synthesis.journal import Journal, key_of
from alignvec.errors import AlignvecError
from alignvec.progress import Bar, progress

logger = logging.getLogger(__name__)

_FAILURES_TO_STOP = (
    20  # failures without one text: a wrong model name or option, not a wrong request
)


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
        beyond: not asked for, the budget is spent.
        reasons: of some that failed.
    """

    written: int = 0
    known: int = 0
    failed: int = 0
    beyond: int = 0
    reasons: list[str] = field(default_factory=list)

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def missing(self) -> str:
        """In a line, what is not there; empty if all is."""
        parts = []
        if self.failed:
            parts.append(f"{self.failed} could not be had ({self.reasons[0]})")
        if self.beyond:
            parts.append(f"{self.beyond} are beyond the budget; raise it and run again")
        return "; ".join(parts)


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
        if key_of(task, chat) not in journal:
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
    outcome = Outcome()
    asked: set[bytes] = set()  # and not answered yet
    read = written = 0  # tokens that they may take

    async def work() -> None:
        nonlocal read, written
        for task in tasks:
            key = key_of(task, chat)
            if key in journal or key in asked:
                outcome.known += 1
            elif not budget.covers(
                journal.prompt_tokens + read + task.prompt_tokens,
                journal.completion_tokens + written + task.max_tokens,
            ):
                outcome.beyond += 1
            else:
                asked.add(key)
                read, written = read + task.prompt_tokens, written + task.max_tokens
                try:
                    await journal.add(key, await chat.complete(task))
                    outcome.written += 1
                except UnwrittenError as error:
                    await journal.add(key, str(error))
                    outcome.failed += 1
                    outcome.reasons = [*outcome.reasons, str(error)][:10]
                    if outcome.failed == _FAILURES_TO_STOP and not outcome.written:
                        raise AlignvecError(
                            f"the first {_FAILURES_TO_STOP} all failed: {error}"
                        ) from None
                asked.remove(key)
                read, written = read - task.prompt_tokens, written - task.max_tokens
            bar.update()

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        await chat.close()
    return outcome
