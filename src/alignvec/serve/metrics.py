"""What the server counts, for Prometheus. Each server has a registry of its own."""

from __future__ import annotations

import time
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from alignvec.serve.engine import Engine
from alignvec.serve.request import Piece

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server."""

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "alignvec_requests", "Requests that ended.", ["route", "status"], registry=registry
        )
        self.prompt_tokens = Counter(
            "alignvec_prompt_tokens", "Tokens of prompts that were taken on.", registry=registry
        )
        self.answer_tokens = Counter(
            "alignvec_answer_tokens", "Tokens that were written.", registry=registry
        )
        self.first = Histogram(
            "alignvec_first_token_seconds",
            "From the request to the first token of an answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.between = Histogram(
            "alignvec_between_tokens_seconds",
            "From one token of an answer to its next.",
            buckets=_SECONDS,
            registry=registry,
        )
        for name, about in (
            ("running", "Answers being written."),
            ("waiting", "Requests that wait for a place."),
        ):
            gauge = Gauge(f"alignvec_{name}", about, registry=registry)
            gauge.set_function(partial(getattr, engine, name))

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)


class Stopwatch:
    """Counts and times the tokens of one request."""

    def __init__(self, metrics: Metrics, began: float) -> None:
        """Args:
        began: when the request came, by `time.perf_counter`.
        """
        self._metrics = metrics
        self._began = began
        self._last: dict[int, tuple[float, int]] = {}

    def take(self, number: int, piece: Piece) -> None:
        """What a step gave to answer `number`."""
        now = time.perf_counter()
        before, tokens = self._last.get(number, (0.0, 0))
        new = piece.tokens - tokens
        if not new:
            return
        self._metrics.answer_tokens.inc(new)
        if tokens:
            self._metrics.between.observe((now - before) / new)
        else:
            self._metrics.first.observe(now - self._began)
        self._last[number] = now, piece.tokens
