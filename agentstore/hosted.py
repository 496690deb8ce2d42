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
    It is closed at exit, or by `close()`, and not by the agents it is handed to.

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

    def __init__(self, build: Callable[[], Driver]) -> None:
        super().__init__(build())
        self._build = build
        self._home: Portal | None = None
        self._opening: asyncio.Task[None] | None = None
        self._closed = False

    async def _invoke(self, operation: Operation, call: Callable[[Driver], Awaitable[T]]) -> T:
        return await portal().call(self._there, call)

    async def open(self) -> None:
        """Open the store, where it isn't open yet."""
        await portal().call(self._open)

    async def close(self) -> None:
        """Close the store for good."""
        await portal().call(self._close)

    async def ping(self) -> None:
        """Ask the store for a sign of life."""
        await portal().call(self._there, lambda driver: driver.ping())

    # From here on everything runs on the facade's loop.

    async def _there(self, call: Callable[[Driver], Awaitable[T]]) -> T:
        if self._opening is None or not self._opening.done() or self._home is not portal():
            await self._open()
        return await call(self._inner)

    async def _open(self) -> None:
        if self._closed:
            raise ClosedError("the database is closed")
        if self._home is not portal():
            # The first use, or the first in a forked child: what the parent opened is left to
            # the parent, not even closed.
            if self._home is not None:
                self._inner = self._build()
            self._home, self._opening = portal(), None
        if self._opening is None:
            self._opening = asyncio.create_task(self._inner.open())
            portal().on_exit(self._shut)
        opening = self._opening
        try:
            # Shielded: several calls wait for one opening, and one may be cancelled.
            await asyncio.shield(opening)
        except BaseException:
            if opening.done() and self._opening is opening:
                # It failed: the next call tries again.
                self._opening = None
                portal().forget(self._shut)
            raise

    async def _close(self) -> None:
        self._closed = True
        await self._shut()

    async def _shut(self) -> None:
        """Close what is open; at exit, a late thread may open it once more."""
        opening, self._opening = self._opening, None
        portal().forget(self._shut)
        if opening is not None and self._home is portal():
            await asyncio.wait((opening,))
            await self._inner.close()
