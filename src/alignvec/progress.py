"""How far long work is, on stderr, with the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that takes (done, total). Bytes (unit "B") are shown in kilo, mega, giga."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    with tqdm(
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        file=sys.stderr,
        leave=not terminal,  # in a log, what follows starts on a line of its own
        mininterval=0.1 if terminal else 10,
    ) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance
