"""What is left in the files of what was deleted or redacted."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from agentstore import Database, Message, connect

pytestmark = pytest.mark.asyncio

SECRET = b"XYZZY-plugh"

Messages = list[tuple[str, Message]]


def left(path: Path) -> dict[str, int]:
    """Count the secret in the bytes of each file of the database."""
    files = {file.name: file.read_bytes().count(SECRET) for file in path.parent.iterdir()}
    return {name: count for name, count in files.items() if count}


async def fill(database: Database) -> Messages:
    """Store secrets of every length among harmless text, on the same pages and on their own."""
    chance = random.Random(7)
    secrets = []
    for number in range(200):
        secret = number % 2 == 1
        text = (SECRET.decode() if secret else "harmless") * chance.choice([1, 3, 50, 400, 2000])
        session, user = f"s{number % 6}", f"u{number % 2}"
        message = Message(role="user", content=text)
        await database.conversations.append(session, [message], user_id=user)
        if secret:
            secrets.append((session, message))
    state = database.state.user("u1")
    for number in range(20):
        await state.put(f"k{number}", SECRET.decode() * chance.choice([1, 50, 2000]))
    return secrets


async def clear_state(database: Database) -> None:
    for item in await database.state.user("u1").items():
        await database.state.user("u1").delete(item.key)


async def replace(database: Database, secrets: Messages) -> None:
    for session, message in secrets:
        assert await database.conversations.replace(session, message.id, content="redacted")
    await clear_state(database)


async def delete(database: Database, secrets: Messages) -> None:
    for session in {session for session, _ in secrets}:
        assert await database.conversations.delete(session)
    await clear_state(database)


async def rewind(database: Database, secrets: Messages) -> None:
    for session in {session for session, _ in secrets}:
        assert await database.conversations.rewind(session, to=0)
    await clear_state(database)


async def expire(database: Database, secrets: Messages) -> None:
    for session in {session for session, _ in secrets}:
        await database.conversations.update(session, ttl=0.001)
    await clear_state(database)
    await asyncio.sleep(0.01)
    assert await database.conversations.purge_expired()


async def erase_user(database: Database, _: Messages) -> None:
    receipt = await database.erase_user("u1")
    assert (receipt.sessions, receipt.messages, receipt.state) == (3, 100, 20)


Erase = Callable[[Database, Messages], Awaitable[None]]


@pytest.mark.parametrize("erase", [replace, delete, rewind, expire, erase_user])
async def test_nothing_is_left(database: Database, path: Path, erase: Erase) -> None:
    """What was taken away is in no file, neither in the database nor in its log, closed or not."""
    secrets = await fill(database)
    assert set(left(path)) == {"agents.db", "agents.db-wal"}
    await erase(database, secrets)
    assert left(path) == {}
    await database.close()
    assert left(path) == {}
    with closing(sqlite3.connect(path)) as witness:
        assert witness.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_nothing_is_left_beside_other_connections(url: str, path: Path) -> None:
    """Nor with readers at work, in this process and in others."""
    async with connect(url) as database, connect(url) as other:
        with closing(sqlite3.connect(path)) as witness:
            secrets = await fill(database)
            assert witness.execute("SELECT count(*) FROM agentstore_messages").fetchone() == (200,)
            done = asyncio.Event()

            async def read() -> None:
                while not done.is_set():
                    await other.conversations.read("s0", last=20)
                    await database.conversations.read("s2", last=20)

            readers = [asyncio.create_task(read()) for _ in range(4)]
            await delete(database, secrets)
            done.set()
            await asyncio.gather(*readers)
            assert left(path) == {}


async def test_a_long_reader_delays_it(
    database: Database, path: Path, witness: sqlite3.Connection
) -> None:
    """A transaction that still reads the old state keeps it in the log, until the next erasure."""
    conversations = database.conversations
    await conversations.append("s", [Message(role="user", content=SECRET.decode())])
    await conversations.append("t", [Message(role="user", content="harmless")])
    witness.execute("BEGIN")
    assert witness.execute("SELECT count(*) FROM agentstore_messages").fetchone() == (2,)
    assert await conversations.delete("s") is True
    assert "agents.db-wal" in left(path)
    assert witness.execute("SELECT count(*) FROM agentstore_messages").fetchone() == (2,)
    witness.execute("COMMIT")
    assert await conversations.delete("t") is True
    assert left(path) == {}


async def test_overwritten_values_go_when_it_is_closed(url: str, path: Path) -> None:
    """Values of state that were overwritten stay in the log until the store is closed."""
    with closing(sqlite3.connect(path)) as another_process:
        async with connect(url) as database:
            state = database.state.app()
            await state.put("key", SECRET.decode())
            await state.put("key", "harmless")
            assert left(path) == {"agents.db-wal": 1}
            assert another_process.execute("SELECT * FROM agentstore_state").fetchone() is not None
        assert left(path) == {}
