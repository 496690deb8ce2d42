"""What the processes do that the tests of SQLite start, and kill."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from agentstore import Database, Message, StoreError, connect
from agentstore.testing.history import Recorder

# Forked from one that has imported everything, a process starts in milliseconds.
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "__main__",
        "agentstore.database",
        "agentstore.testing.history",
        "agentstore_sql",
        "alembic.command",
    ]
)


def append_all(
    url: str, log: Path, name: str, writers: Sequence[Sequence[str]], start: Barrier
) -> None:
    """Append from several tasks at once; each is given the sessions to append to, in order."""
    asyncio.run(_append_all(url, log, name, writers, start))


async def _append_all(
    url: str, log: Path, name: str, writers: Sequence[Sequence[str]], start: Barrier
) -> None:
    with log.open("a") as lines:
        recorder = Recorder(lines)
        async with connect(url) as database:
            await asyncio.to_thread(start.wait, 30)
            await asyncio.gather(
                *(
                    _append(database, recorder, f"{name}.{number}", sessions)
                    for number, sessions in enumerate(writers)
                )
            )


def append_for_ever(url: str, log: Path, name: str, again: Sequence[str]) -> None:
    """Send `again` what a process before this one sent, then new messages until killed."""
    asyncio.run(_append_for_ever(url, log, name, again))


async def _append_for_ever(url: str, log: Path, name: str, again: Sequence[str]) -> None:
    with log.open("a") as lines:
        recorder = Recorder(lines)
        async with connect(url) as database:
            for message_id in again:
                await _append_one(database, recorder, f"{name} again", message_id, "s")
            writers = [f"{name}.{number}" for number in range(4)]
            await asyncio.gather(
                *(_append(database, recorder, w, itertools.repeat("s")) for w in writers)
            )


async def _append(
    database: Database, recorder: Recorder, writer: str, sessions: Iterable[str]
) -> None:
    for number, session in enumerate(sessions):
        await _append_one(database, recorder, writer, f"{writer}-{number}", session)


async def _append_one(
    database: Database, recorder: Recorder, writer: str, message_id: str, session: str
) -> None:
    message = Message(role="user", content=f"body of {message_id}", id=message_id)
    with recorder.append(writer, message_id, session=session):
        await database.conversations.append(session, [message])


def fill_file(url: str, answer: Connection) -> None:
    """Run into the limit of a file's size, and on when it is lifted; say what happened."""
    log = Path(f"{url.removeprefix('sqlite:///')}-wal")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def room(size: int) -> None:
        limit = log.stat().st_size + size
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    answer.send(asyncio.run(_fill(url, room, lift)))


def fill_disk(url: str, answer: Connection) -> None:
    """Run into a full disk, and on when there is room again; say what happened."""
    ballast = Path(url.removeprefix("sqlite:///")).with_name("ballast")

    def room(size: int) -> None:
        disk = os.statvfs(ballast.parent)
        ballast.write_bytes(bytes(disk.f_bavail * disk.f_frsize - size))

    answer.send(asyncio.run(_fill(url, room, ballast.unlink)))


async def _fill(
    url: str, room: Callable[[int], object], lift: Callable[[], object]
) -> dict[str, Any]:
    refused: list[object] = []
    stored = 0
    async with connect(url) as database:
        await database.conversations.append("s", [_long(10)])
        room(200_000)
        # Smaller and smaller ones: what follows finds no room at all.
        for size, count in ((10_000, 2), (1_000, 1), (10, 1)):
            while True:
                try:
                    batch = [_long(size) for _ in range(count)]
                    await database.conversations.append("s", batch)
                except StoreError as error:
                    refused.append(error)
                    break
                stored += count
        together = (database.conversations.append(f"s{n}", [_long(10_000)]) for n in range(5))
        refused += await asyncio.gather(*together, return_exceptions=True)
        answer = {
            "stored": 1 + stored,
            "read": len(await database.conversations.read("s")),
            "sessions": len(await database.conversations.sessions()),
            "refused": [_told(error) for error in refused],
        }
        lift()
        await database.conversations.append("s", [_long(10_000)])
        return answer | {"afterwards": len(await database.conversations.read("s"))}


def _told(error: object) -> tuple[str, str | None, bool, bool]:
    assert isinstance(error, StoreError)
    return type(error).__name__, error.code, error.retryable, error.outcome_unknown


def _long(size: int) -> Message:
    return Message(role="user", content="x" * size)


def open_without_room(url: str, answer: Connection) -> None:
    """Open a new file where there is no room for its tables, and again where there is."""

    async def code() -> str | None:
        try:
            async with connect(url):
                return None
        except StoreError as error:
            return f"{type(error).__name__} {error.code}"

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    refused = asyncio.run(code())
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    answer.send({"refused": refused, "afterwards": asyncio.run(code())})


def open_until_killed(url: str, statement: int) -> None:
    """Open a new file, and kill this process at that statement of what makes the tables."""
    connected = sqlite3.connect
    statements = itertools.count()

    def connect_and_count(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connected(*args, **options)

        def trace(text: str) -> None:
            began = text == "BEGIN EXCLUSIVE" or connection.in_transaction
            if began and next(statements) == statement:
                os.kill(os.getpid(), signal.SIGKILL)

        connection.set_trace_callback(trace)
        return connection

    sqlite3.connect = connect_and_count  # type: ignore[assignment]
    open_store(url)


def open_store(url: str, start: Barrier | None = None) -> None:
    """Open the store, at the same moment as others do where there is a barrier, and use it."""

    async def main() -> None:
        async with connect(url) as database:
            await database.conversations.append("s", [Message(role="user", content="x")])

    if start is not None:
        start.wait(30)
    asyncio.run(main())
