"""Turns of one session, one after the other, whatever loop or thread they come from."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from .errors import OverloadedError

__all__ = ["Turns"]


class Turns:
    """A fair lock for each key, for coroutines of any event loop.

    An `asyncio.Lock` belongs to one loop; one database serves several.
    """

    def __init__(self, patience: float = 600.0) -> None:
        self._patience = patience
        self._guard = threading.Lock()
        # A key is here while its lock is held; those who wait stand in the order they came.
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def take(self, key: Hashable) -> AsyncIterator[None]:
        """Hold the lock of `key` within the block.

        `OverloadedError` where it doesn't come free for too long.
        """
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
            async with asyncio.timeout(self._patience):
                await turn
        except TimeoutError:
            self._leave(key, turn)
            raise OverloadedError(
                f"another turn of this session has not ended for {self._patience:g} s: "
                "is there a stream that was neither read to its end nor closed?"
            ) from None
        except asyncio.CancelledError:
            self._leave(key, turn)
            raise

    def _leave(self, key: Hashable, turn: asyncio.Future[None]) -> None:
        with self._guard:
            queue = self._waiting.get(key, ())
            waits = turn in queue
            if waits:
                self._waiting[key].remove(turn)
        if not waits:
            # The lock was handed over while the cancellation was on its way.
            self._release(key)

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
