"""The `alignvec` object in a response of vLLM's, whose own bytes stay as they are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response, StreamingResponse

from alignvec.serve.dial import Turned

# In JSON no text can hold these: its quotes are escaped.
_ENDS = ('"finish_reason":"', '"choices":[]')


def marked(response: Response, turned: Turned) -> Response:
    """The response, with which setting answered: in an answer as a whole, and of a stream in the
    first chunk, in those that end an answer and in the one that says what it took.
    """
    mark = f'"alignvec":{json.dumps(turned.to_json(), separators=(",", ":"))}}}'
    if isinstance(response, StreamingResponse):
        response.body_iterator = _marked(response.body_iterator, mark)
    elif response.status_code == 200 and bytes(response.body).startswith(b"{"):
        response.body = bytes(response.body)[:-1] + f",{mark}".encode()
        response.headers["content-length"] = str(len(response.body))
    return response


async def _marked(chunks: Any, mark: str) -> AsyncIterator[str | bytes]:
    """Server-sent events, one or several a chunk, as vLLM writes them."""
    first = True
    async with aclosing(chunks):
        async for chunk in chunks:
            text = chunk if isinstance(chunk, str) else bytes(chunk).decode()
            if not first and not any(end in text for end in _ENDS):
                yield chunk
                continue
            events = text.split("\n\n")
            for number, event in enumerate(events):
                head, data, body = event.partition("data: {")
                if not data or not body.endswith("}") or body.startswith('"error"'):
                    continue
                if first or any(end in body for end in _ENDS):
                    events[number] = f"{head}{data}{body[:-1]},{mark}"
                    first = False
            yield "\n\n".join(events)
