"""A judge of levels behind a chat: a large model is shown a rubric, a question and an answer.

Such judges favour what stands first. So each text is judged twice, the levels in their order and in
the reverse; where the two verdicts differ there is none, and how far they agree is told, as Cohen's
kappa. Every answer lies in a journal: a killed run goes on and pays for nothing twice.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignvec.base.messages import Messages, as_text
from alignvec.data import Record
from alignvec.data.annotation.agreement import pairwise
from alignvec.data.spectrum import SHIPPED, Spectrum, read_spectrum
from alignvec.data.synthesis.chat import Chat, Task, UnwrittenError
from alignvec.data.synthesis.journal import Journal
from alignvec.data.synthesis.prompts import Prompt
from alignvec.data.synthesis.writing import Budget, write_texts
from alignvec.errors import AlignvecError

ROOM = 64  # tokens for the name of a level
_EXAMPLES = 3  # of a level that nobody has described
_NEGATION = re.compile(r"\b(?:not|no|never|neither|nor)\b|n['’]t\b", re.IGNORECASE)


@dataclass(frozen=True)
class Kappa:
    """How far two judges agree beyond chance (Cohen).

    Attributes:
        value: 1 where they always agree, 0 by chance; None if it is not defined.
        interval: 95%, by a bootstrap over texts; None if no resample differs.
        texts: that both named a level of.
        raw: share of those on which they agree.
    """

    value: float | None
    interval: tuple[float, float] | None
    texts: int
    raw: float | None


def kappa(one: Sequence[str | None], other: Sequence[str | None], levels: Sequence[str]) -> Kappa:
    """How far two judges agree on the same texts; those of which one told no level are left out."""
    code: dict[str | None, int] = {level: index for index, level in enumerate(levels)}
    a, b = (np.array([code.get(level, -1) for level in told], int) for told in (one, other))
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not defined becomes None
        found = pairwise(a, b, len(levels))
    value, interval = (found["kappa"][key] for key in ("value", "interval"))
    return Kappa(value, interval and tuple(interval), found["raw"]["items"], found["raw"]["value"])


@dataclass(frozen=True)
class Verdicts:
    """What a judge said of some texts.

    Attributes:
        names: the levels.
        first: of each text the level, named in their order; None where none can be told.
        swapped: the same, named in the reverse order.
        unreadable: answers that name no level, or several.
        refused: answers that could not be had at all, such as filtered ones.
    """

    names: Sequence[str]
    first: list[str | None]
    swapped: list[str | None]
    unreadable: int
    refused: int

    @property
    def levels(self) -> list[str | None]:
        """Of each text the level that both verdicts name; None where they differ."""
        pairs = zip(self.first, self.swapped, strict=True)
        return [one if one == other else None for one, other in pairs]

    @property
    def kappa(self) -> Kappa:
        """How far the verdicts of both orders agree."""
        return kappa(self.first, self.swapped, self.names)

    def to_json(self) -> dict[str, Any]:
        told = {"texts": len(self.first), "told": sum(level is not None for level in self.levels)}
        return told | {
            "unreadable": self.unreadable,
            "refused": self.refused,
            "orders": asdict(self.kappa),
        }


class ChatJudge:
    """A model behind a chat, such as an `Endpoint`, as a `Judge`."""

    def __init__(
        self,
        chat: Chat,
        rubric: Mapping[str, str],
        journal: Path,
        concurrency: int = 16,
        room: int = ROOM,
        budget: Budget | None = None,
    ) -> None:
        """Nothing is asked yet.

        Args:
            chat: at a temperature of 0 an unusable answer is not asked for again.
            rubric: level -> what an answer of it is like, from low to high; see `rubric`.
            journal: a file for every answer, made if it is not there.
            concurrency: requests at the same time.
            room: tokens of an answer; a model that reasons needs more.
            budget: of all answers in the journal.
        """
        self.chat, self.rubric, self.journal = chat, dict(rubric), journal
        self._concurrency, self._room, self._budget = concurrency, room, budget
        self._prompt = Prompt("judge")

    def __call__(self, queries: Sequence[Messages], texts: Sequence[str]) -> list[str | None]:
        """The level of each text on which both verdicts agree; see `verdicts`."""
        return self.verdicts(queries, texts).levels

    def verdicts(self, queries: Sequence[Messages], texts: Sequence[str]) -> Verdicts:
        """Have texts judged, each twice. Of an empty one nothing is asked.

        Args:
            queries: what each text answers.

        Raises:
            AlignvecError: the chat cannot be reached, or does not answer all of it now, or the
                budget is spent; what it did answer is in the journal.
        """
        names = list(self.rubric)
        tasks = [
            self._task(query, text, order, number) if text.strip() else None
            for number, (query, text) in enumerate(zip(queries, texts, strict=True), 1)
            for order in (names, names[::-1])
        ]
        asked = [task for task in tasks if task]
        with closing(Journal(self.journal)) as journal:
            outcome = write_texts(
                lambda: asked, self.chat, journal, self._budget, self._concurrency
            )
            if outcome.unanswered or outcome.beyond:
                raise AlignvecError(f"the judge {self.chat.name} is not done: {outcome.missing}")
            found = [journal.text(task, self.chat) if task else None for task in tasks]
        told = [level_in(one.text, names) if one else None for one in found]
        had = sum(one is not None for one in found)
        unreadable = had - sum(level is not None for level in told)
        return Verdicts(names, told[::2], told[1::2], unreadable, len(asked) - had)

    def _task(self, query: Messages, text: str, order: Sequence[str], number: int) -> Task:
        *others, last = order
        messages = self._prompt.messages(
            levels="\n".join(f"- {level}: {self.rubric[level]}" for level in order),
            names=f"{', '.join(others)} or {last}",
            query=as_text(query),
            answer=text.strip(),
        )
        return Task.of(messages, self._room, name=f"text {number}")


def check_reachable(chat: Chat) -> None:
    """Ask for one short text, which nothing is made of.

    Raises:
        AlignvecError: it is not to be had.
    """

    async def ask() -> None:
        try:
            await chat.complete(Task((("user", "Say yes."),), ROOM, name="a first text"))
        except UnwrittenError as error:
            raise AlignvecError(f"the judge {chat.name} does not answer: {error}") from error
        finally:
            await chat.close()

    asyncio.run(ask())


def rubric(
    records: Sequence[Record], levels: Sequence[str], spectra: Iterable[Spectrum] | None = None
) -> dict[str, str]:
    """Level -> what an answer of it is like: what its writer was told, else how some answer.

    Args:
        records: of the train part.
        levels: from low to high.
        spectra: of the domains of the records; by default those that ship with the package.

    Raises:
        AlignvecError: there are no records, and no spectrum says what the levels are.
    """
    domains = sorted({record.domain for record in records})
    if spectra is None:
        spectra = [read_spectrum(domain) for domain in domains if domain in SHIPPED]
    known = {one.domain: one for one in spectra if set(levels) <= set(one.level_names)}
    if known and known.keys() >= set(domains):
        return {level: _told(list(known.values()), level) for level in levels}
    if not records:
        raise AlignvecError("no records show a judge what the levels are")
    return {
        level: "as in " + "; ".join(f'"{one.levels[level]}"' for one in records[:_EXAMPLES])
        for level in levels
    }


def _told(spectra: Sequence[Spectrum], level: str) -> str:
    """What the writers of a level are told, domain by domain if there are several."""
    parts = []
    for spectrum in spectra:
        told = next(one.instruction for one in spectrum.levels if one.name == level)
        parts.append(f'about {spectrum.about}, as told "{" ".join(told.split())}"')
    return "; ".join(parts)


def level_in(reply: str, levels: Sequence[str]) -> str | None:
    """The level that a reply names; None if it names none or several, or says what one is not."""
    names = {level.casefold(): level for level in levels}
    bare = re.sub(r"^\W+|\W+$", "", reply).casefold()
    if bare in names:
        return names[bare]
    either = "|".join(map(re.escape, sorted(levels, key=len, reverse=True)))
    found = {one.casefold() for one in re.findall(rf"(?<![\w-])(?:{either})(?![\w-])", reply, re.I)}
    return names[found.pop()] if len(found) == 1 and not _NEGATION.search(reply) else None
