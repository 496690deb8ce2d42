"""`db()`: a database that lives on the facade's loop and serves every thread and loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ._engine import Timeouts, engines
from ._portal import Portal, portal
from .database import Database
from .errors import ClosedError
from .stores import Driver
from .types import Limits
from .wrappers import Operation, Wrapper

__all__ = ["db"]

T = TypeVar("T")


def db(
    database_url: str | None,
    *,
    state_url: str | None = None,
    tenant: str = "",
    limits: Limits | None = None,
    connect_timeout: float = 5.0,
    attempt_timeout: float = 5.0,
    operation_timeout: float = 15.0,
    **options: Any,
) -> Database:
    """Make a database for synchronous and asynchronous code alike, as `connect` is for one loop.

    Nothing is opened before the first use, on an event loop in a thread of its own.
    One object serves any number of agents, threads and `asyncio.run()`s, and a forked child opens
    its own connections.
    It is closed by `close()`, when nobody has it any more, or at exit, and not by the agents it is
    handed to.

    `ConfigurationError` where the URL or an option is wrong.
    """
    timeouts = Timeouts(
        connect=connect_timeout, attempt=attempt_timeout, operation=operation_timeout
    )
    found = engines(database_url, state_url, timeouts=timeouts, options=options)
    return Database(
        *(Hosted(engine.build) for engine in found),
        tenant=tenant,
        limits=limits,
        names=tuple(str(engine.url) for engine in found),
        blocking=True,
    )


class Hosted(Wrapper):
    """Runs every call on the facade's loop, and opens the store at the first one."""

    _store: _Store | None = None
    _closed = False

    def __init__(self, build: Callable[[], Driver]) -> None:
        super().__init__(build())
        self._build = build

    async def _invoke(self, operation: Operation, call: Callable[[Driver], Awaitable[T]]) -> T:
        return await portal().call(self._there, call)

    async def open(self) -> None:
        """Open the store, where it isn't open yet."""
        await portal().call(self._opened)

    async def close(self) -> None:
        """Close the store for good."""
        await portal().call(self._close)

    async def ping(self) -> None:
        """Ask the store for a sign of life."""
        await portal().call(self._there, lambda driver: driver.ping())

    def __del__(self) -> None:
        if self._store is not None:
            self._store.let_go()

    # From here on everything runs on the facade's loop.

    async def _there(self, call: Callable[[Driver], Awaitable[T]]) -> T:
        return await call(await self._opened())

    async def _opened(self) -> Driver:
        if self._closed:
            raise ClosedError("the database is closed")
        home, store = portal(), self._store
        if store is not None and store.home is not home:
            _left_alone.append(store)
            store = None
        if store is None or store.has_ended:
            store = self._store = _Store(home, self._build())
            self._inner = store.driver
        if not store.is_open:
            await store.opening()
        return store.driver

    async def _close(self) -> None:
        self._closed = True
        if self._store is not None and self._store.home is portal():
            await self._store.close()


# What a forked child found open is left to its parent: not even garbage collected, which would
# close it.
_left_alone: list[_Store] = []


class _Store:
    """A driver on the facade's loop, from its opening to its close.

    Both go on where a caller that waits for them is cancelled.
    """

    def __init__(self, home: Portal, driver: Driver) -> None:
        self.home = home
        self.driver = driver
        self.is_open = False
        self._opening = asyncio.create_task(self._open())
        # Where nobody waits for it any more: the next call tries again, and says what it meets.
        self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._closing: asyncio.Task[None] | None = None
        home.on_exit(self.close)

    @property
    def has_ended(self) -> bool:
        """Whether it could not be opened, or is being closed."""
        return self._closing is not None or (self._opening.done() and not self.is_open)

    async def opening(self) -> None:
        """Wait until it is open, or raise why it can't be."""
        await asyncio.wait((self._opening,))
        self._opening.result()

    async def close(self) -> None:
        """Close it, and wait for that; at exit, a late thread opens another one."""
        await asyncio.wait((self._begin_to_close(),))
        self._begin_to_close().result()

    def let_go(self) -> None:
        """Have it closed, because nobody can use it any more; in any thread, at any moment."""
        if self.home._thread.is_alive():
            self.home._loop.call_soon_threadsafe(self._begin_to_close)
        else:
            _left_alone.append(self)

    def _begin_to_close(self) -> asyncio.Task[None]:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        return self._closing

    async def _open(self) -> None:
        try:
            await self.driver.open()
        except BaseException:
            self.home.forget(self.close)
            raise
        self.is_open = True

    async def _close(self) -> None:
        await asyncio.wait((self._opening,))
        try:
            if self.is_open:
                await self.driver.close()
        finally:
            self.home.forget(self.close)
