"""A line in the log for each request, without a word of what was said unless that is asked for."""

from __future__ import annotations

import logging
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignvec.errors import printable, untold
from alignvec.serve.errors import error_body
from alignvec.serve.gone import GONE
from alignvec.serve.metrics import Metrics
from alignvec.serve.visit import Visit, visit_of

logger = logging.getLogger(__name__)


class Record:
    """Logs and counts each request when it has ended; a fault ends it with a 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit, status = visit_of(scope), GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            logger.error("a fault of alignvec: %s", untold(error))
            if status != GONE:
                return  # the connection is closed; raised, it would be logged with its message
            body = error_body("the server failed; its log says why", 500)
            await JSONResponse(body, 500)(scope, receive, watched)
        finally:
            # The path as the application knows it: not as many as there are clients.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            if route not in ("/health", "/ready", "/metrics"):
                logger.info("%s", _line(scope, status, visit))


def _line(scope: Scope, status: int, visit: Visit) -> str:
    parts = [scope["method"], scope["path"], str(status)]
    parts.append(f"{time.perf_counter() - visit.began:.3f}s")
    if visit.first is not None:
        parts.append(f"first={visit.first:.3f}s")
    if visit.key is not None:
        parts.append(f"key={visit.key}")
    if visit.knobs is not None:
        setting = ",".join(f"{knob}={strength:g}" for knob, strength in visit.knobs.items())
        parts.append(f"knobs={setting or 'none'}")
    if visit.tokens is not None:
        parts.append("tokens={}+{}".format(*visit.tokens))
    if visit.failure:
        parts.append(f"failure={visit.failure}")
    if visit.prompt:
        parts.append(f"prompt={visit.prompt!r}")
    return printable(" ".join(parts))
