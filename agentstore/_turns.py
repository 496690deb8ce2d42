"""Turns of one session, one after the other, whatever loop or thread they come from."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Hashable
from contextvars import ContextVar

from .errors import ConfigurationError, OverloadedError

__all__ = ["Turn", "Turns"]

_LONG_WAIT = 60.0
"""Seconds after which a turn that still waits is worth a line in the log."""

_logger = logging.getLogger("agentstore")

# The turns that the running code is a part of.
_within: ContextVar[tuple[Turn, ...]] = ContextVar("agentstore_turns", default=())


class Turns:
    """A fair lock for each key, for coroutines of any event loop.

    An `asyncio.Lock` belongs to one loop; one database serves several.
    """

    def __init__(self, patience: float = 600.0) -> None:
        self._patience = patience
        self._begin_anew()
        _all.add(self)

    def take(self, key: Hashable) -> Turn:
        """Give an async context manager that holds the lock of `key`.

        `OverloadedError` where it doesn't come free for too long; `ConfigurationError` where what
        asks for it is called by a turn of the same key, which would wait for itself.
        """
        return Turn(self, key)

    def _begin_anew(self) -> None:
        # Reentrant: a turn whose loop was closed under it leaves when it is garbage collected,
        # which can happen anywhere below. So each step leaves the queues fit for another one.
        self._guard = threading.RLock()
        # The first of a queue has the lock, the others wait in the order they came.
        self._queues: dict[Hashable, deque[Turn]] = {}

    def _join(self, turn: Turn) -> bool:
        """Stand in the queue; true where the lock was free."""
        with self._guard:
            queue = self._queues.get(turn.key, deque())
            while queue and queue[0].is_lost:
                queue.popleft()
            if queue and queue[0] in _within.get():
                raise ConfigurationError(
                    "this turn is asked for by a turn of the same session, which would wait for "
                    "itself: give what its tools ask a session of its own"
                )
            queue.append(turn)
            self._queues[turn.key] = queue
            return queue[0] is turn

    def _leave(self, turn: Turn) -> None:
        """Go out of the queue, from any place in it, and wake who is the first then."""
        with self._guard:
            queue = self._queues.get(turn.key, deque())
            with contextlib.suppress(ValueError):  # it was lost, or is of before a fork
                queue.remove(turn)
            while queue and not queue[0].wake():
                queue.popleft()
            if not queue:
                self._queues.pop(turn.key, None)


class Turn:
    """One hold of a lock."""

    def __init__(self, turns: Turns, key: Hashable) -> None:
        self.key = key
        self._turns = turns
        self._free: asyncio.Future[None]

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._free = loop.create_future()
        if not self._turns._join(self):
            warning = loop.call_later(_LONG_WAIT, self._complain)
            try:
                async with asyncio.timeout(self._turns._patience):
                    await self._free
            except TimeoutError:
                self._turns._leave(self)
                raise OverloadedError(
                    f"another turn of this session has not ended for {self._turns._patience:g} s: "
                    "is there a stream that was neither read to its end nor closed?"
                ) from None
            except BaseException:
                # Cancelled, or thrown away with its loop, when the lock may be on its way here.
                self._turns._leave(self)
                raise
            finally:
                warning.cancel()
        self._outer = _within.get()
        _within.set((*self._outer, self))

    async def __aexit__(self, *_: object) -> None:
        _within.set(self._outer)
        self._turns._leave(self)

    @property
    def is_lost(self) -> bool:
        """Whether its loop was closed under it, so that it never ends by itself."""
        return self._free.get_loop().is_closed()

    def wake(self) -> bool:
        """Tell it that it has the lock; false where nobody is there any more."""
        try:
            self._free.get_loop().call_soon_threadsafe(self._wake)
        except RuntimeError:
            return False
        return True

    def _wake(self) -> None:
        if not self._free.done():
            self._free.set_result(None)

    def _complain(self) -> None:
        _logger.warning(
            "a turn of %r has waited for %g seconds: "
            "is there a stream that was neither read to its end nor closed?",
            self.key,
            _LONG_WAIT,
        )


_all: weakref.WeakSet[Turns] = weakref.WeakSet()


def _in_child() -> None:
    # The turns of the parent go on in the parent; one of its threads may have held the guard.
    for turns in _all:
        turns._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
