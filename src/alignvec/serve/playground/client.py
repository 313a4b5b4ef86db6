"""The server as the page sees it: OpenAI's API, `/v1/knobs` and `/v1/profiles`, over HTTP.

What goes wrong is a `Trouble` whose message is for the person at the page.
"""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx

from alignvec.errors import AlignvecError, one_line

logger = logging.getLogger(__name__)

_CONNECT, _SILENCE = 5.0, 300.0  # seconds: to reach the server; that it may say nothing
_LARGEST = 1 << 22  # bytes of a response that is read whole


class Trouble(AlignvecError):
    """What a person at the page is told; the page itself stays as it is.

    Attributes:
        status: of HTTP; None if there was no response.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """A server, at a URL that whoever starts the page fixes."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Nothing is asked yet: the server may come later than the page.

        Args:
            url: up to, but without, `/v1`.
            key: for those who give none themselves.

        Raises:
            AlignvecError: it is no http URL.
        """
        try:
            parsed = httpx.URL(url.rstrip("/").removesuffix("/v1"))
        except httpx.InvalidURL:
            parsed = httpx.URL()
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise AlignvecError(f"'{url}' is no address; write http://HOST:PORT")
        self._key = key
        self._http = httpx.AsyncClient(
            base_url=parsed,
            timeout=httpx.Timeout(_SILENCE, connect=_CONNECT, pool=None),
            limits=httpx.Limits(max_connections=None),
            trust_env=not _is_loopback(parsed.host),  # no proxy lies before this machine
        )

    async def model(self, key: str | None = None) -> str:
        """The model's name."""
        body, _ = await self._json("GET", "/v1/models", key)
        return str(body["data"][0]["id"])

    async def knobs(self, key: str | None = None) -> list[dict[str, Any]]:
        """What `/v1/knobs` tells of each knob."""
        body, _ = await self._json("GET", "/v1/knobs", key)
        return list(body["data"])

    async def profiles(self, key: str | None = None) -> list[dict[str, Any]]:
        """All that are saved."""
        body, _ = await self._json("GET", "/v1/profiles", key)
        return list(body["data"])

    async def profile(self, name: str, key: str | None = None) -> dict[str, Any]:
        """One by name."""
        body, _ = await self._json("GET", _profile(name), key)
        return body

    async def save(
        self, name: str, knobs: Mapping[str, float], etag: str | None, key: str | None = None
    ) -> str:
        """Keep a profile; returns its new ETag.

        Args:
            etag: of the version that is replaced; None if there is none yet.
        """
        match = {"If-None-Match": "*"} if etag is None else {"If-Match": etag}
        _, headers = await self._json(
            "PUT", _profile(name), key, headers=match, json={"knobs": dict(knobs)}
        )
        return str(headers.get("etag", ""))

    async def delete(self, name: str, etag: str | None, key: str | None = None) -> None:
        """Remove a profile, if it is still the version of this ETag."""
        match = {} if etag is None else {"If-Match": etag}
        await self._json("DELETE", _profile(name), key, headers=match)

    async def chat(
        self, messages: Sequence[Mapping[str, str]], body: Mapping[str, Any], key: str | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a streamed answer, as they come. Closing the iterator ends the request."""
        asked = {
            "messages": list(messages), "stream": True,
            "stream_options": {"include_usage": True}, **body,
        }  # fmt: skip
        async with self._asked("POST", "/v1/chat/completions", key, json=asked) as response:
            async for line in response.aiter_lines():
                field, _, data = line.partition(":")
                if field != "data" or data.strip() == "[DONE]":
                    continue
                chunk = _parsed(data)
                if chunk.get("error"):
                    raise Trouble(_message(chunk) or "The server gave up in the middle.")
                yield chunk

    async def _json(
        self, method: str, path: str, key: str | None, **sent: Any
    ) -> tuple[dict[str, Any], httpx.Headers]:
        async with self._asked(method, path, key, **sent) as response:
            content = await _read(response)
            return (_parsed(content) if content else {}), response.headers

    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, key: str | None, headers: Mapping[str, str] = {}, **sent: Any
    ) -> AsyncIterator[httpx.Response]:
        secret = (key or "").strip() or self._key  # Gradio's empty box is None
        told = {**headers, **({"Authorization": f"Bearer {secret}"} if secret else {})}
        try:
            async with self._http.stream(method, path, headers=told, **sent) as response:
                if not response.is_success:
                    raise _trouble(response, await _read(response), bool(secret))
                yield response
        except httpx.TimeoutException as error:
            raise Trouble("The server takes too long to answer. Try again later.") from error
        except httpx.TransportError as error:
            logger.info("%s%s: %s", self._http.base_url, path.lstrip("/"), one_line(error))
            raise Trouble("The server does not answer. Try again once it runs.") from error
        except UnicodeEncodeError as error:  # in a header
            raise Trouble("The API key has characters that no key has.", 401) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _profile(name: str) -> str:
    return f"/v1/profiles/{quote(name, safe='')}"


async def _read(response: httpx.Response) -> bytes:
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > _LARGEST:
            raise Trouble("The server's response is too long.")
    return bytes(content)


def _parsed(content: str | bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise Trouble("What answers there is no alignvec server.")
    return parsed


def _message(body: object) -> str:
    """Of OpenAI's error body."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else ""


def _trouble(response: httpx.Response, content: bytes, with_key: bool) -> Trouble:
    status = response.status_code
    try:
        said = _message(json.loads(content))
    except ValueError:
        said = ""
    if status == 401:
        known = "does not take this API key" if with_key else "wants an API key"
        return Trouble(f"The server {known}: enter yours below.", status)
    if status == 429:
        after = response.headers.get("retry-after", "")
        when = f"in {after} s" if after.isdigit() else "in a moment"
        return Trouble(f"The server has all hands full. Try again {when}.", status)
    return Trouble(said or f"The server refuses this (HTTP {status}).", status)
