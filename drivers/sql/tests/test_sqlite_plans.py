"""How many statements an operation takes, and by which index each finds its rows."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio

from agentstore import Message
from agentstore.types import Scope
from agentstore.url import URL
from agentstore_sql import SQLiteDriver
from agentstore_sql._sqlite_connection import raw

pytestmark = pytest.mark.asyncio

SESSIONS = 10_000
MESSAGES = 20_000

BOUNDS = ("BEGIN", "SAVEPOINT", "RELEASE", "COMMIT", "PRAGMA")

# The keys by which rows are found. `rowid` is that of a row that was found before.
BY_ID = "sessions (tenant=? AND session_id=?)"
BY_ROWID = "sessions (rowid=?)"
MESSAGE = "messages (session_pk=? AND id=?)"
SLICE = "messages (session_pk=? AND seq>? AND seq<?)"
VALUE = "state (tenant=? AND scope=? AND owner=? AND key=?)"

Operation = Callable[[SQLiteDriver], Awaitable[object]]


def say(content: str) -> Message:
    return Message(role="user", content=content, id=content)


def turn(session_id: str) -> Operation:
    return lambda driver: driver.conversations("").append(session_id, [say("q"), say("a")])


def read(**how: int | str) -> Operation:
    return lambda driver: driver.conversations("").read("big", **how)  # type: ignore[arg-type]


def sessions(**how: str) -> Operation:
    """List one session, and then the next one."""

    async def pages(driver: SQLiteDriver) -> None:
        listing = driver.conversations("")
        first = await listing.sessions(limit=1, **how)
        assert first.cursor is not None
        await listing.sessions(limit=1, cursor=first.cursor, **how)

    return pages


async def put_twice(driver: SQLiteDriver) -> None:
    state = driver.state("", Scope("app"))
    stored = await state.put("key", 1)
    await state.put("key", 2, expect=stored.version)


async def fork_and_delete(driver: SQLiteDriver) -> None:
    await driver.conversations("").fork("s1", "fork")
    await driver.conversations("").delete("fork")
    await turn("fork")(driver)


# By operation: the most statements between BEGIN and COMMIT, and every key that they use.
OPERATIONS: dict[str, tuple[Operation, int, set[str]]] = {
    "append a turn": (turn("big"), 6, {BY_ID, MESSAGE, BY_ROWID}),
    "begin a session": (turn("new"), 8, {BY_ID, MESSAGE, BY_ROWID}),
    "the last ones": (read(last=20), 1, {SLICE, BY_ID}),
    "the last ones of a user": (read(last=20, user_id="u1"), 1, {SLICE, BY_ID}),
    "a page": (read(first=20, after=100), 1, {SLICE, BY_ID}),
    "a page backwards": (read(last=20, before=100), 1, {SLICE, BY_ID}),
    "a budget of tokens": (read(max_tokens=10), 1, {SLICE, BY_ID}),
    "get": (lambda driver: driver.conversations("").get("big"), 1, {BY_ID}),
    "update": (
        lambda driver: driver.conversations("").update("big", title="title"),
        2,
        {BY_ID, BY_ROWID},
    ),
    "replace": (
        lambda driver: driver.conversations("").replace("big", "m1", content="redacted"),
        3,
        {BY_ID, MESSAGE, "messages (session_pk=? AND seq=?)"},
    ),
    "rewind": (
        lambda driver: driver.conversations("").rewind("big", to=MESSAGES - 10),
        4,
        {BY_ID, BY_ROWID, "messages (session_pk=? AND seq>?)", "messages (session_pk=?)"},
    ),
    "fork, delete and begin anew": (
        fork_and_delete,
        21,
        {
            BY_ID,
            BY_ROWID,
            MESSAGE,
            "messages (session_pk=? AND seq<?)",
            "messages (session_pk=? AND seq>?)",
            "messages (session_pk=?)",
        },
    ),
    "the newest sessions": (
        sessions(),
        2,
        {"sessions_newest (tenant=? AND updated_at<?)"},
    ),
    "the newest sessions of a user": (
        sessions(user_id="u1"),
        2,
        {"sessions_user (tenant=? AND user_id=? AND updated_at<?)"},
    ),
    "sessions by id": (
        sessions(prefix="s1"),
        2,
        {"sessions (tenant=? AND session_id>? AND session_id<?)"},
    ),
    "purge": (
        lambda driver: driver.conversations("").purge_expired(),
        3,
        {
            "sessions_expiry (tenant=? AND expires_at=?)",
            "sessions_expiry (tenant=? AND expires_at>? AND expires_at<?)",
            "state_expiry (tenant=? AND expires_at<?)",
        },
    ),
    "get a value": (lambda driver: driver.state("", Scope("app")).get("key"), 1, {VALUE}),
    "put a value twice": (put_twice, 9, {VALUE, "counters (name=?)"}),
    "list values": (
        lambda driver: driver.state("", Scope("user", "u1")).items(prefix="k"),
        1,
        {"state (tenant=? AND scope=? AND owner=? AND key>? AND key<?)"},
    ),
}


def fill(path: Path) -> None:
    """Make many sessions beside "big", and many messages in it, past the store."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        session = dict(connection.execute("SELECT * FROM agentstore_sessions").fetchone())
        message = dict(connection.execute("SELECT * FROM agentstore_messages").fetchone())
        pk, updated_at = session.pop("pk"), session["updated_at"]
        for number in range(1, SESSIONS):
            insert(
                connection,
                "agentstore_sessions",
                session
                | {
                    "session_id": f"s{number}",
                    "user_id": f"u{number % 100}",
                    "updated_at": updated_at - number,
                },
            )
        for number in range(2, MESSAGES + 1):
            row = message | {"seq": number, "id": f"m{number}"}
            insert(connection, "agentstore_messages", row)
        connection.execute(
            "UPDATE agentstore_sessions SET next_seq = :last + 1, last_seq = :last,"
            " message_count = :last WHERE pk = :pk",
            {"last": MESSAGES, "pk": pk},
        )
        connection.commit()


def insert(connection: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    names = ", ".join(row)
    places = ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", row)  # noqa: S608


@pytest_asyncio.fixture(params=["few rows", "many rows"])
async def driver(
    request: pytest.FixtureRequest, url: str, path: Path
) -> AsyncIterator[SQLiteDriver]:
    """A driver over a store with few rows or with many, that nobody has analyzed."""
    driver = SQLiteDriver(URL.parse(url))
    await driver.open()
    conversations = driver.conversations("")
    for session_id in ("big", "s1", "s10") if request.param == "few rows" else ("big",):
        await conversations.append(session_id, [say("m1")], user_id="u1")
    if request.param == "many rows":
        fill(path)
    await driver.close()
    # Anew, so that every connection plans with what is there now.
    await driver.open()
    yield driver
    await driver.close()


async def traced(driver: SQLiteDriver) -> list[str]:
    """Write down from now on what every connection of the driver runs."""
    statements: list[str] = []
    for connection in driver._connections:
        await connection.run(lambda c: raw(c).set_trace_callback(statements.append))
    return statements


def keys(path: Path, statement: str) -> set[str]:
    """Say by which keys a statement finds its rows; a scan or a sort has none, and fails."""
    found = set()
    with closing(sqlite3.connect(path)) as witness:
        plan = [row[3] for row in witness.execute(f"EXPLAIN QUERY PLAN {statement}")]
    for step in plan:
        if step.startswith("SCALAR SUBQUERY"):
            continue
        search = re.fullmatch(
            r"SEARCH agentstore_(\w+) USING (?:COVERING )?"
            r"(?:INDEX (?:agentstore|sqlite_autoindex_agentstore)_(\w+)|INTEGER PRIMARY KEY) "
            r"(\(.+\))",
            step,
        )
        assert search is not None, f"{step}: {statement}"
        table, index, columns = search.groups()
        # SQLite numbers the indexes of keys and constraints; their columns say which it is.
        named = index is not None and not index[-1].isdigit()
        found.add(f"{index if named else table} {columns}")
    return found


async def check(driver: SQLiteDriver, path: Path, *names: str) -> None:
    """Check what these operations run, and that they find all rows by the keys intended."""
    statements = await traced(driver)
    for name in names:
        operation, most, intended = OPERATIONS[name]
        statements.clear()
        await operation(driver)
        ran = [statement for statement in statements if not statement.startswith(BOUNDS)]
        assert len(ran) <= most, name
        used = set().union(*(keys(path, statement) for statement in ran))
        assert used == intended, name


async def test_every_statement_is_served_by_an_index(driver: SQLiteDriver, path: Path) -> None:
    """No operation scans a table or sorts, and none takes more statements than it has to."""
    await check(driver, path, *OPERATIONS)


async def test_statistics_change_no_plan(driver: SQLiteDriver, path: Path) -> None:
    """Nor does any once somebody has let SQLite analyze the file, but for a purge."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ANALYZE")
    await driver.close()
    await driver.open()
    await check(driver, path, *(name for name in OPERATIONS if name != "purge"))


async def test_a_turn_is_one_transaction(driver: SQLiteDriver) -> None:
    """Question and answer, appended together, are committed together and once."""
    statements = await traced(driver)
    await turn("big")(driver)
    bounds = [statement for statement in statements if statement.startswith(BOUNDS)]
    assert bounds == ["BEGIN IMMEDIATE", "SAVEPOINT job", "RELEASE job", "COMMIT"]


async def test_an_append_leaves_the_listings_alone(driver: SQLiteDriver) -> None:
    """What is in an index is written when it changes: once a minute, or with the expiry."""
    statements = await traced(driver)
    conversations = driver.conversations("")
    await conversations.append("big", [say("one")])
    assert [s for s in statements if s.startswith("UPDATE") and "updated_at" in s] == []
    statements.clear()
    await conversations.append("big", [say("two")], ttl=60)
    assert len([s for s in statements if s.startswith("UPDATE") and "expires_at" in s]) == 1


async def test_a_read_writes_nothing(driver: SQLiteDriver) -> None:
    """A window is one statement in a transaction that only reads."""
    statements = await traced(driver)
    await read(last=20)(driver)
    assert [statement.split()[0] for statement in statements] == ["BEGIN", "SELECT", "COMMIT"]
    assert statements[0] == "BEGIN"
