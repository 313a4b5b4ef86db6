"""What people said about responses, in an SQLite file: safe for many writers and against kills.

An item is one response of a record with its query. People are asked for its level without being
shown the level that it was written at: ids are in random order, and each annotator gets an order of
their own.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain, zip_longest
from pathlib import Path

from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel, select

from alignvec.base.messages import as_text
from alignvec.data.records import Record
from alignvec.errors import AlignvecError
from alignvec.sqlite import Database

_APPLICATION_ID = 0x616C7661  # SQLite's application id: "alva"


class _Table(SQLModel, registry=registry()):
    """Of this file, not of any other that SQLModel knows."""


class Item(_Table, table=True):
    """One response.

    Attributes:
        level: what it was written at.
        rank: of that level, from low to high.
        query: what is answered: of a conversation all that was said before.
    """

    id: int | None = Field(default=None, primary_key=True)
    record: str
    level: str
    rank: int
    query: str
    response: str


class Answer(_Table, table=True):
    """What an annotator took an item for, and when that was kept (ISO 8601)."""

    item: int = Field(foreign_key="item.id", primary_key=True)
    annotator: str = Field(primary_key=True)
    level: str
    note: str = ""
    time: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class Annotations:
    """The items and answers of one file.

    Attributes:
        items: by id; they never change.
        levels: from low to high.
    """

    def __init__(self, path: Path, items: Sequence[Item] = ()) -> None:
        """Open a file; where there is none, make it from `items`.

        Raises:
            AlignvecError: there is none and no items; or it is not ours, or has other items.
        """
        self.path = path
        self._database = Database(
            path, _APPLICATION_ID, "answers", _Table.metadata, bool(items), items
        )
        with self._database.session() as session:
            stored = session.exec(select(Item).order_by("id")).all()
        if items and not _same(items, stored):
            raise AlignvecError(
                f"{path} holds answers on other items; go on with the data and the options it "
                "was made from (or name no data), or choose another file"
            )
        self.items = {item.id: item for item in stored if item.id is not None}
        ranks = {item.level: item.rank for item in stored}
        self.levels = sorted(ranks, key=ranks.__getitem__)

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep answers, all or none; one that an annotator gave to an item before is replaced."""
        rows = [answer.model_dump() for answer in answers]
        statement = insert(Answer)
        new = {name: statement.excluded[name] for name in ("level", "note", "time")}
        statement = statement.on_conflict_do_update(["item", "annotator"], set_=new)
        with self._database.session() as session:
            if rows:
                session.connection().execute(statement, rows)
            session.commit()

    def answers(self, annotator: str | None = None) -> list[Answer]:
        """All answers, or those of one annotator."""
        query = select(Answer).order_by("item", "annotator")
        if annotator is not None:
            query = query.where(Answer.annotator == annotator)
        with self._database.session() as session:
            return list(session.exec(query))

    def order(self, annotator: str) -> list[int]:
        """The items as this annotator gets them: shuffled, the same every time."""
        ids = sorted(self.items)
        random.Random(annotator).shuffle(ids)
        return ids


def _same(items: Sequence[Item], stored: Sequence[Item]) -> bool:
    """Files of alignvec 0.1 hold of a conversation only what was asked last."""
    new, old = ({_content(item): item.query for item in some} for some in (items, stored))
    return new.keys() == old.keys() and all(
        query == new[key] or f"[user] {query}" in new[key] for key, query in old.items()
    )


def _content(item: Item) -> tuple[str, str, int, str]:
    return item.record, item.level, item.rank, item.response


def items_of(records: Iterable[Record], levels: Sequence[str], seed: int = 0) -> list[Item]:
    """Every response of the records, in random order.

    Args:
        levels: from low to high.
    """
    items = [
        Item(
            record=record.id,
            level=level,
            rank=rank,
            query=as_text(record.prompt),
            response=record.levels[level],
        )
        for record in records
        for rank, level in enumerate(levels)
    ]
    random.Random(seed).shuffle(items)
    return items


def sample(
    records: Sequence[Record], limit: int, seed: int = 0, stratified: bool = True
) -> list[Record]:
    """At most `limit` random records; stratified: as many of each domain, as far as they go."""
    domains: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        domains[record.domain if stratified else ""].append(record)
    chance = random.Random(seed)
    shuffled = [chance.sample(domains[name], len(domains[name])) for name in sorted(domains)]
    in_turns = chain.from_iterable(zip_longest(*shuffled))
    return [record for record in in_turns if record][:limit]


def annotator_name(text: str, where: str = "your name") -> str:
    """A name as it is kept, so that one person is not two: in lower case, with single spaces.

    Raises:
        AlignvecError: there is none, or it is longer than a name or cannot be printed.
    """
    name = " ".join(text.split()).casefold()
    if not name or len(name) > 80 or not name.isprintable():
        raise AlignvecError(f"{where}: a name has 1 to 80 characters that can be printed")
    return name
