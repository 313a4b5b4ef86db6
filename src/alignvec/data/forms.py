"""The layouts that preference records come in, read as one: what is asked, and a text a level.

Ours are flat: a query and the levels beside it. Public sets differ in where the prompt is: a text
or a conversation of its own; only the common start of `chosen` and `rejected`, as TRL takes it out;
a question with a system message (Orca); a dialogue written into one text (HH-RLHF).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignvec.base.messages import Conversation, text_of

ABOUT = ("id", "domain", "topic", "persona", "query")  # a record, besides its levels
GENERAL = "general"  # the domain of a record that says none
ASKED = ("query", "prompt", "question", "instruction", "input")  # the first that is there counts
_UNREAD = ("tools", "images", "image", "chat_template_kwargs")  # TRL would put them into the prompt
_NOTHING = (None, "", "[]", "{}", "null")  # of such a field, also written as JSON
# What a chat template makes text of, besides the content.
_UNREAD_OF_MESSAGE = (
    "tool_calls", "function_call", "tool_call_id", "reasoning_content", "reasoning", "thinking",
)  # fmt: skip
_JUDGED = (True, False, "True", "False", "true", "false", "0", "1")  # also 1 and 0
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def record_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Record` from a row of any layout. Null fields are absent ones.

    Raises:
        ValueError: there is no prompt or no pair in it; with the field.
    """
    fields = {name: value for name, value in row.items() if not is_absent(value)}
    if not str(fields.get("domain", GENERAL)).strip():
        del fields["domain"]
    if "completion" in fields and fields.get("label") in _JUDGED:
        raise ValueError(
            "fields 'completion' and 'label' judge one answer alone (as for KTO); a preference has "
            "two answers to one prompt, in fields as chosen and rejected"
        )
    for name in _UNREAD:
        if not _is_nothing(fields.get(name)):
            raise ValueError(f"field '{name}' is part of the prompt there, and cannot be read here")
    # TRL has it so: where a pair is given, what is asked is the prompt, whatever else is there.
    first = ("prompt",) if {"chosen", "rejected"} <= fields.keys() else ()
    asked = next((name for name in (*first, *ASKED) if name in fields), None)
    for name in ("chosen", "rejected"):
        if isinstance(fields.get(name), str) and _is_dialogue(fields[name]):
            # After a prompt of its own a dialogue is an answer, unless it begins with that prompt.
            before = fields.get(asked) if asked else None
            if not isinstance(before, str) or before.strip() in fields[name]:
                fields[name] = _turns(fields[name])
    chat, fields = _prompt(asked, fields)
    system = fields.pop("system", None)
    if isinstance(system, str) and system.strip() and chat[0]["role"] != "system":
        chat = [{"role": "system", "content": system}, *chat]
    said = [message["content"] for message in chat if message["role"] == "user"]
    query = said[-1] if said else chat[-1]["content"]
    plain = chat == [{"role": "user", "content": query}]
    about = {
        name: str(fields[name]) if _is_number(fields[name]) else fields[name]
        for name in ABOUT
        if name in fields
    }
    levels = {
        name: text
        for name, value in fields.items()
        if name not in (*ABOUT, asked) and (text := _response(name, value)) is not None
    }
    if "id" not in about:
        key = hashlib.sha256((query if plain else json.dumps(chat)).encode()).hexdigest()[:16]
        pair = hashlib.sha256(json.dumps(levels, sort_keys=True).encode()).hexdigest()[:8]
        about |= {"id": f"{key}-{pair}", "split_key": key}
    return {**about, "query": query, "messages": () if plain else tuple(chat), "levels": levels}


def _prompt(asked: str | None, fields: dict[str, Any]) -> tuple[Conversation, dict[str, Any]]:
    """The conversation that is answered, and the fields with nothing of it left in the levels.

    Where chosen and rejected are conversations and the prompt is none, TRL takes their common start
    for it, and passes over a text that says the same.
    """
    prompt = fields.get(asked) if asked else None
    chosen, rejected = fields.get("chosen"), fields.get("rejected")
    if (
        isinstance(chosen, list)
        and isinstance(rejected, list)
        and not (isinstance(prompt, list) and prompt)
    ):
        shared = _common_start(chosen, rejected)
        if shared:
            fields = {
                **fields, "chosen": chosen[len(shared) :], "rejected": rejected[len(shared) :]
            }  # fmt: skip
            if any(len(fields[name]) > 1 for name in ("chosen", "rejected")):
                raise ValueError(
                    "chosen and rejected part before the last answer: the prompt is all that comes "
                    "before one, and the same in both"
                )
            return _chat("chosen", shared), fields
        if prompt is None:
            raise ValueError("chosen and rejected have no prompt in common, and there is no other")
    if asked is None:
        inside = next((name for name, value in fields.items() if _are_records(value)), "")
        raise ValueError(
            "field 'query' is missing, and so is a prompt: a field prompt or question, or the "
            "messages that chosen and rejected begin with"
            + (f"; if the records are those in '{inside}', save that list alone" if inside else "")
        )
    if asked == "instruction" and fields.get("input"):
        raise ValueError("fields 'instruction' and 'input' are two prompts; join them in one")
    if isinstance(prompt, str) and _is_dialogue(prompt) and _awaits_answer(prompt):
        prompt = [turn for turn in _turns(prompt) if turn["content"]]
    if isinstance(prompt, list):
        return _chat(asked, prompt), fields
    if not isinstance(prompt, str):
        raise ValueError(f"field '{asked}' is neither text nor messages")
    if not prompt.strip():
        raise ValueError(f"{asked} is blank")
    return [{"role": "user", "content": prompt}], fields


def _common_start(one: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    """The messages before the first that differs, the last one left out: an answer is left."""
    least = min(len(one), len(other))
    differing = (i for i in range(least) if one[i] != other[i])
    return list(one[: next(differing, max(0, least - 1))])


def _chat(name: str, messages: Sequence[Any]) -> Conversation:
    if not messages:
        raise ValueError(f"field '{name}' holds no messages")
    return [
        {"role": str(message["role"]), "content": _content(name, message)}
        for message in messages
        if _checked(name, message)
    ]


def _are_records(value: Any) -> bool:
    """A list of objects that are no messages."""
    objects = isinstance(value, list) and value and all(isinstance(one, dict) for one in value)
    return bool(objects) and not {"role", "from"} & value[0].keys()


def _checked(name: str, message: Any) -> bool:
    if isinstance(message, str):
        raise ValueError(f"field '{name}' is a list of texts; it is one text, or messages")
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise ValueError(f"field '{name}': a message has a role and content")
    for key in _UNREAD_OF_MESSAGE:
        if not _is_nothing(message.get(key)):
            raise ValueError(
                f"field '{name}': '{key}' of a message is part of the text there, and cannot be "
                "read here; leave the record out, or put it into the content"
            )
    return True


def _content(name: str, message: Mapping[str, Any]) -> str:
    text = text_of(message["content"])
    if text is None:
        raise ValueError(f"field '{name}': the content of a message is not text")
    return text


def _response(name: str, value: Any) -> str | None:
    """The text of a level: as it is, or of the one message that holds it; None of anything else,
    which may stand in a column that is no level.
    """
    if isinstance(value, str) or not isinstance(value, list):
        return value if isinstance(value, str) else None
    level = name in ("chosen", "rejected")
    if len(value) != 1:
        if level:
            raise ValueError(
                f"field '{name}' holds {len(value)} messages besides the prompt; a response is one"
            )
        return None
    (message,) = value
    if not level and not (isinstance(message, dict) and message.get("role") == "assistant"):
        return None
    _checked(name, message)
    if message["role"] in ("user", "system"):
        raise ValueError(
            f"field '{name}' is no answer to a prompt: its message is the {message['role']}'s"
        )
    return _content(name, message)


def _is_dialogue(text: str) -> bool:
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in _plain_ends(text)


def _awaits_answer(dialogue: str) -> bool:
    return _plain_ends(dialogue).rstrip().endswith("\n\nAssistant:")


def _plain_ends(text: str) -> str:
    return text.replace("\r\n", "\n")


def _turns(text: str) -> Conversation:
    """A dialogue in one text, as HH-RLHF writes it, as messages."""
    _, *parts = _TURN.split("\n\n" + _plain_ends(text).lstrip())
    return [
        {"role": _ROLES[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def is_absent(value: Any) -> bool:
    """Null, or the NaN that pandas has for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_nothing(value: Any) -> bool:
    """Also of a column of objects, in which a table has a null for every key."""
    values = value.values() if isinstance(value, Mapping) else value
    if isinstance(values, str) or not isinstance(values, Iterable):
        return value in _NOTHING
    return all(_is_nothing(one) for one in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
