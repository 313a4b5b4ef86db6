"""Preference records and their readers.

A record is a query with a response at each of several levels. Every source that people have is one
of these: our three levels (`avoidance`, `generic`, `expert`), safety pairs (`safe`, `unsafe`), and
the `prompt`/`chosen`/`rejected` files that TRL trains on, plain or conversational.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alignvec.data.splits import SPLITS, split_of
from alignvec.errors import AlignvecError, check_known
from alignvec.files import validated

BUILTIN = "builtin"
LEVELS = ("avoidance", "generic", "expert")  # from low to high
ABOUT = ("id", "domain", "topic", "persona", "query")  # a record, besides its levels


class Record(BaseModel):
    """One query and a response for each level.

    In a file the levels lie beside the other fields, each under its own name; a field that is not
    text is left out of `levels`. `prompt` may stand for `query`. Without an `id` it is made from
    the query.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    domain: str = "general"
    topic: str = ""
    persona: str = ""
    query: str = Field(min_length=1)
    levels: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or "levels" in fields:
            return fields
        fields = {name: _as_text(value) for name, value in _split_prompt(fields).items()}
        if "query" not in fields and "prompt" in fields:
            fields["query"] = fields.pop("prompt")
        if "id" not in fields and isinstance(fields.get("query"), str):
            fields["id"] = hashlib.sha256(fields["query"].encode()).hexdigest()[:16]
        about = {name: fields[name] for name in ABOUT if name in fields}
        levels = {
            name: value
            for name, value in fields.items()
            if name not in ABOUT and isinstance(value, str)
        }
        return {**about, "levels": levels}

    @model_validator(mode="after")
    def _query_is_not_blank(self) -> Record:
        if not self.query.strip():
            raise ValueError("query is blank")
        return self


def _split_prompt(fields: dict[str, Any]) -> dict[str, Any]:
    """Give a conversation its prompt where it is only the common start of chosen and rejected."""
    chosen, rejected = fields.get("chosen"), fields.get("rejected")
    if "prompt" in fields or "query" in fields or not isinstance(chosen, list):
        return fields
    if not isinstance(rejected, list):
        return fields
    return {**fields, "prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _as_text(value: Any) -> Any:
    """A conversation of one message is its content; anything else stays as it is."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        return value[0].get("content", value)
    return value


def read_records(
    source: str | Path,
    levels: Sequence[str] = LEVELS,
    domain: str | None = None,
    split: str | None = None,
) -> Iterator[Record]:
    """Read records one at a time, each checked.

    Args:
        source: `builtin`; a JSON Lines file; or what `datasets.load_dataset` takes: a folder of
            Parquet, Arrow, CSV or JSON files, or a hub id (its `train` rows, streamed; a
            configuration after a colon).
        levels: the levels that every record must have.
        domain: keep only this domain.
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
    for place, fields in rows(str(source)):
        record = _validated_record(place, fields, levels)
        if record.id in first_seen:
            raise AlignvecError(
                f"{place}: field 'id': '{record.id}' is already used at {first_seen[record.id]}"
            )
        first_seen[record.id] = place
        domains.add(record.domain)
        if domain in (None, record.domain) and split in (None, split_of(record.id)):
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
        raise AlignvecError(f"{place}: a record is a JSON object, not {type(fields).__name__}")
    try:
        record = Record.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "query"
        raise AlignvecError(f"{place}: field '{field}': {first['msg']}") from None
    for level in levels:
        if not record.levels.get(level, "").strip():
            wrong = "is empty or not text" if level in fields else "is missing"
            raise AlignvecError(f"{place}: field '{level}' {wrong}")
    return record


def rows(source: str) -> Iterator[tuple[str, Any]]:
    """(where, fields) of every row of a source."""
    path = Path(source).expanduser()
    if source == BUILTIN:
        for file in builtin_levels():
            yield from _json_lines(file)
    elif path.is_file() and path.suffix in (".jsonl", ".json", ".ndjson"):
        yield from _json_lines(path)
    elif path.is_dir() or ("/" in source and not path.is_absolute() and not path.suffix):
        yield from _dataset_rows(source)
    elif path.is_file():
        raise AlignvecError(f"{source}: records are JSON Lines (.jsonl) or a folder of a dataset")
    else:
        raise AlignvecError(f"no data at '{source}': no such file or folder")


def builtin_files() -> list[Path]:
    """The JSON Lines files of the built-in set, on disk."""
    folder = Path(str(resources.files("alignvec.data"))) / "builtin"
    return sorted(folder.glob("*.jsonl"))


def builtin_levels() -> list[Path]:
    """Those with levels: safety pairs are to be read as a file of their own."""
    return [file for file in builtin_files() if file.name != "safety.jsonl"]


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    value = json.loads(line)
                    if "\\u" in line:  # half of a surrogate pair is no text
                        json.dumps(value, ensure_ascii=False).encode()
                    yield f"{path.name}, line {number}", value
    except UnicodeEncodeError:
        raise AlignvecError(f"{path.name}, line {number}: half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise AlignvecError(f"{path.name}, line {number}: not JSON: {error.msg}") from None
    except RecursionError:
        raise AlignvecError(f"{path.name}, line {number}: nested too deep") from None
    except UnicodeDecodeError:
        raise AlignvecError(f"{path.name}, line {number + 1}: not UTF-8 text") from None
    except OSError as error:
        raise AlignvecError(f"{path} cannot be read: {error.strerror}") from error


def _dataset_rows(source: str) -> Iterator[tuple[str, Any]]:
    # An extra; files of JSON Lines are read without it.
    from datasets import load_dataset, load_from_disk

    try:
        if (Path(source) / "dataset_info.json").exists():
            dataset: Any = load_from_disk(source)
        else:
            name, _, config = source.partition(":")
            dataset = load_dataset(name, config or None, split="train", streaming=True)
        for number, row in enumerate(dataset, start=1):
            yield f"{source}, row {number}", row
    except AlignvecError:
        raise
    except Exception as error:  # whatever the file format's reader raises
        text = " ".join(str(error).split())[:200]
        raise AlignvecError(f"{source} cannot be read as a dataset: {text}") from error
