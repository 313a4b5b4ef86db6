"""What is known of a request when it ends, noted on its way by whoever finds it out."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Visit:
    """What is known of a request when it ends.

    Attributes:
        began: when it came, by `time.perf_counter`.
        key: name of the client's key.
        knobs: the setting that answered.
        tokens: of the prompt, and written.
        first: seconds to the first token.
        prompt: what was asked; empty unless it is to be logged.
        failure: why a stream ended before its end.
    """

    began: float = field(default_factory=time.perf_counter)
    key: str | None = None
    knobs: dict[str, float] | None = None
    tokens: tuple[int, int] | None = None
    first: float | None = None
    prompt: str = ""
    failure: str = ""


def visit_of(scope: MutableMapping[str, Any]) -> Visit:
    """The visit that a request is."""
    state = scope.setdefault("state", {})
    visit: Visit = state.setdefault("alignvec_visit", Visit())
    return visit
