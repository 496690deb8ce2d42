"""What SQLite's failures become, and that nobody's words are in them."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import traceback
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest
from sqlalchemy.exc import DBAPIError

from agentstore import Database, Message, StoreError, connect
from agentstore.errors import (
    AgentStoreError,
    CapacityError,
    ConfigurationError,
    ConflictError,
    DataError,
    DriverError,
    OutcomeUnknownError,
    OverloadedError,
    UnavailableError,
)
from agentstore_sql import SQLiteDriver
from agentstore_sql._sqlite_errors import translate

PAGE = Path(__file__).parents[3] / "docs" / "sqlite.md"


# Failures of SQLite itself, each in an empty directory.


def busy(path: Path) -> None:
    with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(path, timeout=0)) as two:
        one.execute("BEGIN IMMEDIATE")
        two.execute("BEGIN IMMEDIATE")


def busy_snapshot(path: Path) -> None:
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as one,
        closing(sqlite3.connect(path, isolation_level=None)) as two,
    ):
        one.execute("PRAGMA journal_mode = WAL")
        one.execute("CREATE TABLE t (a)")
        two.execute("BEGIN")
        two.execute("SELECT * FROM t")
        one.execute("INSERT INTO t VALUES (1)")
        two.execute("INSERT INTO t VALUES (2)")


def locked(path: Path) -> None:
    shared = f"file:{path.name}?mode=memory&cache=shared"
    with (
        closing(sqlite3.connect(shared, uri=True, isolation_level=None)) as one,
        closing(sqlite3.connect(shared, uri=True, isolation_level=None)) as two,
    ):
        one.execute("CREATE TABLE t (a)")
        one.execute("BEGIN")
        one.execute("INSERT INTO t VALUES (1)")
        two.execute("SELECT * FROM t")


def full(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA max_page_count = 2")
        connection.execute("CREATE TABLE t (a)")
        connection.execute("INSERT INTO t VALUES (zeroblob(10000))")


def too_big(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100)
        connection.execute("SELECT ?", ["x" * 101])


def read_only(path: Path) -> None:
    path.touch()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.execute("CREATE TABLE t (a)")


def moved(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (a)")
        path.unlink()
        connection.execute("INSERT INTO t VALUES (1)")


def cannot_open(path: Path) -> None:
    sqlite3.connect(path / "missing" / "agents.db")


def not_a_database(path: Path) -> None:
    path.write_text("Dear diary, this is no database.\n" * 50)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT * FROM t")


def corrupt(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.execute("INSERT INTO t VALUES (1)")
        connection.commit()
    pages = bytearray(path.read_bytes())
    pages[4096:] = b"\xff" * (len(pages) - 4096)
    path.write_bytes(pages)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT * FROM t").fetchall()


def insert_twice(path: Path, column: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE t (a {column})")
        connection.executemany("INSERT INTO t VALUES (?)", [["x"], ["x"]])


def unique(path: Path) -> None:
    insert_twice(path, "TEXT UNIQUE")


def primary_key(path: Path) -> None:
    insert_twice(path, "TEXT PRIMARY KEY")


def not_null(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a NOT NULL)")
        connection.execute("INSERT INTO t VALUES (NULL)")


def no_such_table(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT * FROM t")


def bad_argument(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT ?", [object()])


def constructed(name: str) -> Callable[[Path], None]:
    """A failure that a sound machine doesn't produce when it is asked to."""

    def fail(_: Path) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = name
        error.sqlite_errorcode = getattr(sqlite3, name)
        raise error

    return fail


class Row(NamedTuple):
    """A failure by SQLite's name for it, how it comes about, and what it has to become."""

    name: str
    provoke: Callable[[Path], None]
    expected: type[AgentStoreError]
    retryable: bool = False
    outcome_unknown: bool = False


TABLE = [
    Row("SQLITE_BUSY", busy, OverloadedError, retryable=True),
    Row("SQLITE_BUSY_SNAPSHOT", busy_snapshot, OverloadedError, retryable=True),
    Row("SQLITE_LOCKED_SHAREDCACHE", locked, OverloadedError, retryable=True),
    # Comes of a race of processes that open the log, too short to be hit.
    Row("SQLITE_PROTOCOL", constructed("SQLITE_PROTOCOL"), OverloadedError, retryable=True),
    Row("SQLITE_FULL", full, CapacityError),
    # Met for real in test_sqlite_full, which needs a process of its own for it.
    Row("SQLITE_IOERR_WRITE", constructed("SQLITE_IOERR_WRITE"), CapacityError),
    # Needs a disk that is full in the very moment in which the index of the log grows.
    Row("SQLITE_IOERR_SHMSIZE", constructed("SQLITE_IOERR_SHMSIZE"), CapacityError),
    # These need a disk that fails.
    Row("SQLITE_IOERR_READ", constructed("SQLITE_IOERR_READ"), UnavailableError, retryable=True),
    Row(
        "SQLITE_IOERR_SHORT_READ",
        constructed("SQLITE_IOERR_SHORT_READ"),
        UnavailableError,
        retryable=True,
    ),
    Row(
        "SQLITE_IOERR_FSYNC",
        constructed("SQLITE_IOERR_FSYNC"),
        OutcomeUnknownError,
        retryable=True,
        outcome_unknown=True,
    ),
    Row("SQLITE_TOOBIG", too_big, DataError),
    Row("SQLITE_READONLY", read_only, ConfigurationError),
    # Met for real in test_sqlite_files, by a user without permissions.
    Row("SQLITE_READONLY_DIRECTORY", constructed("SQLITE_READONLY_DIRECTORY"), ConfigurationError),
    Row("SQLITE_READONLY_DBMOVED", moved, UnavailableError, retryable=True),
    Row("SQLITE_CANTOPEN", cannot_open, ConfigurationError),
    Row("SQLITE_NOTADB", not_a_database, ConfigurationError),
    Row("SQLITE_CORRUPT", corrupt, DriverError),
    Row("SQLITE_CONSTRAINT_UNIQUE", unique, ConflictError),
    Row("SQLITE_CONSTRAINT_PRIMARYKEY", primary_key, ConflictError),
    Row("SQLITE_CONSTRAINT_NOTNULL", not_null, DriverError),
    Row("SQLITE_ERROR", no_such_table, DriverError),
    Row("ProgrammingError", bad_argument, DriverError),
]


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_each_failure_has_its_class(path: Path, row: Row) -> None:
    """By SQLite's code alone: the class, whether to try again, and whether it may have happened."""
    with pytest.raises(sqlite3.Error) as caught:
        row.provoke(path)
    failure = caught.value
    assert getattr(failure, "sqlite_errorname", type(failure).__name__) == row.name
    wrapped = DBAPIError("SELECT 1", None, failure)
    for error in (translate(failure), translate(wrapped)):
        assert type(error) is row.expected
        assert f"[{row.name}]" in str(error)
        if isinstance(error, StoreError):
            assert (error.code, error.backend) == (row.name, "sqlite")
            assert error.retryable is row.retryable
            assert error.outcome_unknown is row.outcome_unknown


def test_a_code_that_nobody_knows_is_a_bug() -> None:
    """What a later SQLite adds is not guessed at."""
    failure = sqlite3.OperationalError("new")
    failure.sqlite_errorcode, failure.sqlite_errorname = 200, "SQLITE_NEW"
    assert type(translate(failure)) is DriverError


def test_the_page_says_the_same() -> None:
    """The table in the documentation is this one."""
    row = re.compile(r"^\| `(\w+)` \| .* \| `(\w+)` \| (yes|no) \| (yes|no) \|$", re.MULTILINE)
    told = [
        (name, kind, again == "yes", unknown == "yes")
        for name, kind, again, unknown in row.findall(PAGE.read_text(encoding="utf-8"))
    ]
    assert told == [
        (row.name, row.expected.__name__, row.retryable, row.outcome_unknown) for row in TABLE
    ]


# Failures in the middle of real calls, by what another connection does to the file.


def lock_it(witness: sqlite3.Connection, _: Path) -> None:
    witness.execute("BEGIN IMMEDIATE")


def drop_it(witness: sqlite3.Connection, _: Path) -> None:
    for table in ("messages", "state", "counters"):
        witness.execute(f"DROP TABLE agentstore_{table}")


def refuse_it(witness: sqlite3.Connection, _: Path) -> None:
    for table in ("messages", "state"):
        for event in ("INSERT", "UPDATE", "DELETE"):
            witness.execute(
                f"CREATE TRIGGER refuse_{event}_{table} BEFORE {event} ON agentstore_{table}"
                " BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )


def damage_it(witness: sqlite3.Connection, path: Path) -> None:
    witness.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


def remove_it(_: sqlite3.Connection, path: Path) -> None:
    path.unlink()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lock_it, OverloadedError),
        (drop_it, DriverError),
        (refuse_it, DriverError),
        (damage_it, DriverError),
        (remove_it, UnavailableError),
    ],
)
async def test_failures_show_nobodys_words(
    path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    break_it: Callable[[sqlite3.Connection, Path], None],
    expected: type[StoreError],
) -> None:
    """Neither an error nor a log holds a body, an id or a value, at the most talkative level."""
    caplog.set_level(logging.DEBUG)
    for logger in ("agentstore", "aiosqlite", "alembic", "asyncio", "sqlalchemy"):
        caplog.set_level(logging.DEBUG, logger)
    words = uuid4().hex
    message = Message(
        role="user", content=f"body {words}", id=f"id {words}", metadata={"note": words}
    )
    session, user, key = f"session {words}", f"user {words}", f"key {words}"
    async with connect(f"sqlite:///{path}", timeout=0.1) as database:
        conversations, state = database.conversations, database.state.user(user)
        await conversations.append(session, [message], user_id=user)
        await state.put(key, words)
        with closing(sqlite3.connect(path, isolation_level=None)) as witness:
            break_it(witness, path)
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: conversations.append(session, [Message(role="user", content=words)]),
                lambda: conversations.replace(session, message.id, content=f"new {words}"),
                lambda: conversations.update(session, title=words),
                lambda: conversations.delete(session),
                lambda: state.put(key, {"new": words}),
                lambda: state.delete(key),
                lambda: conversations.read(session),
                lambda: state.get(key),
            ]
            errors = [error for call in calls if (error := await _error(call)) is not None]
            if witness.in_transaction:
                witness.execute("ROLLBACK")
    assert len(errors) >= 4
    for error in errors:
        assert type(error) is expected
        assert (error.__cause__, error.__context__) == (None, None)
        assert words not in "".join(traceback.format_exception(error)) + repr(error)
        assert words not in repr(vars(error))
    assert len(caplog.records) > 20
    assert words not in caplog.text
    assert words not in "".join(capfd.readouterr())


async def _error(call: Callable[[], Awaitable[object]]) -> StoreError | None:
    try:
        await call()
    except StoreError as error:
        return error
    return None


@pytest.mark.asyncio
async def test_a_failed_call_leaves_the_connection_usable(
    database: Database, witness: sqlite3.Connection
) -> None:
    """Each of many failures in a row ends its transaction; the next call finds none open."""
    await database.conversations.append("s", [Message(role="user", content="before")])
    refuse_it(witness, Path())
    for _ in range(8):
        with pytest.raises(DriverError) as caught:
            await database.conversations.append("s", [Message(role="user", content="x")])
        assert caught.value.code == "SQLITE_CONSTRAINT_TRIGGER"
    for (name,) in witness.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
        witness.execute(f"DROP TRIGGER {name}")
    result = await database.conversations.append("s", [Message(role="user", content="after")])
    assert result.seqs == (2,)
    assert [m.text for m in await database.conversations.read("s")] == ["before", "after"]


@pytest.mark.asyncio
async def test_a_read_fails_as_a_read(driver: SQLiteDriver) -> None:
    """A statement that SQLite refuses while reading is reported as such, and readers go on."""
    for _ in range(8):
        with pytest.raises(DriverError) as caught:
            await driver.read(lambda connection: connection.exec_driver_sql("SELECT * FROM gone"))
        assert caught.value.code == "SQLITE_ERROR"
    await asyncio.gather(*(driver.ping() for _ in range(8)))
