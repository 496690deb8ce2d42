"""The list of all sessions: it follows from the sessions' files, and can be made again."""

from __future__ import annotations

import itertools
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from agentstore import Database, Message, connect
from agentstore.driver import TOUCH_INTERVAL, now

pytestmark = pytest.mark.asyncio

FileOf = Callable[..., Path]


class Clock:
    """The time as the driver sees it."""

    def __init__(self) -> None:
        self.micros = now()

    def forward(self, seconds: float) -> None:
        self.micros += round(seconds * 1_000_000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stop the time, and move it by hand."""
    clock = Clock()
    monkeypatch.setattr("agentstore_json._records.now", lambda: clock.micros)
    return clock


def said(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


async def listed(
    database: Database, *, user_id: str | None = None, prefix: str | None = None
) -> list[str]:
    """List session ids, three to a page."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await database.conversations.sessions(
            user_id=user_id, prefix=prefix, limit=3, cursor=cursor
        )
        found += [session.session_id for session in page]
        if (cursor := page.cursor) is None:
            return found


async def some_sessions(database: Database) -> None:
    """Make ten sessions of two users and of nobody in two tenants, and delete one."""
    for n in range(10):
        user_id = ("ann", "bob", None)[n % 3]
        await database.conversations.append(f"s{n}", said("x"), user_id=user_id)
    await database.for_tenant("t").conversations.append("of another", said("x"), user_id="ann")
    await database.conversations.delete("s5")


NEWEST = ["s9", "s8", "s7", "s6", "s4", "s3", "s2", "s1", "s0"]


async def check_listings(database: Database) -> None:
    assert await listed(database) == NEWEST
    assert await listed(database, prefix="s") == NEWEST[::-1]
    assert await listed(database, user_id="ann") == ["s9", "s6", "s3", "s0"]
    assert await listed(database, user_id="ann", prefix="s3") == ["s3"]
    assert await listed(database, user_id="nobody") == []
    assert await listed(database.for_tenant("t"), user_id="ann") == ["of another"]


@pytest.mark.parametrize("few", [1, 1000], ids=["sorted at once", "one by one"])
async def test_listings(url: str, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """The order is that of time or of ids, for all or for one user, however it came about."""
    monkeypatch.setattr("agentstore_json._catalog._FEW", few)
    async with connect(url) as database, connect(url) as other:
        assert await listed(other) == []
        await some_sessions(database)
        await check_listings(database)
        await check_listings(other)


async def test_entries_of_others_in_between(database: Database, other: Database) -> None:
    """What another process noted just before is read, though this one goes on behind it."""
    assert await listed(database) == await listed(other) == []
    await other.conversations.append("a", said("x"))
    await database.conversations.append("b", said("x"))
    assert await listed(database) == await listed(other) == ["b", "a"]


@pytest.mark.parametrize("left", [None, b"", b"{", b'{"catalog":"x"}\n{"tenant":""}\n'])
@pytest.mark.parametrize("when", ["open", "closed"])
async def test_made_again(
    url: str, base: Path, left: bytes | None, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A catalog that is missing or damaged is made again from the sessions, and this is told."""
    caplog.set_level(logging.WARNING, logger="agentstore.json")
    async with connect(url) as database:
        await some_sessions(database)
        if when == "open":
            await check_listings(database)
            lose(base, left)
            await check_listings(database)
    if when == "closed":
        lose(base, left)
        async with connect(url) as database:
            await check_listings(database)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (left is not None)
    assert all(text.endswith("it is made again from the sessions") for text in told)


@pytest.mark.parametrize("left", [None, b""])
async def test_made_again_by_an_append(url: str, base: Path, left: bytes | None) -> None:
    """A session that is made while the catalog is gone doesn't hide the others."""
    async with connect(url) as database:
        await some_sessions(database)
        lose(base, left)
        await database.conversations.append("new", said("x"))
    async with connect(url) as database:
        assert await listed(database) == ["new", *NEWEST]


async def test_made_again_with_what_expires(url: str, base: Path, clock: Clock) -> None:
    """What had expired, and what expires later than the first line says, is purged all the same."""
    async with connect(url) as database:
        await database.conversations.append("past", said("x"), ttl=1)
        await database.conversations.append("later", said("x"))
        await database.conversations.update("later", ttl=100)
        await database.conversations.append("stays", said("x"))
        clock.forward(50)
        lose(base, None)
        assert {*await listed(database)} == {"later", "stays"}
        assert await database.conversations.purge_expired() == 1
        clock.forward(60)
        assert await database.conversations.purge_expired() == 1
        assert await database.conversations.purge_expired() == 0
        assert await listed(database) == ["stays"]


async def test_sliding_expiry_is_noted_once(database: Database, base: Path, clock: Clock) -> None:
    """An expiry that is moved with every append costs the catalog nothing, and holds."""
    await database.conversations.append("s", said("x"), ttl=10)
    size = len((base / "catalog.jsonl").read_bytes())
    for _ in range(5):
        clock.forward(1)
        await database.conversations.append("s", said("x"), ttl=10)
    assert len((base / "catalog.jsonl").read_bytes()) == size
    clock.forward(8)
    assert await database.conversations.purge_expired() == 0
    await database.conversations.append("s", said("x"), ttl=1)
    clock.forward(1)
    assert await database.conversations.purge_expired() == 1


async def test_session_that_was_never_made(database: Database, base: Path, file_of: FileOf) -> None:
    """An entry whose session a killed process didn't come to make is not listed, and goes."""
    await database.conversations.append("s", said("x"))
    with (base / "catalog.jsonl").open("a") as file:
        file.write('{"tenant":"","session_id":"ghost","updated_at":"2020-01-01T00:00:00Z"}\n')
    assert await listed(database) == ["s"]
    last = (base / "catalog.jsonl").read_text().splitlines()[-1]
    assert json.loads(last) == {"tenant": "", "session_id": "ghost"}
    assert not file_of("ghost").exists()


async def test_torn_line(database: Database, other: Database, base: Path) -> None:
    """What a killed process left of a line is cut off before the next one is written."""
    await database.conversations.append("a", said("x"))
    assert await listed(other) == ["a"]
    with (base / "catalog.jsonl").open("a") as file:
        file.write('{"tenant":"","session')
    await database.conversations.append("b", said("x"))
    assert await listed(other) == await listed(database) == ["b", "a"]


async def test_it_is_written_anew_when_it_has_grown(
    url: str, base: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """Entries that no longer hold are dropped now and then, under the eyes of other processes."""
    monkeypatch.setattr("agentstore_json._catalog._SMALL", 4096)
    ids = [f"s{n}" for n in range(5)]
    order = ids + random.Random(1).choices(ids, k=200)
    sizes = []
    async with connect(url) as database, connect(url) as other:
        for number, session_id in enumerate(order):
            clock.forward(TOUCH_INTERVAL / 1_000_000)
            await database.conversations.append(session_id, said("x"))
            sizes.append(len((base / "catalog.jsonl").read_bytes()))
            if number % 7 == 0:
                await listed(other)
        newest = [*dict.fromkeys(reversed(order))]
        assert await listed(database) == newest
        assert await listed(other) == newest
    assert max(sizes) <= 2 * 4096 + 100
    assert any(after < before for before, after in itertools.pairwise(sizes))


def lose(base: Path, left: bytes | None) -> None:
    """Remove the catalog, or leave something in its place."""
    if left is None:
        (base / "catalog.jsonl").unlink()
    else:
        (base / "catalog.jsonl").write_bytes(left)
