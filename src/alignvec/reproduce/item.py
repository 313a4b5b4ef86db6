"""One piece of a study: computed once, and what it costs before it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Work:
    """What an item has to do.

    Attributes:
        trained: rows (a query with its responses) that a training reads.
        scored: rows that are scored.
        written: answers that are written.
    """

    trained: float = 0
    scored: float = 0
    written: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.trained + other.trained, self.scored + other.scored, self.written + other.written
        )


Shared = Mapping[str, Work]


@dataclass(frozen=True)
class Item:
    """A result of a part.

    Attributes:
        name: of its file, parts with slashes between.
        run: computes it, as JSON.
        work: that it does for itself.
        shared: work that other items may have done for it already, by name: trainings, and what is
            measured of the same setting.
    """

    name: str
    run: Callable[[], Any]
    work: Work = Work()
    shared: Shared = field(default_factory=dict)


def total(some: Iterable[Work]) -> Work:
    """All in one."""
    return sum(some, Work())


def works(items: Iterable[Item], done: Iterable[Item] = ()) -> list[Work]:
    """The work of each item, in this order after those that are done: what several share is that of
    the first.
    """
    there = {name for item in done for name in item.shared}
    found = []
    for item in items:
        new = [work for name, work in item.shared.items() if name not in there]
        there |= item.shared.keys()
        found.append(total([item.work, *new]))
    return found
