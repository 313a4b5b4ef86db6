"""Responses: each query answered at every level of a spectrum, under that level's instruction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import regex

from alignvec.data.spectrum import Spectrum
from alignvec.data.synthesis.chat import Chat, Completion, Task
from alignvec.data.synthesis.journal import Journal
from alignvec.data.synthesis.prompts import Prompt
from alignvec.data.synthesis.queries import Query
from alignvec.data.words import word_count

_TOKENS_A_WORD = 2  # more than a response within its band needs
_SENTENCE = regex.compile(r"""\S[\s\S]*?(?:[.!?]+["')\]]*(?=\s|$)|[。！？]+[\p{Pe}\p{Pf}"']*)""")


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
            room, name = _TOKENS_A_WORD * most, f"{query.id} {level.name}"
            tasks.append(Task.of([*before, *shown, asked], room, name=name))
        yield query, tasks


def completed_records(
    asked: Iterable[tuple[Query, list[Task]]], spectrum: Spectrum, chat: Chat, journal: Journal
) -> Iterator[dict[str, str]]:
    """A record, as it lies in a file, for each query of which every level is in the journal."""
    for query, tasks in asked:
        if all(journal.key(task, chat) for task in tasks):
            found = zip(spectrum.level_names, tasks, strict=True)
            texts = {
                level: as_response(completion, spectrum.band(level)[1])
                for level, task in found
                if (completion := journal.text(task, chat))
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
    words = end = 0
    for sentence in _SENTENCE.finditer(text):
        words += word_count(sentence.group())
        if words > most:
            break
        end = sentence.end()
    return text[:end] or text
