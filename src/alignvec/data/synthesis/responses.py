"""Responses: each query answered at every level of a spectrum, under that level's instruction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import regex

from alignvec.data.spectrum import Spectrum
from alignvec.data.synthesis.chat import Chat, Completion, Task
from alignvec.data.synthesis.journal import Journal, key_of
from alignvec.data.synthesis.prompts import Prompt
from alignvec.data.synthesis.queries import Query

_TOKENS_A_WORD = 2  # more than a response within its band needs
_SENTENCE = regex.compile(r"""\S[\s\S]*?[.!?]+["')\]]*(?=\s|$)""")


def response_tasks(
    queries: Iterable[Query], spectrum: Spectrum, prompt: Prompt
) -> Iterator[tuple[Query, list[Task]]]:
    """Of each query a task a level, from low to high.

    The spectrum's examples go before the query as turns of the conversation.
    """
    for query in queries:
        tasks = []
        for level in spectrum.levels:
            least, most = spectrum.band(level.name)
            *before, asked = prompt.messages(
                query=query.query, instruction=level.instruction, about=spectrum.about,
                least=least, most=most,
            )  # fmt: skip
            shown = [
                turn
                for example in spectrum.examples
                for turn in (
                    {"role": "user", "content": example.query},
                    {"role": "assistant", "content": example.responses[level.name]},
                )
            ]
            tasks.append(Task.of([*before, *shown, asked], _TOKENS_A_WORD * most))
        yield query, tasks


def completed_records(
    asked: Iterable[tuple[Query, list[Task]]], spectrum: Spectrum, chat: Chat, journal: Journal
) -> Iterator[dict[str, str]]:
    """A record, as it lies in a file, for each query of which every level is in the journal."""
    for query, tasks in asked:
        keys = [key_of(task, chat) for task in tasks]
        if all(key in journal for key in keys):
            texts = {
                level: as_response(journal[key], spectrum.band(level)[1])
                for level, key in zip(spectrum.level_names, keys, strict=True)
            }
            yield {**query.model_dump(), **texts}


def as_response(completion: Completion, most: int) -> str:
    """An answer on one line. Of one that was cut off, the whole sentences that fit into the band.

    Args:
        most: words.
    """
    text = " ".join(completion.text.split())
    if not completion.cut_off:
        return text
    kept, words = [], 0
    for sentence in _SENTENCE.findall(text):
        words += len(sentence.split())
        if words > most:
            break
        kept.append(sentence)
    return " ".join(kept) or text
