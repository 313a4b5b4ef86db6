"""What knobs are compared with first: the same base, told in words or by examples how to answer.

A way of telling turns a query into the conversation that the base gets instead: `with_system` puts
a system message before it, `with_examples` questions that were answered at the wanted level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from alignvec.base.messages import Conversation, Messages, conversations
from alignvec.base.prompts import render_chat
from alignvec.data.records import Record
from alignvec.data.spectrum import SHIPPED, Spectrum, read_spectrum
from alignvec.errors import AlignvecError
from alignvec.evaluate.measurable import Measurable
from alignvec.evaluate.rates import response_rows

Told = Callable[[Messages], Conversation]
EXAMPLES = 3  # of a domain
_MARK = "\ue000"  # a character of no script


def system_prompt(levels: Mapping[str, str], spectra: Sequence[Spectrum] = ()) -> str:
    """What a writer is told who is to answer at a level: of one domain, or of each of several.

    A level is told as its spectrum does: one of `spectra`, or the shipped one of that domain. A
    level that no spectrum knows is told by its name.

    Args:
        levels: domain -> level.
    """
    known = {spectrum.domain: spectrum for spectrum in spectra}
    for domain in levels.keys() & set(SHIPPED) - known.keys():
        known[domain] = read_spectrum(domain)
    told = {domain: _instruction(known.get(domain), level) for domain, level in levels.items()}
    if len(told) == 1:
        return next(iter(told.values()))
    parts = ["How you answer depends on what you are asked about."]
    for domain, text in told.items():
        about = known[domain].about if domain in known else domain
        parts.append(f"Questions about {about}: {text}")
    return "\n\n".join([*parts, "Anything else: You answer as usual."])


def _instruction(spectrum: Spectrum | None, name: str) -> str:
    for level in spectrum.levels if spectrum else []:
        if level.name == name:
            return level.instruction
    words = name.replace("_", " ").replace("-", " ")
    return f'The style of your answers is "{words}". Keep to it whatever you are asked.'


def with_system(text: str) -> Told:
    """A system message before the query, joined with one that the query brings."""

    def told(query: Messages) -> Conversation:
        own, turns = _parted(query)
        return [{"role": "system", "content": "\n\n".join([text, *own])}, *turns]

    return told


def with_examples(
    records: Sequence[Record], levels: Mapping[str, str], each: int = EXAMPLES, seed: int = 0
) -> Told:
    """Records of each domain before the query as earlier turns, answered by their references.

    Which ones depends on their ids and the seed alone; a record is never an example for itself. The
    domains take turns, so that none stands nearest to every query.

    Args:
        records: to choose from: those of the train part.
        levels: domain -> level.
        each: how many of a domain.

    Raises:
        AlignvecError: a domain has fewer with a response at its level.
    """
    ranked = {
        domain: sorted(
            (one for one in records if one.domain == domain and level in one.levels),
            key=lambda one: hashlib.sha256(f"{seed} {one.id}".encode()).digest(),
        )
        for domain, level in levels.items()
    }
    for domain, some in ranked.items():
        if len(some) < each:
            raise AlignvecError(
                f"{each} examples of '{domain}' are wanted, and only {len(some)} records have a "
                f"response '{levels[domain]}'; give more records, or ask for fewer examples"
            )

    def told(query: Messages) -> Conversation:
        own, turns = _parted(query)
        chosen = [[one for one in some if one.prompt != query][:each] for some in ranked.values()]
        shown = [
            turn
            for place in range(each)
            for some in chosen
            for one in some[place : place + 1]
            for turn in (
                *_parted(one.prompt)[1],
                {"role": "assistant", "content": one.levels[levels[one.domain]]},
            )
        ]
        return [*({"role": "system", "content": text} for text in own), *shown, *turns]

    return told


def _parted(query: Messages) -> tuple[list[str], Conversation]:
    """What a query's system messages say, and its other turns."""
    (chat,) = conversations([query])
    own = [turn["content"] for turn in chat if turn["role"] == "system"]
    return own, [turn for turn in chat if turn["role"] != "system"]


class Prompted:
    """A base that is told how to answer, with every knob at 0. A `Subject`.

    Where the chat template has no place for a system message, or passes over it, the next turn of
    the user begins with it. A base without a template gets the turns one after another, a blank
    line between.
    """

    identity: str | None = None

    def __init__(self, model: Measurable, told: Told) -> None:
        self.model, self.told = model, told
        self._has_system = takes_system(model.tokenizer)

    def asked(self, query: Messages) -> Conversation:
        """What the base is asked instead of a query."""
        chat = self.told(query)
        return chat if self._has_system else _without_system(chat)

    def scores(self, records: Sequence[Record], levels: Sequence[str]) -> NDArray[np.float64]:
        """s(l) of every record, [Q, L] in nats a token.

        Raises:
            AlignvecError: the chat template refuses a conversation, see also `response_scores`.
        """
        told = [
            record.model_copy(update={"messages": tuple(self.asked(record.prompt))})
            for record in records
        ]
        rows = response_rows(self.model.tokenizer, told, levels)
        return np.array(self.model.scores(rows, [{}] * len(rows)))

    def answers(self, queries: Sequence[Messages], max_new_tokens: int) -> list[str]:
        """A greedy answer to each query."""
        chats = [self.asked(query) for query in queries]
        return self.model.generate(chats, [{}] * len(chats), max_new_tokens)


def takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether what a system message says reaches the model."""
    chat = [{"role": "system", "content": _MARK}, {"role": "user", "content": "?"}]
    try:
        return _MARK in render_chat(tokenizer, chat)
    except AlignvecError:
        return False


def _without_system(chat: Conversation) -> Conversation:
    """The same conversation, with what the system says put before what the user says next."""
    found: Conversation = []
    waiting: list[str] = []
    for turn in chat:
        if turn["role"] == "system":
            waiting.append(turn["content"])
        elif turn["role"] == "user":
            found.append({**turn, "content": "\n\n".join([*waiting, turn["content"]])})
            waiting = []
        else:
            found.append(turn)
    return found
