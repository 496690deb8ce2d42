"""When another connection holds the lock that a write needs."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from agentstore import Database, Message, connect
from agentstore.errors import DeadlineError, OverloadedError

pytestmark = pytest.mark.asyncio


def say(content: str) -> Message:
    return Message(role="user", content=content)


async def texts(database: Database, session_id: str = "s") -> list[str]:
    return [message.text for message in await database.conversations.read(session_id)]


async def test_a_locked_database_is_overloaded_in_time(url: str, path: Path) -> None:
    """20 appends behind a lock that stays fail together after `timeout`, and leave nothing."""
    async with connect(url, timeout=0.3) as database:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            calls = [database.conversations.append(f"s{n}", [say("x")]) for n in range(20)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            took = time.monotonic() - began
        for result in results:
            assert isinstance(result, OverloadedError)
            assert result.code == "SQLITE_BUSY"
            assert (result.retryable, result.outcome_unknown) == (True, False)
        assert 0.3 <= took < 2
        assert len(await database.conversations.sessions()) == 0
        await database.conversations.append("s0", [say("the lock is gone")])
        assert await texts(database, "s0") == ["the lock is gone"]


async def test_a_lock_released_in_time_delays_only(url: str, path: Path) -> None:
    """An append waits for the lock of another connection, and goes through when it is free."""
    async with connect(url, timeout=5) as database:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            appending = asyncio.create_task(database.conversations.append("s", [say("x")]))
            await asyncio.sleep(0.2)
            assert not appending.done()
            other.execute("ROLLBACK")
            result = await appending
        assert result.created == (True,)
        assert await texts(database) == ["x"]


async def test_reads_go_on_beside_a_writer(database: Database, witness: sqlite3.Connection) -> None:
    """While another connection writes, reads don't wait, and see what is committed."""
    await database.conversations.append("s", [say("x")])
    witness.execute("BEGIN IMMEDIATE")
    witness.execute("DELETE FROM agentstore_messages")
    began = time.monotonic()
    assert await texts(database) == ["x"]
    assert [session.session_id for session in await database.conversations.sessions()] == ["s"]
    assert (await database.health()).ok is True
    assert time.monotonic() - began < 1
    witness.execute("ROLLBACK")


async def test_writes_go_on_beside_a_reader(
    database: Database, witness: sqlite3.Connection
) -> None:
    """A transaction that reads for long, a backup say, holds no append up."""
    await database.conversations.append("s", [say("before")])
    count = "SELECT count(*) FROM agentstore_messages"
    witness.execute("BEGIN")
    assert witness.execute(count).fetchone() == (1,)
    await database.conversations.append("s", [say("after")])
    assert witness.execute(count).fetchone() == (1,)
    witness.execute("COMMIT")
    assert witness.execute(count).fetchone() == (2,)


async def test_the_deadline_holds(url: str, path: Path) -> None:
    """Behind a lock, a call ends with its deadline; sent again, it is stored once."""
    message = say("x")
    async with connect(url, timeout=10, operation_timeout=0.5) as database:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            with pytest.raises(DeadlineError, match=r"no answer within 0\.5 s") as caught:
                await database.conversations.append("s", [message])
            assert 0.5 <= time.monotonic() - began < 1.5
            assert caught.value.outcome_unknown is True
        async with connect(url) as patient:
            result = await patient.conversations.append("s", [message])
            assert result.seqs == (1,)
            assert await texts(patient) == ["x"]


async def test_opening_waits_for_nobody(url: str, path: Path) -> None:
    """A file whose schema is current is opened while another connection writes."""
    async with connect(url) as database:
        await database.conversations.append("s", [say("x")])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with connect(url, timeout=0.2) as database:
            assert await texts(database) == ["x"]


async def test_a_locked_file_that_needs_its_schema_is_overloaded(url: str, path: Path) -> None:
    """A new file that somebody else keeps locked is not waited for without end."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE theirs (id INTEGER)")
        with pytest.raises(OverloadedError) as caught:
            async with connect(url, timeout=0.3):
                pass
        assert caught.value.code == "SQLITE_BUSY"
        other.execute("COMMIT")
    async with connect(url) as database:
        assert await texts(database) == []
