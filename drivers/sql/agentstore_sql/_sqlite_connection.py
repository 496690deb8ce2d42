"""A SQLite connection in a thread of its own, on which whole jobs run."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

import aiosqlite
from aiosqlite.core import _connection_worker_thread
from sqlalchemy import Connection, StaticPool, create_engine

T = TypeVar("T")


class SQLiteConnection(aiosqlite.Connection):
    """An aiosqlite connection that runs a function in its thread, not one statement at a time.

    Going over to the thread and back costs more than a statement does.

    Private names of aiosqlite are used here and nowhere else: `_execute`, which runs any function
    in the thread, `_connection`, which is SQLite's, `_tx`, the queue of functions, and `_thread`,
    which has to be a daemon: a program that never closes its store must end by itself.
    """

    def __init__(self, database: str, *, setup: Callable[[sqlite3.Connection], None]) -> None:
        super().__init__(partial(self._alone, self._open, database, setup), iter_chunk_size=64)
        self._thread = threading.Thread(target=_serve, args=(self._tx,), daemon=True)
        self._busy = threading.Lock()
        self._opened: sqlite3.Connection | None = None
        self._connection_of_sqlalchemy: Connection | None = None
        with _all_lock:
            _all.add(self)

    async def run(self, job: Callable[[Connection], T]) -> T:
        """Run a job in the connection's thread, to its end even if the caller is cancelled."""
        return await self._execute(self._run, job)  # type: ignore[no-any-return]

    def abandon(self) -> None:
        """Let go of SQLite in a forked child; the parent goes on with it."""
        if self._opened is not None:
            self._opened.close()
        self._connection = None

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return await super()._execute(self._alone, fn, *args, **kwargs)  # type: ignore[no-untyped-call]

    def _alone(self, work: Callable[..., T], *args: Any) -> T:
        with self._busy:
            return work(*args)

    def _open(
        self, database: str, setup: Callable[[sqlite3.Connection], None]
    ) -> sqlite3.Connection:
        self._opened = _connect(database, setup)
        return self._opened

    def _run(self, job: Callable[[Connection], T]) -> T:
        if self._connection_of_sqlalchemy is None:
            # SQLAlchemy borrows the connection and never closes it: whoever opens it closes it.
            engine = create_engine(
                "sqlite://",
                creator=lambda: self._conn,
                poolclass=StaticPool,
                isolation_level="AUTOCOMMIT",
                hide_parameters=True,
            )
            self._connection_of_sqlalchemy = engine.connect()
        return job(self._connection_of_sqlalchemy)


def _serve(jobs: SimpleQueue[Any]) -> None:
    # Where a program breaks off, or the opening fails at its end, the loop is closed before the
    # thread has told it everything.
    with suppress(RuntimeError):
        _connection_worker_thread(jobs)


def raw(connection: Connection) -> sqlite3.Connection:
    """Give the connection of Python's own module that SQLAlchemy's stands on."""
    found = connection.connection.driver_connection
    assert isinstance(found, sqlite3.Connection)  # noqa: S101 - no other comes here
    return found


def _connect(database: str, setup: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    # isolation_level=None: the driver begins no transactions behind our back.
    # check_same_thread=False: a forked child closes it, and has one thread only.
    connection = sqlite3.connect(
        database, isolation_level=None, cached_statements=256, check_same_thread=False
    )
    try:
        setup(connection)
    except BaseException:
        connection.close()
        raise
    return connection


# A fork copies SQLite's memory with all that it believes of its files: which locks this process
# has on them, for one, and a child has none. What a child then writes over a new connection is lost
# when the parent closes the file, and a lock that was held in the moment of the fork is held in the
# child for ever. So a fork waits until every job has ended, and the child closes its copies.
_all: weakref.WeakSet[SQLiteConnection] = weakref.WeakSet()
_all_lock = threading.Lock()
_still: list[SQLiteConnection] = []


def _before_fork() -> None:
    _all_lock.acquire()
    _still.extend(_all)
    for connection in _still:
        connection._busy.acquire()


def _after_fork_in_parent() -> None:
    while _still:
        _still.pop()._busy.release()
    _all_lock.release()


def _after_fork_in_child() -> None:
    while _still:
        _still.pop().abandon()
    _all.clear()
    _all_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
