"""How far long work is, on stderr, with the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that takes (done, total). Bytes (unit "B") are shown in kilo, mega, giga."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    with ExitStack() as shown:
        bar: Any = None  # drawn when there is something to show: a refusal stays one line

        def advance(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = shown.enter_context(
                    tqdm(
                        desc=what,
                        unit=unit,
                        unit_scale=unit == "B",
                        file=sys.stderr,
                        leave=not terminal,  # in a log, what follows starts on a line of its own
                        mininterval=0.1 if terminal else 10,
                    )
                )
            bar.total = total
            bar.update(done - bar.n)

        yield advance
