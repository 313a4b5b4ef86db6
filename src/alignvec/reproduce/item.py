"""One piece of a study: computed once, and what it costs before it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Item:
    """A result of a part.

    Attributes:
        name: of its file, parts with slashes between.
        run: computes it, as JSON.
    """

    name: str
    run: Callable[[], Any]
    work: Work


def total(items: Sequence[Item]) -> Work:
    """The work of all."""
    return sum((item.work for item in items), Work())
