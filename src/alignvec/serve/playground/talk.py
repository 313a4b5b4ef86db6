"""Questions and their answers side by side, each under a setting of its own.

The page keeps the whole talk and sends it with each question; the server of the page keeps none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from time import monotonic
from typing import Any, Literal

from pydantic import BaseModel

from alignvec.errors import one_line
from alignvec.serve.playground.client import Client, Trouble
from alignvec.serve.playground.dials import written

_TICK = 0.08  # seconds between what the page is shown


class Answer(BaseModel):
    """One column.

    Attributes:
        place: whose column it is.
        setting: which setting answers, as people read it; at first the one asked for, then the
            one that the response names.
        note: the rate, the time to the first token, the number of tokens.
        warning: what the response says of strengths beyond the safe range.
        error: why there is no more text.
        status: of HTTP, if that is a response's.
    """

    place: str = ""
    setting: str = ""
    text: str = ""
    note: str = ""
    warning: str = ""
    error: str = ""
    status: int | None = None
    state: Literal["waiting", "writing", "done"] = "waiting"


class Turn(BaseModel):
    """A question and what each column answers."""

    question: str = ""
    answers: list[Answer] = []

    @property
    def failure(self) -> Trouble | None:
        """Why there is no answer at all, if there is none."""
        failed = [answer for answer in self.answers if answer.error]
        if not failed or any(answer.text for answer in self.answers):
            return None
        return Trouble(failed[0].error, failed[0].status)


class Talk(BaseModel):
    """All turns, from the first to the last."""

    turns: list[Turn] = []

    def messages(self, place: str, question: str) -> list[dict[str, str]]:
        """The conversation of a column, up to a new question."""
        said = []
        for turn in self.turns:
            for answer in turn.answers:
                if answer.place == place and answer.text:
                    said += [("user", turn.question), ("assistant", answer.text)]
        said.append(("user", question))
        return [{"role": role, "content": content} for role, content in said]


class Column(BaseModel):
    """What one column is asked: its conversation under its setting."""

    place: str = ""
    setting: dict[str, float]
    messages: list[dict[str, str]]


async def ask(
    client: Client,
    question: str,
    columns: Sequence[Column],
    sampling: Mapping[str, Any],
    key: str | None,
) -> AsyncIterator[Turn]:
    """Ask all columns at the same time; yields the turn as it grows. What fails says so in it."""
    turn = Turn(
        question=question,
        answers=[Answer(place=one.place, setting=written(one.setting)) for one in columns],
    )
    asked = [
        asyncio.create_task(_fill(client, answer, column, sampling, key))
        for answer, column in zip(turn.answers, columns, strict=True)
    ]
    try:
        pending: set[asyncio.Task[None]] = set(asked)
        while pending:
            yield turn
            _, pending = await asyncio.wait(pending, timeout=_TICK)
        yield turn
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def _fill(
    client: Client, answer: Answer, column: Column, sampling: Mapping[str, Any], key: str | None
) -> None:
    start = monotonic()
    first = last = None
    tokens = 0
    try:
        body = {**sampling, "knobs": column.setting}
        async with aclosing(client.chat(column.messages, body, key)) as chunks:
            async for chunk in chunks:
                if told := chunk.get("alignvec"):
                    _name(answer, told)
                if usage := chunk.get("usage"):
                    tokens = int(usage["completion_tokens"])
                for choice in chunk.get("choices") or []:
                    if text := (choice.get("delta") or {}).get("content"):
                        last = monotonic()
                        first = first or last
                        answer.text += text
                        answer.state = "writing"
        if first and last:
            answer.note = _note(tokens, first - start, last - first)
        elif not answer.text:
            answer.note = "an empty answer"
    except Trouble as trouble:
        answer.error, answer.status = one_line(trouble), trouble.status
    except (AttributeError, KeyError, TypeError, ValueError):
        answer.error = "The server answers in a way that is not known."
    answer.state = "done"


def _name(answer: Answer, told: Mapping[str, Any]) -> None:
    """What the response itself says of the setting that answers."""
    answer.setting = written({knob: float(at) for knob, at in told["knobs"].items()})
    if told.get("domain"):
        answer.setting += f" (read as {told['domain']})"
    beyond = told.get("beyond_safe") or []
    answer.warning = f"beyond the safe range: {', '.join(map(str, beyond))}" if beyond else ""


def _note(tokens: int, to_first: float, writing: float) -> str:
    rate = [f"{(tokens - 1) / writing:.3g} tokens/s"] if tokens > 1 and writing else []
    count = [f"{tokens} token{'s' * (tokens != 1)}"] if tokens else []
    return " · ".join([*rate, f"first after {to_first:.2f} s", *count])
