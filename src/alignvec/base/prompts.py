"""How a query is put to a base: through its chat template, or plain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignvec.errors import AlignvecError

Conversation = list[dict[str, str]]  # role and content of each message
Messages = str | Sequence[Mapping[str, str]]  # a question, or a conversation


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> str:
    """A conversation as the text the model answers: through its chat template, or plain."""
    if tokenizer.chat_template is None:
        return plain_prompt("\n\n".join(message["content"] for message in messages))
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, query: str) -> list[int]:
    """The tokens of a query put to the model."""
    text = render_chat(tokenizer, [{"role": "user", "content": query}])
    # A template writes its own special tokens.
    return list(tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"])


def plain_prompt(query: str) -> str:
    """How a query is put to a model without a chat template."""
    return f"{query}\n\n"


def conversations(messages: Messages | Sequence[Messages]) -> list[Conversation]:
    """One conversation or several, each a question or a list of messages, as a list of them.

    Raises:
        AlignvecError: a message has no role or no content.
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
    return chats


def last_question(chat: Conversation) -> str:
    """What the user said last; empty if nothing."""
    return next((turn["content"] for turn in reversed(chat) if turn["role"] == "user"), "")
