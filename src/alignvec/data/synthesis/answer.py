"""What the body of a chat endpoint says, a text or a fault, in the dialects that servers speak."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alignvec.data.synthesis.chat import Completion, Task, tokens_in

# A `finish_reason` of these stands under a stump: OpenAI's and Azure's content_filter, Gemini's
# SAFETY and RECITATION, DeepSeek's insufficient_system_resource, OpenRouter's error, vLLM's abort.
_CUT_SHORT = re.compile(r"filter|safety|recitation|prohibited|block|insufficient|error|abort", re.I)
_FULL = re.compile(r"length|max_tokens", re.I)
# Reasoning that a server leaves in the text; the opening tag may be part of the prompt.
_THOUGHTS = re.compile(
    r".*(?:</(?:think|thinking|reasoning)>|\[/THINK\]|<\|channel\|>final<\|message\|>)", re.S | re.I
)
_OPEN_THOUGHT = re.compile(r"<(?:think|thinking|reasoning)>|\[THINK\]|<\|channel\|>analysis", re.I)
_REFUSING = re.compile(
    r"""unsupport|not\ support|unknown|unrecogni[sz]ed|unexpected|not\ (?:permitted|allowed)
    |forbidden|extraneous|not\ accept|only\ the\ default""",
    re.X | re.I,
)
_HALF_PAIR = re.compile("[\ud800-\udfff]")  # of surrogates: no text
_TRANSIENT = {408, 409, 425, 429}
_FOR_EVERYTHING = {401, 402, 403, 404, 405}  # key, money, rights, path or model
# What an error's type or code says where no status does.
_STATUS_OF = {
    "insufficient": 402, "rate.?limit": 429, "authentication|api.?key": 401, "permission": 403,
    "not.?found": 404, "overloaded|server.?error|timeout": 503,
    "invalid|bad.?request|filter|policy|moderation|context.?length": 400,
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """What went wrong.

    Attributes:
        status: HTTP's, or what a body of status 200 says in its place.
        message: in one line, however long.
        names: of fields, where it is about fields that the server does not know.
    """

    status: int
    message: str
    names: frozenset[str] = frozenset()

    @property
    def passes(self) -> bool:
        """The same request may be answered later."""
        return self.status in _TRANSIENT or self.status >= 500

    @property
    def meets_all(self) -> bool:
        """Every other request would be answered alike."""
        return self.status in _FOR_EVERYTHING


def body_of(content: bytes) -> Any:
    """JSON, or the text itself. Bytes that are no UTF-8 are replaced: the rest can be read."""
    text = content.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def fault_of(status: int, body: Any) -> Fault | None:
    """The fault that an answer tells of, or None if there is a text, be it a stump. Some servers
    send it with status 200.
    """
    said = _bare(body)
    error = said.get("error") or said if isinstance(said, dict) else None
    words = " ".join("; ".join(_said(error)).split())
    kind = f"{_value(error, 'type')} {_value(error, 'code')}"
    if status < 400:
        choices = said.get("choices") if isinstance(said, dict) else None
        if choices or (choices == [] and not said.get("error")):
            return None
        status = _status_in(kind, error, said)
        words = words or f"no readable answer ({' '.join(str(body).split())})"
    if "insufficient_quota" in kind:
        status = 402  # OpenAI's 429 that no pause mends
    if status == 403 and _value(error, "metadata", "reasons"):
        status = 400  # OpenRouter: this text was flagged
    message = words or f"status {status}: {' '.join(str(body).split())}"
    return Fault(status, message, _refused_names(error, said, f"{words} {kind}"))


def _status_in(kind: str, *places: Any) -> int:
    """As a body with status 200 tells it."""
    for place in places:
        for key in ("code", "status", "status_code"):
            value = str(_value(place, key))
            if value.isdecimal() and 400 <= int(value) < 600:
                return int(value)
    found = (of for word, of in _STATUS_OF.items() if re.search(word, kind, re.IGNORECASE))
    return next(found, 502)


def _value(content: Any, *path: str) -> Any:
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _said(content: Any) -> Iterator[str]:
    """The sentences of an error: OpenAI's message, FastAPI's detail, OpenRouter's raw, a string."""
    if isinstance(content, str):
        yield content.strip()
    elif isinstance(content, list):
        for one in content:
            yield from _said(one)
    elif isinstance(content, dict):
        if isinstance(content.get("loc"), list) and content.get("msg"):
            yield f"{'.'.join(map(str, content['loc']))}: {content['msg']}"
            return
        for key in ("message", "detail", "error", "msg", "raw", "metadata"):
            yield from _said(content.get(key))


def _refused_names(error: Any, said: Any, words: str) -> frozenset[str]:
    """Fields that an error points at, or else mentions, if it is about fields not being taken."""
    if not _REFUSING.search(words.replace("_", " ")):
        return frozenset()
    pointed = {str(part) for loc in _locations(said) for part in loc if part != "body"}
    param = _value(error, "param")
    if isinstance(param, str) and param:
        pointed.add(param)
    return frozenset(pointed or re.findall(r"\w+", words))


def _locations(content: Any) -> Iterator[list[Any]]:
    if isinstance(content, list):
        for one in content:
            yield from _locations(one)
    elif isinstance(content, dict):
        if isinstance(content.get("loc"), list):
            yield content["loc"]
        for key in ("detail", "message", "error"):
            yield from _locations(content.get(key))


def _bare(body: Any) -> Any:
    """Gemini puts a list around what it says."""
    return body[0] if isinstance(body, list) and len(body) == 1 else body


def completion_of(task: Task, body: Any) -> Completion:
    """The text of a body that `fault_of` finds no fault in, and what it cost."""
    body = _bare(body)
    choices = body["choices"]
    choice = choices[0] if isinstance(choices, list) and choices else None
    choice = choice if isinstance(choice, dict) else {}
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    content = message.get("content")
    reasoning = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
    whole, finish = _text(content), str(choice.get("finish_reason") or "")
    text = _THOUGHTS.sub("", whole, count=1).strip()
    cut_off = bool(_FULL.search(finish))
    if cut_off:
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # the last letter was cut, too
    if _OPEN_THOUGHT.match(text):
        text = ""
    rejected = ""
    if error := "; ".join(_said(choice.get("error") or body.get("error"))):
        rejected = f"an error: {error}"
    elif _CUT_SHORT.search(finish):
        rejected = f"cut short: finish_reason '{finish}'"
    elif refusal := _text(message.get("refusal")) or _refusal_part(content):
        rejected = f"refused: {refusal}"
    elif not text and not reasoning and not whole.strip():
        rejected = "an empty text"
    elif not text:
        end = f", cut off at {task.max_tokens} tokens: turn the model's reasoning off" * cut_off
        rejected = f"reasoning and no text{end}"
    elif "\N{REPLACEMENT CHARACTER}" in text:
        rejected = "a text in another encoding than it says"
    read, written = _usage(body.get("usage"))
    return Completion(
        text,
        task.prompt_tokens if read is None else read,
        tokens_in(whole + reasoning) if written is None else written,
        cut_off,
        " ".join(rejected.split()),
        estimated=read is None or written is None,
    )


def _text(content: Any) -> str:
    """A string, or the text of a list of parts; thoughts and refusals are parts of other types."""
    if isinstance(content, str):
        return _HALF_PAIR.sub("\N{REPLACEMENT CHARACTER}", content)
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return ""
    parts = (
        part.get("text")
        if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text")
        else part
        for part in content
    )
    return "".join(_text(part) for part in parts if isinstance(part, str))


def _refusal_part(content: Any) -> str:
    parts = content if isinstance(content, list) else []
    return "".join(str(part["refusal"]) for part in parts if _value(part, "refusal"))


def _usage(usage: Any) -> tuple[int | None, int | None]:
    """Tokens read and written; None is what a server does not count. Nought is not counted, too:
    no request is empty, and the endings alone make a token.
    """
    read, written, total = (
        next((count for key in keys if (count := _count(_value(usage, key)))), None)
        for keys in (
            ("prompt_tokens", "input_tokens"),
            ("completion_tokens", "output_tokens"),
            ("total_tokens",),
        )
    )
    if total and read and not written and total > read:
        written = total - read
    return read, written


def _count(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if whole and 0 < value < 1e12 else None
