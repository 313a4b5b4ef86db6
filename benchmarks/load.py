"""A load on a server that speaks OpenAI's API: clients that ask, stream, and note when what came.

    python benchmarks/load.py < load.json > seen.json

serve_load.py starts it as a process of its own, as clients are. `load.json` has `url` (up to /v1),
`bodies` (chat requests), `clients`, and `seconds`:

    null      every body is sent once; a client takes the next one when its answer has ended
    a number  the bodies go round until then, and what is still being answered is dropped

A client that is refused with 429 waits as long as Retry-After says.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx

LONGEST_WAIT = 5.0  # seconds after a refusal that does not say how long


async def load(wanted: dict[str, Any]) -> dict[str, Any]:
    """Run the clients; returns the seconds it took and one object a request (see `ask`)."""
    seconds = wanted["seconds"]
    bodies = iter(wanted["bodies"] if seconds is None else itertools.cycle(wanted["bodies"]))
    seen: list[dict[str, Any]] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=wanted["url"], timeout=None, limits=limits, trust_env=False
    ) as http:
        start = time.perf_counter()
        clients = [
            asyncio.create_task(client(http, bodies, seen, start)) for _ in range(wanted["clients"])
        ]
        _, running = await asyncio.wait(clients, timeout=seconds)
        took = time.perf_counter() - start
        for one in running:
            one.cancel()
        for ended in await asyncio.gather(*clients, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
    return {"seconds": took, "requests": seen, "dropped": len(running)}


async def client(
    http: httpx.AsyncClient, bodies: Iterator[dict[str, Any]], seen: list[Any], start: float
) -> None:
    """Ask one thing after the other."""
    for body in bodies:
        found = await ask(http, body)
        seen.append({**found, "at": time.perf_counter() - start})
        if found["status"] == 429:
            await asyncio.sleep(float(found["retry_after"] or LONGEST_WAIT))


async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    """One streamed answer.

    Returns:
        `status` (0 where there was no answer to the end), `error`, `retry_after`; `times`: seconds
        from the sending to each piece of text; `tokens`: as the server counts them, or the pieces.
    """
    found: dict[str, Any] = {"status": 0, "error": None, "retry_after": None, "times": []}
    tokens, ended = None, False
    start = time.perf_counter()
    try:
        async with http.stream("POST", "chat/completions", json={**body, "stream": True}) as answer:
            found["retry_after"] = answer.headers.get("retry-after")
            if answer.status_code != 200:
                found["status"] = answer.status_code
                found["error"] = (await answer.aread()).decode(errors="replace")[:500]
                return {**found, "tokens": 0}
            async for line in answer.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                piece = json.loads(line.removeprefix("data: "))
                if "error" in piece:
                    found["error"] = json.dumps(piece["error"])
                if piece.get("usage"):
                    tokens = piece["usage"]["completion_tokens"]
                for choice in piece.get("choices", ()):
                    ended = ended or choice.get("finish_reason") is not None
                    if choice["delta"].get("content"):
                        found["times"].append(time.perf_counter() - start)
        if ended and found["error"] is None:
            found["status"] = 200
        else:
            found["error"] = found["error"] or "the stream ended early"
    except httpx.HTTPError as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return {**found, "tokens": len(found["times"]) if tokens is None else tokens}


if __name__ == "__main__":
    json.dump(asyncio.run(load(json.load(sys.stdin))), sys.stdout)
