"""What is said to a model: a question, or a conversation of messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignvec.errors import AlignvecError

Conversation = list[dict[str, str]]  # role and content of each message
Messages = str | Sequence[Mapping[str, Any]]  # a question, or a conversation


def conversations(messages: Messages | Sequence[Messages]) -> list[Conversation]:
    """One conversation or several, each a question or a list of messages, as a list of them.

    Raises:
        AlignvecError: a message has no role or no content, or content that is not text, or none
            that UTF-8 has.
    """
    several: Any = messages
    if isinstance(messages, str) or (messages and isinstance(messages[0], Mapping)):
        several = [messages]
    chats = [
        [{"role": "user", "content": chat}]
        if isinstance(chat, str)
        else [dict(message) for message in chat]
        for chat in several
    ]
    for message in (message for chat in chats for message in chat):
        if not {"role", "content"} <= message.keys():
            raise AlignvecError(f"a message has a role and content, not {', '.join(message)}")
        if message["content"] is not None:  # of a call of tools there is none
            text = text_of(message["content"])
            if text is None:
                raise AlignvecError("the content of a message is text, or parts that are text")
            try:
                text.encode()
            except UnicodeEncodeError as error:  # half of a surrogate pair, or no UTF-8 in a shell
                raise AlignvecError("the content of a message is no text in UTF-8") from error
            message["content"] = text
    return chats


def text_of(content: Any) -> str | None:
    """The text of a message's content, which may come in parts; None if it is not all text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        return None
    texts = [
        part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        for part in content
    ]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None  # type: ignore[arg-type]


def last_question(chat: Conversation) -> str:
    """What the user said last; empty if nothing."""
    return next((turn["content"] for turn in reversed(chat) if turn["role"] == "user"), "")


def as_text(messages: Messages) -> str:
    """A question as it is; a conversation with the role before each message, for people to read."""
    if isinstance(messages, str):
        return messages
    return "\n\n".join(f"[{turn['role']}] {turn['content']}" for turn in messages)
