"""Group commit: jobs that wait at the same time share one transaction and one fsync."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from agentstore.errors import ClosedError

from ._sqlite_connection import SQLiteConnection, raw

T = TypeVar("T")

_MOST = 256

Job = Callable[[Connection], Any]


@dataclass(slots=True)
class _Done:
    """What came of a job: its result, or its error."""

    result: Any = None
    error: BaseException | None = None

    def given(self) -> Any:  # noqa: ANN401 - the job's own
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result


@dataclass(slots=True)
class _Waiting:
    job: Job
    # Resolved with a result always: an error set here could be one that futures refuse.
    answer: asyncio.Future[_Done]


class GroupCommit:
    """One writer for all tasks of a process.

    A job that was handed in is carried out even if its caller is cancelled meanwhile, unless it
    had not been begun: then it is dropped.
    """

    def __init__(self, connection: SQLiteConnection, *, check: Callable[[], None]) -> None:
        self._connection = connection
        # Called within each transaction: where it raises, nothing is written.
        self._check = check
        self._queue: list[_Waiting] = []
        self._closing = False
        # Lives while there is work: a program may cancel all tasks that it finds, and go on.
        self._writing: asyncio.Task[None] | None = None

    async def run(self, job: Callable[[Connection], T]) -> T:
        """Run a job in a transaction; it is durable when this returns."""
        if self._closing:
            raise ClosedError("the store is closed")
        waiting = _Waiting(job, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._write()
        return (await waiting.answer).given()  # type: ignore[no-any-return]  # the job's own result

    async def close(self) -> None:
        """Carry out what was handed in, and stop."""
        self._closing = True
        await asyncio.wait((self._write(),))

    def _write(self) -> asyncio.Task[None]:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._commit_all())
        return self._writing

    async def _commit_all(self) -> None:
        while self._queue:
            group = [one for one in self._queue[:_MOST] if not one.answer.done()]
            del self._queue[:_MOST]
            if not group:
                continue
            jobs = [one.job for one in group]
            done = await self._connection.run(partial(_commit, self._check, jobs))
            for one, outcome in zip(group, done, strict=True):
                if not one.answer.done():
                    one.answer.set_result(outcome)


def _commit(check: Callable[[], None], jobs: Sequence[Job], connection: Connection) -> list[_Done]:
    """Run jobs in one transaction; where that is lost to one of them, run each in its own."""
    sqlite = raw(connection)
    try:
        # IMMEDIATE: a transaction that reads first and writes then fails at once where another
        # process wrote in between, and no waiting helps (SQLITE_BUSY_SNAPSHOT).
        sqlite.execute("BEGIN IMMEDIATE")
    except (sqlite3.Error, MemoryError) as error:
        return [_Done(error=error)] * len(jobs)
    try:
        check()
        done = [_step(sqlite, connection, job) for job in jobs]
        sqlite.execute("COMMIT")
    except BaseException as error:  # noqa: BLE001 - it goes to the caller of the job
        if sqlite.in_transaction:
            sqlite.execute("ROLLBACK")
        if len(jobs) == 1:
            return [_Done(error=error)]
    else:
        return done
    return [outcome for job in jobs for outcome in _commit(check, [job], connection)]


def _step(sqlite: sqlite3.Connection, connection: Connection, job: Job) -> _Done:
    sqlite.execute("SAVEPOINT job")
    try:
        done = _Done(job(connection))
    except BaseException as error:
        if not sqlite.in_transaction:
            raise  # SQLite has undone all of it, as it does where the disk is full
        # What this one wrote is undone; its neighbours go on.
        sqlite.execute("ROLLBACK TO job")
        done = _Done(error=error)
    sqlite.execute("RELEASE job")
    return done
