"""Profiles: named settings that outlive the server.

A version of a profile is known by its ETag, and who changes one says which version that is: of two
who edit the same profile the second is told, and overwrites nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Column
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel, func, select

from alignvec.files import hash_of
from alignvec.serve.errors import Refused
from alignvec.serve.state import NAME_RULE, is_name, open_state

_MOST = 1000  # whoever may write profiles may not fill the disk


@dataclass(frozen=True)
class Profile:
    """A named setting.

    Attributes:
        setting: as it was asked: levels stay words, and mean what the vectors say when it is used.
        etag: of this version, as the header has it, in its quotes.
        updated: when it was put (ISO 8601).
        version: how often it was put since it is there.
    """

    name: str
    setting: dict[str, float | str]
    etag: str
    updated: str
    version: int


class _Table(SQLModel, registry=registry()):
    """Of this file, not of any other that SQLModel knows."""


class _Row(_Table, table=True):
    __tablename__ = "profile"

    name: str = Field(primary_key=True)
    setting: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    updated: str
    version: int

    def profile(self) -> Profile:
        # With the time: one that was deleted and made anew is not the one that was there before.
        tag = hash_of(self.name, self.setting, self.updated, self.version)
        return Profile(self.name, dict(self.setting), f'"{tag}"', self.updated, self.version)


class Profiles:
    """The profiles of a state file. Several processes may use it at the same time."""

    def __init__(self, file: Path) -> None:
        """Raises: AlignvecError: the file is not alignvec's, or cannot be used."""
        self._database = open_state(file, _Table.metadata)

    def get(self, name: str) -> Profile | None:
        """The profile of that name."""
        with self._database.session() as session:
            row = session.get(_Row, name) if is_name(name) else None
            return row.profile() if row else None

    def all(self) -> list[Profile]:
        """Every profile, by name."""
        with self._database.session() as session:
            return [row.profile() for row in session.exec(select(_Row).order_by("name"))]

    def put(
        self,
        name: str,
        setting: Mapping[str, float | str],
        if_match: str | None = None,
        if_none_match: str | None = None,
    ) -> Profile:
        """Keep a setting under a name; it is on the disk when this returns.

        Args:
            if_match: the ETag of the version that is replaced, several with commas, or `*` for any.
            if_none_match: `*`: only if there is none of that name.

        Raises:
            Refused: 412: there is another version, or none; 428: there is one, and nothing was said
                of it; 400: the name is none, or there are too many.
        """
        if not is_name(name):
            raise Refused(NAME_RULE, code="invalid_name", param="name")
        with self._database.writing() as session:
            row = session.get(_Row, name)
            _check_version(name, row, if_match, if_none_match)
            if row is None:
                if session.exec(select(func.count()).select_from(_Row)).one() >= _MOST:
                    raise Refused(
                        f"there are {_MOST} profiles, which is all there may be; delete some",
                        code="too_many_profiles",
                    )
                row = _Row(name=name, setting={}, updated="", version=0)
            row.setting = dict(setting)
            row.updated = datetime.now(UTC).isoformat()
            row.version += 1
            session.add(row)
            return row.profile()

    def delete(self, name: str, if_match: str | None = None) -> None:
        """Forget a profile.

        Raises:
            Refused: 404: there is none of that name; 412, 428: see `put`.
        """
        with self._database.writing() as session:
            row = session.get(_Row, name) if is_name(name) else None
            if row is None:
                raise no_profile(name)
            _check_version(name, row, if_match, None)
            session.delete(row)


class NoProfiles(Profiles):
    """Of a server that was given no file to keep them in."""

    def __init__(self) -> None:
        """Nothing is opened."""

    def get(self, name: str) -> None:
        """There is none."""

    def all(self) -> list[Profile]:
        """There are none."""
        return []

    def put(self, name: str, *_: object, **__: object) -> Profile:
        """Raises: Refused: always."""
        raise Refused("this server keeps no profiles: it was started without a file for them",
                      code="no_profiles", param="name")  # fmt: skip

    def delete(self, name: str, if_match: str | None = None) -> None:
        """Raises: Refused: there is none of that name."""
        raise no_profile(name)


def no_profile(name: str) -> Refused:
    """There is none of that name."""
    return Refused(f"there is no profile '{name}'", 404, "profile_not_found", "name")


def _check_version(
    name: str, row: _Row | None, if_match: str | None, if_none_match: str | None
) -> None:
    """RFC 9110, section 13; of a version that is there something has to be said."""
    tag = row.profile().etag if row else None
    if if_match is not None and not _names(if_match, tag):
        what = "has changed meanwhile; read it again" if row else "is not there (any more)"
        raise Refused(f"profile '{name}' {what}", 412, "profile_changed", "If-Match")
    if if_none_match is not None and _names(if_none_match, tag):
        raise Refused(
            f"there is a profile '{name}' already", 412, "profile_exists", "If-None-Match"
        )
    if tag is not None and if_match is None:  # an If-None-Match of another tag says nothing of it
        raise Refused(
            f"there is a profile '{name}' already; say in If-Match which version you mean, by its "
            "ETag, or * for any",
            428,
            "if_match_required",
            "If-Match",
        )


def _names(header: str, tag: str | None) -> bool:
    """Whether a list of ETags, or `*`, has the tag of what is there, if anything is."""
    tags = {one.strip() for one in header.split(",")}
    return tag is not None and ("*" in tags or tag in tags)
