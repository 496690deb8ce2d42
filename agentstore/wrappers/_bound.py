"""A store belongs to the event loop and to the process that opened it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..errors import ClosedError, ConfigurationError
from ..stores import Driver
from ._base import Operation, Wrapper

__all__ = ["Bound"]

T = TypeVar("T")


class Bound(Wrapper):
    """Lets a call through on the loop that opened the store, and explains where it is another.

    Without it, a client that waits on another loop's sockets hangs or corrupts its stream.
    """

    def __init__(self, inner: Driver) -> None:
        super().__init__(inner)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    async def _invoke(self, operation: Operation, call: Callable[[Driver], Awaitable[T]]) -> T:
        self._check()
        return await call(self._inner)

    async def open(self) -> None:
        """Open the wrapped store, which belongs to this loop from now on."""
        await self._inner.open()
        self._loop, self._pid = asyncio.get_running_loop(), os.getpid()

    async def close(self) -> None:
        """Close the wrapped store, once; a close that broke off can be made again."""
        if self._loop is not None:
            self._check()
            await self._inner.close()
            self._loop = None

    async def ping(self) -> None:
        """Ask the wrapped store for a sign of life."""
        self._check()
        await self._inner.ping()

    def _check(self) -> None:
        if self._loop is None:
            raise ClosedError("the database is closed")
        if self._pid != os.getpid():
            raise ConfigurationError(
                "this database was opened before the process forked: open it in the child"
            )
        if self._loop is not asyncio.get_running_loop():
            raise ConfigurationError(
                "this database belongs to another event loop: connect() on each loop, or use db()"
            )
