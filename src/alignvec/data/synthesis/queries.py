"""Queries: what a persona asks, in its own voice."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field

from alignvec.data.records import Entry, read_entries
from alignvec.data.spectrum import Spectrum
from alignvec.data.synthesis.chat import Chat, Task
from alignvec.data.synthesis.journal import Journal
from alignvec.data.synthesis.personas import Persona
from alignvec.data.synthesis.prompts import Prompt
from alignvec.errors import AlignvecError

_MAX_TOKENS = 100
_FORMS = (
    "a direct question",
    "a worried description that ends in a question",
    "a comparison of two choices",
    "a what-if question",
    "a belief that the person wants to have checked",
    "a request for the next step",
)


class Query(Entry):
    """A question without answers. The fields are those of a record."""

    topic: str = ""
    persona: str = ""
    query: str = Field(min_length=1)


def query_tasks(
    personas: Iterable[Persona], spectrum: Spectrum, prompt: Prompt, each: int
) -> Iterator[tuple[Query, Task]]:
    """A query to come, still without words, and what to ask for it: `each` for every persona.

    The topics and forms of a persona's queries differ, and all come round over the personas.
    """
    topics = spectrum.topics
    for persona in personas:
        start = int(hashlib.sha256(persona.id.encode()).hexdigest(), 16)
        for number in range(each):
            topic = topics[(start + number) % len(topics)]
            form = _FORMS[(start // len(topics) + number) % len(_FORMS)]
            digest = hashlib.sha256(f"{persona.id} {number}".encode()).hexdigest()[:12]
            messages = prompt.messages(
                persona=persona.persona, about=spectrum.about, topic=topic, form=form
            )
            yield (
                Query.model_construct(
                    id=f"{spectrum.domain}-q{digest}", domain=spectrum.domain, topic=topic,
                    persona=persona.persona, query="",
                ),
                Task.of(messages, _MAX_TOKENS, number, f"{persona.id} query {number + 1}"),
            )  # fmt: skip


def completed_queries(
    asked: Iterable[tuple[Query, Task]], chat: Chat, journal: Journal
) -> Iterator[Query]:
    """The queries whose words are in the journal."""
    for query, task in asked:
        if completion := journal.text(task, chat):
            yield query.model_copy(update={"query": as_query(completion.text)})


def as_query(text: str) -> str:
    """An answer without a number, a label or quotes around it, on one line."""
    line = " ".join(text.split())
    line = re.sub(r"^(\d+[.)]|Question:|Query:)\s*", "", line)
    if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'":
        line = line[1:-1]
    return line.strip()


def read_queries(path: Path, domain: str) -> list[Query]:
    """Queries of one domain.

    Raises:
        AlignvecError: the file cannot be read or is empty, a line is no query or one of another
            domain, or an id comes twice.
    """
    queries = read_entries(Query, path)
    for query in queries:
        if query.domain != domain:
            raise AlignvecError(
                f"{path}: '{query.id}' is of domain '{query.domain}', the spectrum of '{domain}'"
            )
    return queries
