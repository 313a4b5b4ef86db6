"""API keys: who may talk to the server.

A key is 256 random bits and kept as its hash alone. What is added or revoked while a server runs
counts there within a second.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel, select

from alignvec.errors import AlignvecError, check_known
from alignvec.serve.state import NAME_RULE, is_name, open_state

ENVIRONMENT = "ALIGNVEC_API_KEY"
_OF_ENVIRONMENT = "environment"  # the name of the key that stands there
_FRESH = 1.0  # seconds for which the keys that were read count


@dataclass(frozen=True)
class Key:
    """What is known of a key: its name, and when it was added (ISO 8601)."""

    name: str
    added: str


class _Table(SQLModel, registry=registry()):
    """Of this file, not of any other that SQLModel knows."""


class _Row(_Table, table=True):
    __tablename__ = "key"

    name: str = Field(primary_key=True)
    sha256: str  # of 256 random bits: nobody guesses them, so no salt and no slow hash
    added: str


class Keys:
    """The keys of a state file, and the one of the environment."""

    def __init__(self, file: Path, make: bool = True) -> None:
        """Args: make: the file, if it is not there.

        Raises:
            AlignvecError: the file is not alignvec's, or cannot be used.
        """
        self._database = open_state(file, _Table.metadata, make)
        own = os.environ.get(ENVIRONMENT, "").strip()  # as what a request gives is stripped
        self._own = {_OF_ENVIRONMENT: _hash(own)} if own else {}
        self._read: dict[str, str] = {}
        self._until = 0.0  # on the monotonic clock

    def add(self, name: str) -> str:
        """A new key. It cannot be had again.

        Raises:
            AlignvecError: the name is taken, or is none.
        """
        if not is_name(name):
            raise AlignvecError(NAME_RULE)
        if name == _OF_ENVIRONMENT:
            raise AlignvecError(f"'{name}' is what the key in {ENVIRONMENT} is called")
        key = f"av-{secrets.token_urlsafe(32)}"
        added = datetime.now(UTC).isoformat(timespec="seconds")
        with self._database.writing() as session:
            if session.get(_Row, name):
                raise AlignvecError(f"there is a key '{name}' already; revoke it first")
            session.add(_Row(name=name, sha256=_hash(key), added=added))
        self._until = 0.0
        return key

    def revoke(self, name: str) -> None:
        """Raises: AlignvecError: there is none of that name."""
        with self._database.writing() as session:
            rows = {row.name: row for row in session.exec(select(_Row))}
            check_known("key", name, rows)
            session.delete(rows[name])
        self._until = 0.0

    def stored(self) -> list[Key]:
        """The keys of the file, by name."""
        with self._database.session() as session:
            rows = session.exec(select(_Row).order_by("name"))
            return [Key(row.name, row.added) for row in rows]

    def names(self) -> list[str]:
        """Of all keys that count, that of the environment included."""
        return [*self._own, *self._stored_hashes()]

    def owner(self, key: str) -> str | None:
        """The name of a key that counts. How long that takes tells nothing about the keys."""
        given = _hash(key)
        owner = None
        for name, known in {**self._own, **self._stored_hashes()}.items():
            if hmac.compare_digest(given, known):
                owner = name
        return owner

    def _stored_hashes(self) -> dict[str, str]:
        now = time.monotonic()
        if now >= self._until:
            with self._database.session() as session:
                self._read = {row.name: row.sha256 for row in session.exec(select(_Row))}
            self._until = now + _FRESH
        return self._read


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
