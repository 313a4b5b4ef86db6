"""Preference records and how they are read.

A record is a query with a response at each of several levels. Every source that people have is one
of these: our three levels (`avoidance`, `generic`, `expert`), safety pairs (`safe`, `unsafe`),
harmless look-alikes (`helpful`, `refusal`), and the `prompt`/`chosen`/`rejected` files that TRL
trains on, plain or conversational (`forms`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alignvec.base.messages import Messages
from alignvec.data.forms import GENERAL, is_absent, record_fields
from alignvec.data.sources import rows
from alignvec.data.splits import SPLITS, split_of
from alignvec.errors import AlignvecError, check_known
from alignvec.files import validated

LEVELS = ("avoidance", "generic", "expert")  # from low to high


class Record(BaseModel):
    """One query and a response for each level.

    In a file the levels lie beside the other fields, each under its own name; a field that is not
    text is left out of `levels`. Without an `id` it is made from the content.

    Attributes:
        query: what is asked: of a conversation, the last thing that the user says.
        messages: the whole conversation that is answered, where it is more than the query: a system
            message, several turns.
        split_key: decides the split where the id is made: the pairs of one prompt share it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    domain: str = GENERAL
    topic: str = ""
    persona: str = ""
    query: str = Field(min_length=1)
    messages: tuple[dict[str, str], ...] = ()
    levels: dict[str, str]
    split_key: str = ""

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping) or isinstance(fields.get("levels"), Mapping):
            return fields
        return record_fields(fields)

    @model_validator(mode="after")
    def _query_is_not_blank(self) -> Record:
        if not self.query.strip():
            raise ValueError("query is blank")
        return self

    @property
    def prompt(self) -> Messages:
        """What a model is asked: the query, or the conversation."""
        return self.messages or self.query

    @property
    def split(self) -> str:
        """Its part, see `split_of`."""
        return split_of(self.split_key or self.id)


def read_records(
    source: str | Path,
    levels: Sequence[str] = LEVELS,
    domain: str | None = None,
    split: str | None = None,
) -> Iterator[Record]:
    """Read records one at a time, each checked.

    Args:
        source: `builtin`; a file (see `rows`); or what `datasets.load_dataset` takes: a folder of
            Parquet, Arrow, CSV or JSON files, or a hub id (its `train` rows, streamed; a
            configuration after a colon).
        levels: the levels that every record must have.
        domain: keep only this domain. `safety` and `harmless` of `builtin`, with levels of their
            own, are read only so.
        split: keep only `train`, `validation` or `test` (see `split_of`).

    Raises:
        AlignvecError: the source is missing or empty, a record is malformed (with file, line and
            field), an id comes twice, or nothing is left after `domain` and `split`.
    """
    if split is not None:
        check_known("split", split, SPLITS)
    first_seen: dict[str, str] = {}
    domains: set[str] = set()
    kept = 0
    for place, fields in rows(str(source), domain):
        record = _validated_record(place, fields, levels)
        if record.id in first_seen and not record.split_key:
            raise AlignvecError(
                f"{place}: field 'id': '{record.id}' is already used at {first_seen[record.id]}"
            )
        first_seen[record.id] = place
        domains.add(record.domain)
        if domain in (None, record.domain) and split in (None, record.split):
            kept += 1
            yield record
    if not first_seen:
        raise AlignvecError(f"{source} holds no records")
    if not kept:
        raise AlignvecError(
            f"{source} holds no records with domain '{domain or 'any'}' and split "
            f"'{split or 'any'}'; its domains: {', '.join(sorted(domains))}"
        )


class Entry(BaseModel):
    """What a record is made from: a persona, a query. Fields that it does not know are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(min_length=1)
    domain: str


SomeEntry = TypeVar("SomeEntry", bound=Entry)


def read_entries(kind: type[SomeEntry], path: Path) -> list[SomeEntry]:
    """All entries of a file.

    Raises:
        AlignvecError: the file cannot be read or is empty, a line is no entry of this kind, or an
            id comes twice.
    """
    found: dict[str, SomeEntry] = {}
    for place, fields in rows(str(path)):
        if isinstance(fields, dict):  # as in records: null is absent, and a number may be an id
            fields = {name: value for name, value in fields.items() if not is_absent(value)}
            if type(fields.get("id")) in (int, float):
                fields["id"] = str(fields["id"])
        entry = validated(kind, fields, place)
        if entry.id in found:
            raise AlignvecError(f"{place}: field 'id': '{entry.id}' is used before")
        found[entry.id] = entry
    if not found:
        raise AlignvecError(f"{path} is empty")
    return list(found.values())


def level_names(source: str | Path) -> list[str]:
    """The levels of the first record of a source, in its order.

    Raises:
        AlignvecError: see `read_records`.
    """
    return list(next(read_records(source, levels=())).levels)


def _validated_record(place: str, fields: Any, levels: Iterable[str]) -> Record:
    if not isinstance(fields, dict):
        raise AlignvecError(f"{place}: a record is a JSON object, with a field a level")
    record = validated(Record, fields, place)
    for level in levels:
        if not record.levels.get(level, "").strip():
            if level in fields:
                raise AlignvecError(f"{place}: field '{level}' is empty or not text")
            others = ", ".join(name for name in record.levels if name) or "none"
            raise AlignvecError(
                f"{place}: field '{level}' is missing; texts that may be levels (--levels): "
                f"{others}"
            )
    return record
