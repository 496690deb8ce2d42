"""Group commit: jobs that wait at the same time share one transaction and one fsync."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from agentstore.errors import ClosedError, StoreError
from sqlalchemy import Connection

from ._sqlite_connection import SQLiteConnection

T = TypeVar("T")

_MOST = 256

Job = Callable[[Connection], Any]


@dataclass(slots=True)
class _Waiting:
    job: Job
    answer: asyncio.Future[Any]


@dataclass(slots=True)
class _Done:
    """What came of a job: its result, or its error."""

    result: Any = None
    error: Exception | None = None


class GroupCommit:
    """One writer for all tasks of a process.

    A job that was handed in is carried out even if its caller is cancelled meanwhile, unless it
    had not been begun: then it is dropped.
    """

    def __init__(self, connection: SQLiteConnection) -> None:
        self._connection = connection
        self._queue: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._task = asyncio.get_running_loop().create_task(self._write())

    async def run(self, job: Callable[[Connection], T]) -> T:
        """Run a job in a transaction; it is durable when this returns."""
        if self._closing:
            raise ClosedError("the store is closed")
        waiting = _Waiting(job, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._wake.set()
        return await waiting.answer  # type: ignore[no-any-return]  # the job's own result

    async def close(self) -> None:
        """Carry out what was handed in, and stop."""
        self._closing = True
        self._wake.set()
        await self._task

    async def _write(self) -> None:
        while True:
            group = [one for one in self._queue[:_MOST] if not one.answer.done()]
            del self._queue[:_MOST]
            if group:
                await self._commit(group)
            elif not self._queue:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()

    async def _commit(self, group: Sequence[_Waiting]) -> None:
        jobs = [one.job for one in group]
        try:
            done = await self._connection.run(lambda connection: _together(connection, jobs))
        except sqlite3.Error as error:
            done = [_Done(error=error)] * len(jobs)
        for one, outcome in zip(group, done, strict=True):
            if one.answer.done():
                continue
            if outcome.error is None:
                one.answer.set_result(outcome.result)
            else:
                one.answer.set_exception(outcome.error)


def _together(connection: Connection, jobs: Sequence[Job]) -> list[_Done]:
    """Run jobs in one transaction; where the engine fails one, run each in its own."""
    if len(jobs) > 1:
        try:
            return _transaction(connection, jobs)
        except sqlite3.Error:
            pass
    return [_alone(connection, job) for job in jobs]


def _alone(connection: Connection, job: Job) -> _Done:
    try:
        (done,) = _transaction(connection, [job])
    except sqlite3.Error as error:
        return _Done(error=error)
    return done


def _transaction(connection: Connection, jobs: Sequence[Job]) -> list[_Done]:
    raw: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    # IMMEDIATE: a transaction that reads first and writes then fails at once where another
    # process wrote in between, and no waiting helps (SQLITE_BUSY_SNAPSHOT).
    raw.execute("BEGIN IMMEDIATE")
    try:
        done = [_step(raw, connection, job) for job in jobs]
        raw.execute("COMMIT")
    except BaseException:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        raise
    return done


def _step(raw: sqlite3.Connection, connection: Connection, job: Job) -> _Done:
    raw.execute("SAVEPOINT job")
    try:
        done = _Done(job(connection))
    except StoreError as error:
        # The rules refused this one: what it wrote is undone, its neighbours go on.
        raw.execute("ROLLBACK TO job")
        done = _Done(error=error)
    raw.execute("RELEASE job")
    return done
