"""Which prompts a training saw, so that whoever reports on queries can say if they are among them.

A training record keeps a short hash of each, all in one text: a dozen thousand prompts in 100 kB.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignvec.base.messages import Messages, conversations

SEEN = "seen"  # the field of a training record
_BYTES = 6  # of a hash: of 10,000 queries and 100,000 prompts none is taken for another


def seen_prompts(prompts: Iterable[Messages]) -> str:
    """The hashes of prompts, as a training record keeps them."""
    return _written({prompt_hash(prompt) for prompt in prompts})


def seen_by_all(trainings: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What several trainings saw together, as the field of a record; none if one does not say."""
    found = [_read(training) for training in trainings]
    known = [one for one in found if one is not None]
    return {SEEN: _written(set().union(*known))} if found and len(known) == len(found) else {}


def count_seen(trainings: Iterable[Mapping[str, Any]], prompts: Sequence[Messages]) -> int | None:
    """How many of some prompts at least one of the trainings saw; None if a training does not say.

    What the user says counts, in any case and spacing, whatever the system message.
    """
    found = [_read(training) for training in trainings]
    if any(one is None for one in found):
        return None
    return sum(any(prompt_hash(prompt) in one for one in found if one) for prompt in prompts)


def queries_told(queries: int, seen: int | None) -> str:
    """How many queries, and how many of them were seen in training."""
    if seen is None:
        return f"{queries} queries (whether training saw them is not known)"
    if not seen:
        return f"{queries} unseen queries"
    return f"{queries} queries, {'all' if seen == queries else seen} of them seen in training"


def prompt_hash(prompt: Messages) -> bytes:
    """The same of prompts that are one, in any case and spacing, whatever the system message."""
    (chat,) = conversations([prompt])
    said = [" ".join(turn["content"].split()) for turn in chat if turn["role"] == "user"]
    text = unicodedata.normalize("NFC", "\n".join(said).casefold())
    return hashlib.sha256(text.encode()).digest()[:_BYTES]


def _written(hashes: Iterable[bytes]) -> str:
    return base64.b64encode(b"".join(sorted(hashes))).decode()


def _read(training: Mapping[str, Any]) -> set[bytes] | None:
    try:
        whole = base64.b64decode(training[SEEN], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None
    return {whole[start : start + _BYTES] for start in range(0, len(whole), _BYTES)}
