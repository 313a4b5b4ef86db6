"""How far long work is.

A step of any length says so through `progress`, whether somebody looks or not; the command line
turns the display on (`show`). In a library, a pipe or a log nothing is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from tqdm import tqdm


class Bar(Protocol):
    """What a step is given: tqdm's own bar, drawn or not."""

    n: int
    total: int | None
    unit: str

    def update(self, n: int = 1) -> Any:
        """`n` more units are done."""

    def set_postfix(self, **values: Any) -> None:
        """What is worth seeing beside the bar."""


_shown = False
_outermost: ContextVar[Bar | None] = ContextVar("_outermost", default=None)


def show(on: bool) -> None:
    """Whether the steps that follow draw their bars on stderr."""
    global _shown
    _shown = on


@contextmanager
def progress(what: str, unit: str, total: int | None = None) -> Iterator[Bar]:
    """A bar for one step; a unit of "B" is shown in kilo, mega, giga.

    A step within a step moves the outer bar if it counts in the same unit, and is silent if not.
    """
    outer = _outermost.get()
    if outer is not None:
        yield outer if outer.unit == unit else tqdm(disable=True)
        return
    with tqdm(
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        total=total,
        file=sys.stderr,
        leave=False,
        delay=0.3,  # a refusal stays one line
        disable=not _shown,
    ) as bar:
        bar.unit = unit  # a disabled bar forgets it
        token = _outermost.set(bar)
        try:
            yield bar
        finally:
            _outermost.reset(token)
