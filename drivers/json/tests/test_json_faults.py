"""Disks that fail, callers that give up, and what holds all the same."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from agentstore import Database, Message, connect
from agentstore.errors import (
    CapacityError,
    ClosedError,
    ConfigurationError,
    ConflictError,
    OutcomeUnknownError,
    OverloadedError,
    StoreError,
    UnavailableError,
)
from agentstore.types import AppendResult

pytestmark = pytest.mark.asyncio

FileOf = Callable[..., Path]


def said(*texts: str) -> list[Message]:
    return [Message(role="user", content=text, id=f"id of {text}") for text in texts]


async def texts(database: Database, session_id: str = "s") -> list[str]:
    return [message.text for message in await database.conversations.read(session_id)]


class Disk:
    """The disk, with failures on order: the next sync of a file or of a directory, a write."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._fsync, self._write = os.fsync, os.write
        self.fail_sync_of: Callable[[int], bool] | None = None
        self.full_after: int | None = None
        self.full_after_sync: int | None = None
        self.code = errno.EIO
        self.synced: list[str] = []
        patch.setattr(os, "fsync", self.fsync)
        patch.setattr(os, "write", self.write)

    def fsync(self, fd: int) -> None:
        mode = os.fstat(fd).st_mode
        self.synced.append("directory" if stat.S_ISDIR(mode) else "file")
        if self.fail_sync_of is not None and self.fail_sync_of(mode):
            self.fail_sync_of = None
            raise OSError(self.code, os.strerror(self.code))
        self._fsync(fd)
        if self.full_after_sync is not None:
            self.full_after, self.full_after_sync = self.full_after_sync, None

    def write(self, fd: int, data: bytes) -> int:
        if self.full_after is None:
            return self._write(fd, data)
        if self.full_after == 0:
            self.full_after = None
            raise OSError(self.code, os.strerror(self.code))
        written = self._write(fd, data[: self.full_after])
        self.full_after = 0
        return written


@pytest.fixture
def disk() -> Iterator[Disk]:
    with pytest.MonkeyPatch.context() as patch:
        yield Disk(patch)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("after", [1, 50])
async def test_disk_full_in_the_middle_of_a_line(
    database: Database, disk: Disk, file_of: FileOf, code: int, after: int
) -> None:
    """What was written of a line is taken back: the file is as it was, and so is memory."""
    await database.conversations.append("s", said("one"))
    before = file_of("s").read_bytes()
    disk.code, disk.full_after = code, after
    with pytest.raises(CapacityError, match="the disk is full; nothing was written") as caught:
        await database.conversations.append("s", said("two", "three"))
    assert caught.value.code == errno.errorcode[code]
    assert (caught.value.outcome_unknown, caught.value.__cause__) == (False, None)
    assert file_of("s").read_bytes() == before
    assert await texts(database) == ["one"]
    result = await database.conversations.append("s", said("two", "three"))
    assert (result.seqs, result.created) == ((2, 3), (True, True))


@pytest.mark.parametrize("call", ["append", "rewind", "replace", "delete", "put"])
async def test_disk_full_where_a_file_is_replaced(
    base: Path, database: Database, disk: Disk, call: str
) -> None:
    """A new file that doesn't fit leaves the old one, and nothing beside it."""
    conversations, state = database.conversations, database.state.app()
    await conversations.append("s", said("one", "two"))
    await state.put("key", 1)
    before = {path: path.read_bytes() for path in files(base) if "catalog" not in path.name}
    disk.code, disk.full_after = errno.ENOSPC, 10
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "append": lambda: conversations.append("new", said("x")),
        "rewind": lambda: conversations.rewind("s", to=0),
        "replace": lambda: conversations.replace("s", "id of one", content="x"),
        "delete": lambda: conversations.delete("s"),
        "put": lambda: state.put("key", 2),
    }
    with pytest.raises(CapacityError):
        await calls[call]()
    assert {path: path.read_bytes() for path in files(base) if path in before} == before
    assert [path for path in files(base) if path.suffix == ".new"] == []
    assert await texts(database) == ["one", "two"]
    assert [s.session_id for s in await conversations.sessions()] == ["s"]


async def test_failed_sync_is_not_believed(
    database: Database, other: Database, disk: Disk, file_of: FileOf
) -> None:
    """A sync that failed: the outcome is unknown, and the line is not left for the next sync."""
    await database.conversations.append("s", said("one"))
    before = file_of("s").read_bytes()
    disk.fail_sync_of = stat.S_ISREG
    with pytest.raises(OutcomeUnknownError) as caught:
        await database.conversations.append("s", said("two"))
    error = caught.value
    assert (error.outcome_unknown, error.retryable, error.code) == (True, False, "EIO")
    assert file_of("s").read_bytes() == before
    assert await texts(database) == await texts(other) == ["one"]
    result = await database.conversations.append("s", said("two"))
    assert (result.seqs, result.created) == ((2,), (True,))
    assert await texts(database) == await texts(other) == ["one", "two"]


async def test_repeat_after_a_failed_sync_of_the_directory(database: Database, disk: Disk) -> None:
    """A new file whose name may not be on the disk: a repeat is not acknowledged before it is."""
    disk.fail_sync_of = stat.S_ISDIR
    with pytest.raises(OutcomeUnknownError):
        await database.conversations.append("s", said("one"))
    # The first directory that was synced is the one of the catalog.
    disk.synced.clear()
    result = await database.conversations.append("s", said("one"))
    assert result.seqs == (1,)
    assert "directory" in disk.synced
    for attempt in range(2):
        disk.synced.clear()
        result = await database.conversations.append("s", said("one"))
        assert (result.created, disk.synced) == ((False,), ["file"]), attempt


async def test_repeat_is_as_durable_as_the_first(
    database: Database, other: Database, disk: Disk
) -> None:
    """A repeat is synced: whoever wrote it first may have been killed before that."""
    await database.conversations.append("s", said("one"))
    disk.synced.clear()
    await other.conversations.append("s", said("one"))
    assert disk.synced == ["file", "directory"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EIO, UnavailableError),
        (errno.EMFILE, OverloadedError),
        (errno.EROFS, ConfigurationError),
        (errno.EINVAL, StoreError),
    ],
)
async def test_codes(
    database: Database, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    """Each failure of the system has its class, by its code, with no context that shows more."""
    await database.conversations.append("s", said("one"))

    def fail(*_: object) -> bytes:
        raise OSError(code, "secret")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(kind, match=errno.errorcode[code]) as caught:
        await database.conversations.append("s", said("two"))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "secret" not in str(caught.value)


async def test_directory_that_went_away(base: Path, database: Database) -> None:
    """A store that is removed while it is open is `UnavailableError`, and not an empty answer."""
    await database.conversations.append("s", said("one"))
    move(base, base.with_name("elsewhere"))
    with pytest.raises(UnavailableError):
        await texts(database)
    assert not (await database.health()).ok
    move(base.with_name("elsewhere"), base)
    assert await texts(database) == ["one"]
    assert (await database.health()).ok


async def test_cancelled_in_the_middle(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append that has begun is carried out, one that waits is dropped, and the rest goes on."""
    await database.conversations.append("s", said("one"))
    reached, go_on = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(fd: int) -> None:
        reached.set()
        assert go_on.wait(10)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    append = database.conversations.append
    begun = asyncio.create_task(append("s", said("two")))
    await asyncio.to_thread(reached.wait, 10)
    waiting = asyncio.create_task(append("s", said("three")))
    staying = asyncio.create_task(append("s", said("four")))
    await asyncio.sleep(0)
    begun.cancel()
    waiting.cancel()
    await asyncio.sleep(0)
    go_on.set()
    assert (await staying).seqs == (3,)
    outcomes = await asyncio.gather(begun, waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2
    assert await texts(database) == ["one", "two", "four"]
    assert (await append("s", said("two"))).created == (False,)


@pytest.mark.parametrize("call", ["append", "put"])
async def test_close_waits_for_what_was_begun(
    url: str, base: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """What is under way when the store is closed is there then, though its caller was cancelled."""
    fsync, reached = os.fsync, asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(fd: int) -> None:
        loop.call_soon_threadsafe(reached.set)
        threading.Event().wait(0.05)
        fsync(fd)

    async with connect(url) as database:
        monkeypatch.setattr(os, "fsync", slow)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "append": lambda: database.conversations.append("s", said("one")),
            "put": lambda: database.state.app().put("key", 1),
        }
        begun = asyncio.ensure_future(calls[call]())
        await reached.wait()
        begun.cancel()
    assert len([path for path in files(base) if len(path.stem) == len("a" * 64)]) == 1
    with pytest.raises(ClosedError):
        await database.conversations.get("s")


async def test_group_commit(database: Database, disk: Disk) -> None:
    """Appends that wait together share a sync; a conflict among them is its own caller's alone."""
    append = database.conversations.append
    await append("s", said("0"))
    disk.synced.clear()
    other_body = [Message(role="user", content="another", id="id of 0")]
    calls = [append("s", other_body if n == 50 else said(str(n))) for n in range(1, 100)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results.pop(49), ConflictError)
    seqs = [result.seqs for result in results if isinstance(result, AppendResult)]
    assert seqs == [(n,) for n in range(2, 100)]
    assert await texts(database) == [str(n) for n in range(100) if n != 50]
    assert len(disk.synced) == 2


async def test_group_that_fails(database: Database, disk: Disk) -> None:
    """Where the write of a group fails, none of it is there, and each caller has its own error."""
    append = database.conversations.append
    await append("s", said("0"))
    disk.code, disk.full_after_sync = errno.ENOSPC, 10
    calls = [append("s", said(str(n))) for n in range(1, 5)]
    first, *group = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(first, AppendResult)
    assert [type(error) for error in group] == [CapacityError] * 3
    assert len({id(error) for error in group}) == 3
    assert await texts(database) == ["0", "1"]


def move(path: Path, to: Path) -> None:
    path.rename(to)


def files(base: Path) -> list[Path]:
    return [path for path in base.rglob("*") if path.is_file()]
