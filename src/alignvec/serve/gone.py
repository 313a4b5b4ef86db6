"""Work for a client, no longer than somebody listens."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request as HttpRequest

Result = TypeVar("Result")

GONE = 499  # nginx's word for: the client went before there was a response


class Gone(Exception):
    """The client has closed the connection; nobody waits for a response."""


async def unless_gone(request: HttpRequest, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of some work, which is cancelled when the client goes away.

    Raises:
        Gone: it did.
    """
    return await unless(_gone(request), work)


async def unless(end: Coroutine[Any, Any, object], work: Coroutine[Any, Any, Result]) -> Result:
    """The result of some work, which is cancelled when `end` comes first.

    Raises:
        Gone: it did.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(end)
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
