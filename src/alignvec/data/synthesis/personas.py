"""Personas: from PersonaHub or a file like it, and new ones (the paper's CreatePersona)."""

from __future__ import annotations

import hashlib
import logging
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import regex
from pydantic import Field

from alignvec.data.duplicates import NearDuplicates
from alignvec.data.records import Entry
from alignvec.data.sources import rows
from alignvec.data.spectrum import Spectrum
from alignvec.data.synthesis.chat import Chat, Task
from alignvec.data.synthesis.journal import Journal
from alignvec.data.synthesis.prompts import PEOPLE, Prompt
from alignvec.data.synthesis.writing import Budget, Outcome, write_texts
from alignvec.data.words import JOINED
from alignvec.errors import AlignvecError
from alignvec.progress import progress

logger = logging.getLogger(__name__)

PERSONA_HUB = "proj-persona/PersonaHub"
_SHOWN = 3  # people of the set so far that a prompt shows
_MAX_TOKENS = 80
_PATIENCE = 5  # rounds without a new persona
_ROUND = 16  # asked for at once; they do not see each other, so it is part of what is asked


class Persona(Entry):
    """Who asks.

    Attributes:
        persona: one sentence in the third person.
        traits: what CreatePersona asked for (age, place, job, register).
    """

    persona: str = Field(min_length=1)
    source: str
    traits: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def of(
        cls, domain: str, text: str, source: str, traits: dict[str, str] | None = None
    ) -> Persona:
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return cls(
            id=f"{domain}-p{digest}", domain=domain, persona=text, source=source,
            traits=traits or {},
        )  # fmt: skip


def from_hub(
    source: str, spectrum: Spectrum, limit: int, any_domain: bool = False, seed: int = 0
) -> list[Persona]:
    """Personas of PersonaHub, or of a JSON Lines file or dataset with a field `persona`.

    Those of the spectrum's domain (one of its keywords is said), near duplicates left out; a random
    `limit` of them, in one pass over the source.

    Raises:
        AlignvecError: the source cannot be read, or has no persona of the domain.
    """
    source = f"{source}:persona" if source == PERSONA_HUB else source
    said = _any_of(spectrum.keywords)
    chance, chosen, count = random.Random(seed), list[str](), 0
    for place, fields in rows(source):
        text = fields.get("persona") if isinstance(fields, dict) else None
        if not isinstance(text, str):
            raise AlignvecError(f"{place}: field 'persona' is missing or not text")
        text = " ".join(text.split())
        if not text or not (any_domain or said.search(text)):
            continue
        count += 1  # reservoir sampling: each is kept with the same chance
        if len(chosen) < limit:
            chosen.append(text)
        elif (slot := chance.randrange(count)) < limit:
            chosen[slot] = text
    near = NearDuplicates()
    kept = [text for text in chosen if near.add_new(text)]
    if not kept:
        raise AlignvecError(f"{source} holds no persona of domain '{spectrum.domain}'")
    return [Persona.of(spectrum.domain, text, source) for text in kept]


def _any_of(keywords: Sequence[str]) -> regex.Pattern[str]:
    """What finds one of some words, in any case; `*` at the end stands for any ending.

    Where words are written without spaces between, a keyword is found within what is written.
    """

    def word(keyword: str) -> str:
        stem = keyword.removesuffix("*")
        ends = r"\w*" if stem != keyword else rf"(?!{JOINED})"
        return rf"(?<!{JOINED}){regex.escape(stem)}{ends}"

    return regex.compile("|".join(map(word, keywords)) or "$^", regex.IGNORECASE | regex.VERSION1)


def create(
    count: int,
    spectrum: Spectrum,
    seeds: Sequence[Persona],
    chat: Chat,
    journal: Journal,
    prompt: Prompt,
    budget: Budget | None = None,
    concurrency: int = 16,
    seed: int = 0,
) -> tuple[list[Persona], Outcome]:
    """`count` new personas, grown round by round from the seeds and from the set so far.

    Each is asked to have the traits that are rarest so far; one that reads like another is left
    out and asked for again. The same arguments give the same personas, from the journal, however
    many requests run at the same time. Later rounds build on all answers of a round: it ends with
    one that has a text still to come.

    Returns:
        The new ones, fewer than `count` where the writer has no more ideas, and what it took.

    Raises:
        AlignvecError: see `write_texts`.
    """
    chance = random.Random(seed)
    people, near = list(seeds), NearDuplicates()
    for persona in people:
        near.add_new(persona.persona)
    used = {trait: Counter(p.traits.get(trait) for p in people) for trait in PEOPLE}
    created: list[Persona] = []
    total = Outcome()
    rounds = idle = 0
    with progress("personas", "persona", count) as bar:
        while len(created) < count and idle < _PATIENCE and not (total.beyond or total.unanswered):
            rounds += 1
            asked = [
                request(spectrum, prompt, people, used, chance, sample=rounds)
                for _ in range(min(_ROUND, count - len(created)))
            ]
            tasks = [task for _, task in asked]
            if rounds == 1:
                read, written = count * tasks[0].prompt_tokens, count * _MAX_TOKENS
                logger.info("%d personas: about %d tokens read, at most %d written, and more where "
                            "one reads like another", count, read, written)  # fmt: skip
            total += write_texts(tasks.copy, chat, journal, budget, concurrency, announce=False)
            before = len(created)
            for traits, task in asked:
                completion = journal.text(task, chat)
                text = as_persona(completion.text) if completion else None
                if text and near.add_new(text):
                    persona = Persona.of(spectrum.domain, text, "CreatePersona", traits)
                    created.append(persona)
                    people.append(persona)
            bar.update(len(created) - before)
            idle = 0 if len(created) > before else idle + 1
    return created, total


def request(
    spectrum: Spectrum,
    prompt: Prompt,
    people: Sequence[Persona],
    used: Mapping[str, Counter[str | None]],
    chance: random.Random,
    sample: int = 0,
) -> tuple[dict[str, str], Task]:
    """What to ask for one more persona: traits that are rare so far, and a few people to differ
    from. The traits count as used from now on.
    """
    traits = {trait: _rarest(values, used[trait], chance) for trait, values in PEOPLE.items()}
    shown = chance.sample(people, min(_SHOWN, len(people)))
    examples = "\n".join(f"- {one.persona}" for one in shown) or "(none yet)"
    messages = prompt.messages(about=spectrum.about, examples=examples, **traits)
    return traits, Task.of(messages, _MAX_TOKENS, sample, f"a persona of round {sample}")


def _rarest(values: Sequence[str], used: Counter[str | None], chance: random.Random) -> str:
    fewest = min(used[value] for value in values)
    value = chance.choice([value for value in values if used[value] == fewest])
    used[value] += 1
    return value


def as_persona(text: str) -> str | None:
    """The sentence of an answer, if it is about a person, as in "A retired bus driver who ..."."""
    line = next((line.strip(" -*\"'") for line in text.splitlines() if line.strip()), "")
    line = re.sub(r"^(\d+[.)]|Persona:|Person:)\s*", "", line)
    if not re.match(r"(A|An)\s", line) or not 6 <= len(line.split()) <= 60:
        return None
    return line
