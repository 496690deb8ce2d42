"""Turns of one session, one after the other, whatever loop or thread they come from."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

__all__ = ["Turns"]


class Turns:
    """A fair lock for each key, for coroutines of any event loop.

    An `asyncio.Lock` belongs to one loop; one database serves several.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        # A key is here while its lock is held; those who wait stand in the order they came.
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def take(self, key: Hashable) -> AsyncIterator[None]:
        """Hold the lock of `key` within the block."""
        await self._acquire(key)
        try:
            yield
        finally:
            self._release(key)

    async def _acquire(self, key: Hashable) -> None:
        with self._guard:
            queue = self._waiting.get(key)
            if queue is None:
                self._waiting[key] = deque()
                return
            turn = asyncio.get_running_loop().create_future()
            queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            with self._guard:
                queue = self._waiting.get(key)
                waits = queue is not None and turn in queue
                if waits and queue is not None:
                    queue.remove(turn)
            if not waits:
                # The lock was handed over while the cancellation was on its way.
                self._release(key)
            raise

    def _release(self, key: Hashable) -> None:
        with self._guard:
            queue = self._waiting[key]
            while queue:
                turn = queue.popleft()
                try:
                    turn.get_loop().call_soon_threadsafe(_wake, turn)
                except RuntimeError:
                    # Its loop was closed under it: nobody waits there any more.
                    continue
                return
            del self._waiting[key]


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
