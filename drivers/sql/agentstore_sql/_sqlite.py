"""SQLite: `sqlite:///file.db`, `sqlite:////absolute/file.db`, `sqlite://` in memory."""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection, make_url
from sqlalchemy.dialects.sqlite import dialect

from agentstore.driver import take_options, translated
from agentstore.errors import ClosedError, ConfigurationError
from agentstore.stores import API_VERSION
from agentstore.types import Capabilities, Durability, Scope
from agentstore.url import URL

from ._group import GroupCommit
from ._schema import is_current, migrate
from ._sqlite_connection import SQLiteConnection, raw
from ._sqlite_erasure import ErasingConversations, ErasingState
from ._sqlite_errors import FAILURES, moved, translate
from ._statements import Statements
from ._tables import Tables

T = TypeVar("T")

_READERS = 4
# How long a writer waits for readers of the log, in milliseconds, when there is nothing to lose.
_MOMENT = 200


class SQLiteDriver:
    """Conversations and state in a SQLite file, for any number of processes.

    Options: `timeout`, the seconds to wait for another process's lock (10), and `synchronous`,
    `full` (the default: what is committed survives a power cut) or `normal` (it may not).
    """

    api_version = API_VERSION

    def __init__(self, url: URL, **options: Any) -> None:
        known = take_options(url, options, known=("timeout", "synchronous"))
        self._path = _path(url)
        self._patience = round(1000 * _seconds(known.get("timeout", 10)))
        self._synchronous = str(known.get("synchronous", "full")).lower()
        if self._synchronous not in ("full", "normal"):
            raise ConfigurationError(f"synchronous is {self._synchronous!r}: full or normal")
        self.statements = Statements(Tables(), dialect())
        self.durability = Durability.COMMITTED if self._path else Durability.BUFFERED
        self._group: GroupCommit | None = None
        self._connections: list[SQLiteConnection] = []

    @property
    def capabilities(self) -> Capabilities:
        """What SQLite can do."""
        durability: Literal["strong", "weak", "none"] = "none"
        if self._path is not None:
            durability = "strong" if self._synchronous == "full" else "weak"
        return Capabilities(
            atomic_batch=True,
            conflict_detection=True,
            compare_and_set=True,
            ttl=True,
            order="commit",
            listing="exact",
            search=False,
            shared=self._path is not None,
            invalidation=False,
            durability=durability,
            embedded=True,
        )

    def conversations(self, tenant: str) -> ErasingConversations:
        """Give the conversations of a tenant."""
        return ErasingConversations(self, tenant, self._empty_log)

    def state(self, tenant: str, scope: Scope) -> ErasingState:
        """Give the state of a scope."""
        return ErasingState(self, tenant, scope, self._empty_log)

    async def open(self) -> None:
        """Open the file, make it where it is missing, and bring its schema up to date."""
        if self._path is not None:
            self._file = _create_private(self._path)
        try:
            writer = await self._connect()
            await self._translated(writer.run(self._migrate))
            # The first reader of a database in memory is its only connection, the writer.
            for _ in range(_READERS if self._path else 0):
                await self._connect()
        except BaseException:
            await self._disconnect()
            raise
        self._readers = itertools.cycle(self._connections[1:] or [writer])
        self._group = GroupCommit(writer, check=self._check_file)

    async def close(self) -> None:
        """Carry out what was handed in, and close the file."""
        if self._group is not None:
            group, self._group = self._group, None
            await group.close()
            await self._connections[0].run(self._truncate)
        await self._disconnect()

    async def ping(self) -> None:
        """Read from the file."""
        await self.read(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())

    async def read(self, job: Callable[[Connection], T]) -> T:
        """Run a job that only reads."""
        if self._group is None:
            raise ClosedError("the store is closed", backend="sqlite")
        reader = next(self._readers)
        return await self._translated(reader.run(partial(_snapshot, self._check_file, job)))

    async def write(self, job: Callable[[Connection], T]) -> T:
        """Run a job in a transaction, with others that wait at the same time."""
        if self._group is None:
            raise ClosedError("the store is closed", backend="sqlite")
        return await self._translated(self._group.run(job))

    async def _connect(self) -> SQLiteConnection:
        database = ":memory:" if self._path is None else str(self._path)
        connection = SQLiteConnection(database, setup=self._setup)
        await self._translated(connection)
        self._connections.append(connection)
        return connection

    async def _disconnect(self) -> None:
        connections, self._connections = self._connections, []
        for connection in connections:
            await self._translated(connection.close())

    async def _empty_log(self) -> None:
        """Write what the log holds into the file, and cut the log to nothing.

        A reader in another process may be in the way for longer than a moment; then it is left to
        the next time.
        """
        if self._group is not None:  # closing does it too
            await self._connections[0].run(self._truncate)

    def _truncate(self, connection: Connection) -> None:
        sqlite = raw(connection)
        sqlite.execute(f"PRAGMA busy_timeout = {_MOMENT}")
        # What was to be written is committed: a failing disk is for the next one to report.
        with suppress(sqlite3.Error):
            sqlite.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sqlite.execute(f"PRAGMA busy_timeout = {self._patience}")

    def _setup(self, connection: sqlite3.Connection) -> None:
        for pragma in (
            f"busy_timeout = {self._patience}",
            "journal_mode = WAL",
            f"synchronous = {self._synchronous}",
            "foreign_keys = ON",
            # What is deleted or redacted is overwritten, not only unlinked.
            "secure_delete = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    def _migrate(self, connection: Connection) -> None:
        if is_current(connection, self.statements.tables):
            return
        # The lock first, then a second look: of several processes one does it.
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        try:
            if not is_current(connection, self.statements.tables):
                migrate(connection, self.statements.tables)
            connection.exec_driver_sql("COMMIT")
        finally:
            _end(connection, "ROLLBACK")

    def _check_file(self) -> None:
        """Raise where the file is not the one at its path any more.

        SQLite would go on with it unnoticed, and what it writes would be gone when it is closed.
        """
        if self._path is not None and _identity(self._path) != self._file:
            raise moved()

    async def _translated(self, work: Awaitable[T]) -> T:
        return await translated(work, failures=FAILURES, translate=translate)


def _snapshot(
    check: Callable[[], None], job: Callable[[Connection], T], connection: Connection
) -> T:
    """Run a job within one read transaction: all its statements see the same moment."""
    raw(connection).execute("BEGIN")
    try:
        check()
        return job(connection)
    finally:
        _end(connection, "COMMIT")


def _end(connection: Connection, how: str) -> None:
    """End the transaction, unless SQLite has: it does so itself where the disk failed."""
    if raw(connection).in_transaction:
        raw(connection).execute(how)


def _path(url: URL) -> Path | None:
    """Read the path as SQLAlchemy does: three slashes and a relative one, four and an absolute."""
    if url.authority:
        # First of all: without its path, such a URL would be a database in memory.
        raise ConfigurationError(
            f"{url} names a host: a path takes three slashes, as in sqlite:///agents.db"
        )
    database = make_url(url.secret).database
    if database is None or database in ("", ":memory:"):
        return None
    if "\0" in database:
        raise ConfigurationError("the path of the database has a NUL character")
    return Path(database).absolute()


def _create_private(path: Path) -> tuple[int, int] | None:
    """Make the file for its owner alone, and identify it; SQLite gives its log the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except FileNotFoundError:
        raise ConfigurationError(
            f"the directory {path.parent} of the database is missing"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"the database file {path} can't be opened for writing: {error.strerror}"
        ) from None
    return _identity(path)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _seconds(value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        raise ConfigurationError(f"timeout is {value!r}: give it in seconds") from None
    if not 0 <= seconds <= 3600:  # noqa: PLR2004 - an hour, plainly
        raise ConfigurationError(f"timeout is {value!r}: 0 to 3600 seconds")
    return seconds
