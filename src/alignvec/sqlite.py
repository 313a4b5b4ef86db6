"""SQLite files of alignvec's: safe for many writers and against kills.

What is committed is on the disk. No connection stays open, so that the file itself is complete
after every session; readers and one writer do not wait for each other.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, MetaData, event, inspect
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import NullPool
from sqlmodel import Session, SQLModel, create_engine

from alignvec.errors import AlignvecError

_LOCK_TIMEOUT = 30.0  # seconds that a writer waits for another


class Database:
    """One file, and the tables in it that its user knows; there may be others beside them."""

    def __init__(
        self,
        path: Path,
        mark: int,
        what: str,
        tables: MetaData,
        make: bool = True,
        rows: Sequence[SQLModel] = (),
    ) -> None:
        """Open a file.

        Args:
            mark: SQLite's application id, by which a file is known to be one of these.
            what: is in such a file, for messages.
            make: the file or the tables, where they are not there.
            rows: what a new file begins with.

        Raises:
            AlignvecError: there is none to open, or it is something else.
        """
        self.path = path
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.is_file():
            raise AlignvecError(f"no {what} at {path}")
        url = URL.create("sqlite", database=str(path))
        self._engine = create_engine(
            url, poolclass=NullPool, connect_args={"timeout": _LOCK_TIMEOUT}
        )
        event.listen(self._engine, "connect", _flush_commits)
        with self.session() as session:
            connection = session.connection()
            if make and _lacks(connection, tables) and _may_be_ours(connection, mark):
                _begin(connection)
                if new := _is_new(connection):  # two may start at the same time
                    connection.exec_driver_sql(f"PRAGMA application_id = {mark}")
                tables.create_all(connection)
                session.add_all(rows if new else ())
                session.commit()
                connection = session.connection()
            if _mark(connection) != mark:
                raise AlignvecError(f"{path} is no file of {what} that alignvec wrote")
            if make:
                # SQLite waits for nobody on this; whoever opens the file next does it then.
                with suppress(OperationalError):
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL")

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session; what is not committed in it is not kept.

        Raises:
            AlignvecError: SQLite cannot do what is asked.
        """
        try:
            with Session(self._engine, expire_on_commit=False) as session:
                yield session
        except (DatabaseError, sqlite3.Error) as error:
            reason = getattr(error, "orig", None) or error
            raise AlignvecError(f"{self.path} cannot be used: {reason}") from error

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that alone may write, from its first reading on; committed at its end."""
        with self.session() as session:
            _begin(session.connection())
            yield session
            session.commit()


def _flush_commits(connection: sqlite3.Connection, _: Any) -> None:
    """Some builds of SQLite let a commit in WAL mode wait for its flush."""
    connection.execute("PRAGMA synchronous = FULL")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _mark(connection: Connection) -> Any:
    return connection.exec_driver_sql("PRAGMA application_id").scalar()


def _is_new(connection: Connection) -> bool:
    """An empty file is one, too: a start that was killed leaves it."""
    return not connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar()


def _may_be_ours(connection: Connection, mark: int) -> bool:
    return _is_new(connection) or _mark(connection) == mark


def _lacks(connection: Connection, tables: MetaData) -> bool:
    return not set(tables.tables) <= set(inspect(connection).get_table_names())
