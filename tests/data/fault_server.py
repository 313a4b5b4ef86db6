"""A chat server that fails in every way that real ones do, and keeps count of what it delivered.

    python tests/fault_server.py PORT [FAULT=SHARE ...] [--seed N]

Faults: 429, 500, hang, truncated (body shorter than it says), malformed (no JSON), empty (no
text), latin1 (bytes that are no UTF-8), closed (connection dropped), refused (400, always for the
same requests). `GET /stats` tells how many good answers each request got.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from collections import Counter

FAULTS = ("429", "500", "hang", "truncated", "malformed", "empty", "latin1", "closed")


class Server:
    def __init__(self, shares: dict[str, float], seed: int) -> None:
        self.shares, self.chance = shares, random.Random(seed)
        self.delivered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False if the connection ends with it."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin1").split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, colon, value in (line.partition(":") for line in lines[1:])
            if colon
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if lines[0].startswith("GET /stats"):
            return await send(writer, 200, {"delivered": self.delivered, "faults": self.faults})
        request = hashlib.sha256(body).hexdigest()[:16]
        if int(request, 16) / 16**16 < self.shares.get("refused", 0):
            return await send(writer, 400, {"error": {"message": "content policy"}})
        fault = self.next_fault()
        self.faults[fault] += 1
        if fault == "429":
            return await send(writer, 429, {"error": {"message": "slow down"}}, "Retry-After: 0.05")
        if fault == "500":
            return await send(writer, 500, {"error": {"message": "oops"}}, "Retry-After: 0.05")
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "closed":
            return False
        if fault == "malformed":
            return await send(writer, 200, b"<html>502 Bad Gateway</html>")
        asked = json.loads(body)["messages"][-1]["content"]
        text = f"Answer {request} to: {asked[:40]}, and some more words to fill the line."
        answer = {
            "id": request, "object": "chat.completion", "created": 0, "model": "fault",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {
                "role": "assistant", "content": "" if fault == "empty" else text}}],
            "usage": {"prompt_tokens": len(body) // 4, "completion_tokens": 20,
                      "total_tokens": len(body) // 4 + 20},
        }  # fmt: skip
        if fault == "latin1":
            damaged = json.dumps(answer).replace("some", "s\xf6me").encode("latin1")
            return await send(writer, 200, damaged)
        if fault == "truncated":
            whole = json.dumps(answer).encode()
            writer.write(header(200, len(whole)) + whole[: len(whole) // 2])
            await writer.drain()
            return False
        kept = await send(writer, 200, answer)
        if not fault:
            self.delivered[request] += 1
        return kept

    def next_fault(self) -> str:
        drawn = self.chance.random()
        for fault in FAULTS:
            drawn -= self.shares.get(fault, 0)
            if drawn < 0:
                return fault
        return ""


def header(status: int, length: int, extra: str = "") -> bytes:
    more = f"{extra}\r\n" if extra else ""
    return (
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
        f"{more}\r\n"
    ).encode()


async def send(writer: asyncio.StreamWriter, status: int, content: object, extra: str = "") -> bool:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    writer.write(header(status, len(body), extra) + body)
    await writer.drain()
    return True


async def main() -> None:
    shares = {name: float(share) for name, _, share in (a.partition("=") for a in sys.argv[2:])}
    server = Server(shares, seed=int(shares.pop("--seed", 0)))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", int(sys.argv[1]))
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
