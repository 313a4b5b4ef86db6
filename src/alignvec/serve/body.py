"""How much of a request is read, and how long its coming may take."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignvec.serve.errors import error_body


class BodyLimit:
    """Reads the body before the application does; refuses it where it is too long or too slow."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        """Args:
        most: bytes.
        seconds: in which the whole has to come.
        """
        self._app = app
        self._most = most
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = Headers(scope=scope).get("content-length", "")
        body = None
        try:
            if not (told.isdigit() and int(told) > self._most):
                async with asyncio.timeout(self._seconds):
                    body = await self._read(receive)
        except TimeoutError:
            late = error_body("the body did not come in time", 408, "timeout")
            await JSONResponse(late, 408, {"Connection": "close"})(scope, receive, send)
            return
        except ConnectionError:
            return
        if body is None:
            long = error_body(
                f"the body is longer than {self._most} bytes", 413, "request_too_large"
            )
            await JSONResponse(long, 413, {"Connection": "close"})(scope, receive, send)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()  # that the client has gone
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None if it is too long."""
        parts, length = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            parts.append(message.get("body", b""))
            length += len(parts[-1])
            if length > self._most:
                return None
            if not message.get("more_body"):
                return b"".join(parts)
