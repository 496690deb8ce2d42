"""What calls cost, counted in calls of the system and in bytes, not in seconds."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentstore import Database, Message, connect

pytestmark = pytest.mark.asyncio

FileOf = Callable[..., Path]

COUNTED = ("open", "write", "fsync", "pread", "rename", "ftruncate", "stat", "unlink", "mkdir")


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count what is asked of the system in the block: calls, and bytes read and written."""
    count: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in COUNTED:
            patch.setattr(os, name, counting(name, getattr(os, name), count))
        yield count


def counting(name: str, call: Callable[..., object], count: Counter[str]) -> Callable[..., object]:
    def counted_call(*arguments: object, **options: object) -> object:
        result = call(*arguments, **options)
        count[name] += 1
        if name == "write":
            count["written"] += int(str(result))
        if name == "pread":
            count["read"] += len(result)  # type: ignore[arg-type]
        return result

    return counted_call


@pytest.fixture
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about durability, and many files are made."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def said(text: str, count: int = 1) -> list[Message]:
    return [Message(role="user", content=text) for _ in range(count)]


async def test_append_costs_the_same_at_any_length(database: Database) -> None:
    """The 10,000th append costs what the second does: one write, one sync, nothing read again."""
    append = database.conversations.append
    await append("s", said("first"))
    with counted() as second:
        await append("s", said("second"))
    for _ in range(10):
        await append("s", said("more", 1000))
    with counted() as later:
        await append("s", said("second"))
    assert (later["fsync"], later["write"]) == (1, 1)
    # The longer seq, 10,003, takes four digits more.
    assert later.pop("written") == second.pop("written") + 4
    assert later == second
    assert later["read"] < 100


async def test_read_costs_the_same_at_any_length(database: Database) -> None:
    """A window of a session that is in memory reads nothing of its file."""
    for _ in range(5):
        await database.conversations.append("s", said("more", 1000))
    with counted() as count:
        assert len(await database.conversations.read("s", last=20)) == 20
    assert (count["read"] < 100, count["written"], count["fsync"]) == (True, 0, 0)


async def test_only_the_tail_of_others_is_read(
    database: Database, other: Database, file_of: FileOf
) -> None:
    """What another process appended is read, and nothing before it."""
    await database.conversations.append("s", said("x" * 100_000))
    await other.conversations.append("s", said("y" * 100))
    with counted() as count:
        assert len(await database.conversations.read("s")) == 2
    assert count["read"] < 1000
    assert len(file_of("s").read_bytes()) > 100_000


async def test_update_costs_the_same_at_any_length(database: Database) -> None:
    """A new title is a line of its own, whatever is there."""
    await database.conversations.append("s", said("x" * 100_000))
    with counted() as count:
        await database.conversations.update("s", title="Title")
    assert (count["written"], count["fsync"]) == (len('{"title":"Title"}\n'), 1)


@pytest.mark.usefixtures("_unsynced")
async def test_pages_cost_the_same_at_any_count(database: Database) -> None:
    """A page of sessions looks into the files of its sessions, and not into the others."""
    costs = []
    for count in (20, 1500):
        for n in range(count):
            await database.conversations.append(f"s{n:04}", said("x"), user_id="ann")
        for options in ({}, {"user_id": "ann"}, {"prefix": "s0"}):
            await database.conversations.sessions(limit=10, **options)
            with counted() as cost:
                page = await database.conversations.sessions(limit=10, **options)
            assert len(page) == 10
            assert page.cursor is not None
            costs.append(cost)
    assert costs[:3] == costs[3:]


@pytest.mark.usefixtures("_unsynced")
async def test_memory_is_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that were not used for longest leave memory when there are too many bytes."""
    monkeypatch.setattr("agentstore_json._store._KEPT", 250_000)
    async with connect(url) as database:
        for n in range(4):
            await database.conversations.append(f"s{n}", said("x" * 100_000))
        reads = []
        for n in (3, 2, 0, 3, 2):
            with counted() as count:
                assert len(await database.conversations.read(f"s{n}")) == 1
            reads.append(count["read"] > 100_000)
    assert reads == [False, False, True, True, True]


async def test_file_does_not_grow_with_updates(
    database: Database, other: Database, file_of: FileOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What updates have replaced is dropped when it is more than the rest, and a MiB."""
    monkeypatch.setattr("agentstore_json._session._SLACK", 10_000)
    await database.conversations.append("s", said("x" * 5_000))
    sizes = []
    for n in range(300):
        await database.conversations.update("s", metadata={"n": n, "text": "y" * 100})
        sizes.append(len(file_of("s").read_bytes()))
    assert max(sizes) < 30_000
    assert sum(after < before for before, after in itertools.pairwise(sizes)) > 1
    session = await other.conversations.get("s")
    assert session is not None
    assert session.metadata["n"] == 299
    assert session.message_count == 1
