"""The process around the application: its log, its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

if TYPE_CHECKING:
    from alignvec.serve.engine import Engine

_FLUSH = 5  # seconds in which the last responses have to be on their way


def log_requests() -> None:
    """A line for each request to stderr, with the time.

    By a way of its own: the command line's says nothing twice, and remembers all it said.
    """
    logger = logging.getLogger("alignvec.serve")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    # The response says of a knob that it is beyond its range, and to who turned it.
    logging.getLogger("alignvec.knobs.setting").setLevel(logging.ERROR)


def run(
    app: FastAPI, engine: Engine, found: socket.socket, drain: float, ready: Callable[[], None]
) -> None:
    """Serve until SIGINT or SIGTERM; then let what runs finish. A second signal ends at once.

    Args:
        drain: seconds that running requests have; the others are told that the server stops.
        ready: called when requests are taken.
    """
    log_requests()
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=_FLUSH,
    )
    Server(config, app, engine, drain, ready).run(sockets=[found])


class Closing(uvicorn.Server):
    """Uvicorn that says when it closes: a page that is open keeps a request for as long."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        """Args: app: its `state.closing`, if there is one, is an event that is set at the end."""
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Uvicorn's, which waits for all requests."""
        if closing := getattr(self._app.state, "closing", None):
            closing.set()
        await super().shutdown(sockets)


class Server(Closing):
    """With an end of our own."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: FastAPI,
        engine: Engine,
        drain: float,
        ready: Callable[[], None],
    ) -> None:
        super().__init__(config, app)
        self._engine = engine
        self._drain = drain
        self._ready = ready
        self._draining: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Uvicorn's; then requests are taken."""
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's would raise the signal anew after a clean end, which then looks like none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def told(*_: object) -> None:
            loop.call_soon_threadsafe(self.end)

        before = {one: signal.signal(one, told) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def end(self) -> None:
        """Drain and stop; the second time, stop at once."""
        loop = asyncio.get_running_loop()
        if self._draining is None:
            self._draining = loop.create_task(self._stop(self._drain))
        elif not self._draining.cancelled():
            self._draining.cancel()
            self._ending = loop.create_task(self._stop(0, at_once=True))

    async def _stop(self, drain: float, at_once: bool = False) -> None:
        self._app.state.ready = False
        # Python cannot end while the engine's thread is in a step.
        await self._engine.stop(drain)
        self.should_exit, self.force_exit = True, at_once
