"""A writer behind any endpoint that speaks OpenAI's API: asks, waits as it is told to, and leaves
out what a server does not take.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import openai

from alignvec.data.synthesis.address import Address
from alignvec.data.synthesis.answer import Fault, body_of, completion_of, fault_of
from alignvec.data.synthesis.chat import Completion, RefusedError, Task, UnwrittenError
from alignvec.errors import AlignvecError

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 8.0  # seconds, where the server names none
_LONGEST_WAIT = 300.0  # where it does; a quota of a day is not waited for
_LONGEST_REASON = 200  # characters
# What some server or other refuses, and what is done instead.
_INSTEAD = {
    "max_tokens": "max_completion_tokens is sent in its place",
    "seed": "left out; a text cannot be had twice",
    "temperature": "left out; the server's own is used",
    "system": "its text goes before what the user says",
}
_SYSTEM_ROLE = re.compile(r"\bsystem\b.*\brole\b|\brole\b.*\bsystem\b", re.IGNORECASE)


class Endpoint:
    """A model behind an OpenAI-compatible endpoint."""

    def __init__(
        self,
        url: str | None,
        model: str,
        temperature: float = 0.8,
        timeout: float = 120.0,
        retries: int = 8,
    ) -> None:
        """Connect when first asked.

        Args:
            url: up to and with `/v1`, see `Address`; None is OpenAI's own.
            timeout: seconds that one try may take.
            retries: at rate limits, server errors, unreadable answers, lost connections and
                timeouts, with pauses that double up to 8 s, or as long as the server says.

        Raises:
            AlignvecError: OpenAI wants a key and there is none; see `Address`.
        """
        self.name, self.temperature = model, temperature
        self._address = Address(url, os.environ.get("OPENAI_API_KEY") or "")
        if url is None and not self._address.key:
            raise AlignvecError(
                "no key for OpenAI: set OPENAI_API_KEY, or give the --endpoint of another server"
            )
        self._timeout, self._retries = timeout, retries
        self._refused: frozenset[str] = frozenset()  # of `_INSTEAD`
        self._client: openai.AsyncOpenAI | None = self._connected()

    def _connected(self) -> openai.AsyncOpenAI:
        address = self._address
        return openai.AsyncOpenAI(
            base_url=address.url,
            api_key=address.key or "none",  # local servers take any, the client insists on one
            default_headers=address.headers,
            default_query=address.query,
            timeout=self._timeout,
            max_retries=0,  # it does not see the faults that come with a 200
        )

    async def complete(self, task: Task) -> Completion:
        refused, attempt = self._refused, 0
        while True:
            try:
                answer = await self._ask(self._request(task, refused))
            except openai.APIConnectionError as error:
                late = isinstance(error, openai.APITimeoutError)
                way_out = "; raise --timeout or lower --concurrency" if late else ""
                said = self._told(" ".join(str(error).split()))
                fault, pause = Fault(0, said + way_out), None
            else:
                body = body_of(answer.content)
                found = fault_of(answer.status_code, body)
                if found is None:
                    self._remember(refused)
                    completion = completion_of(task, body)
                    return replace(completion, rejected=self._told(completion.rejected))
                fault = replace(found, message=self._told(found.message))
                pause = _said_pause(answer.headers)
                new = self._refusable(fault, task) - refused
                if new:
                    refused |= new
                    continue
            if fault.meets_all:
                raise AlignvecError(f"{self._where}: {fault.message}{self._elsewhere(fault)}")
            if fault.status and not fault.passes:
                raise RefusedError(fault.message)
            if attempt == self._retries or (pause or 0) > _LONGEST_WAIT:
                self._give_up(fault, pause)
            pause = pause or min(_LONGEST_PAUSE, 0.5 * 2**attempt)
            await asyncio.sleep(pause * random.uniform(1, 1.2))  # not all at once again
            attempt += 1

    @property
    def _where(self) -> str:
        return self._address.shown

    def _told(self, text: str) -> str:
        """What was said, without secrets; cut after that, so that no piece of one is left."""
        return self._address.without_secrets(text)[:_LONGEST_REASON]

    def _elsewhere(self, fault: Fault) -> str:
        """A way out, where nothing seems to be at the URL."""
        lost = fault.status in (404, 405) and not re.search(r"/v\d", self._address.url)
        return "; an endpoint mostly ends in /v1" if lost else ""

    def _give_up(self, fault: Fault, pause: float | None) -> None:
        """Raises: AlignvecError: others will fare alike. UnwrittenError: they may not."""
        if fault.status == 429:
            when = f"in {pause:.0f} seconds" if pause and pause > _LONGEST_WAIT else "later"
            raise AlignvecError(
                f"{self._where}: {fault.message}; run again {when}: what is written is kept"
            )
        if not fault.status:
            raise AlignvecError(f"{self._where}: {fault.message}")
        raise UnwrittenError(fault.message)

    def _request(self, task: Task, refused: frozenset[str]) -> dict[str, Any]:
        room = "max_completion_tokens" if "max_tokens" in refused else "max_tokens"
        messages = task.chat
        if "system" in refused and messages[0]["role"] == "system":
            system, first, *others = messages
            content = f"{system['content']}\n\n{first['content']}"
            messages = [{**first, "content": content}, *others]
        request = {
            "model": self.name,
            "messages": messages,
            "temperature": self.temperature,
            "seed": task.sample,
        }
        return {room: task.max_tokens} | {k: v for k, v in request.items() if k not in refused}

    async def _ask(self, request: dict[str, Any]) -> Any:
        """The response as HTTP has it, whatever its status."""
        self._client = self._client or self._connected()
        try:
            raw = await self._client.chat.completions.with_raw_response.create(**request)
        except openai.APIStatusError as error:
            return error.response
        return raw.http_response

    def _refusable(self, fault: Fault, task: Task) -> frozenset[str]:
        """What the fault is about and can be done without."""
        if fault.status not in (400, 422, 501):
            return frozenset()
        names = set(fault.names) - {"system"}
        if names and _SYSTEM_ROLE.search(fault.message) and task.messages[0][0] == "system":
            names.add("system")
        return frozenset(names & _INSTEAD.keys())

    def _remember(self, refused: frozenset[str]) -> None:
        for name in sorted(refused - self._refused):
            logger.warning("%s refuses '%s': %s", self._where, name, _INSTEAD[name])
        self._refused |= refused

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
        self._client = None


def _said_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds until a server wants to be asked again, by any header that says so."""
    for name, share in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) / share)
        except (KeyError, ValueError):
            continue
    if date := email.utils.parsedate_tz(headers.get("retry-after", "")):
        with contextlib.suppress(ValueError, OverflowError):  # of no year that there is
            return max(0.0, email.utils.mktime_tz(date) - time.time())
    # Which of the limits was met is not said: the longest pause serves all that have nothing left.
    pauses = [
        pause
        for kind in ("-requests", "-tokens", "")
        if headers.get(f"x-ratelimit-remaining{kind}", "0").strip() in ("0", "0.0")
        and (pause := _duration(headers.get(f"x-ratelimit-reset{kind}", ""))) is not None
    ]
    return max(pauses, default=None)


def _duration(text: str) -> float | None:
    """As in 6m0s, 120ms, 2 (seconds), 1763000000 (a time, or in ms), 2026-01-01T12:00:00Z."""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    if re.fullmatch(r"(?:\d+(?:\.\d+)?(?:ms|[dhms]))+", text.strip()):
        return sum(
            float(number) * units[unit]
            for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|[dhms])", text)
        )
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = datetime.fromisoformat(text.strip()).timestamp()
        except (ValueError, OverflowError):
            return None
    if seconds > 1e11:
        seconds /= 1000
    return max(0.0, seconds - time.time() if seconds > 1e9 else seconds)
