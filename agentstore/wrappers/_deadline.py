"""A deadline that holds even where cancellation does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from ..errors import AgentStoreError, DeadlineError
from ..stores import Driver
from ._base import Operation, Wrapper

__all__ = ["Deadline"]

T = TypeVar("T")

_logger = logging.getLogger("agentstore")

# Tasks that were given up live here until they end: the loop itself keeps only weak references.
_abandoned: set[asyncio.Task[Any]] = set()


class Deadline(Wrapper):
    """Gives each call `attempt` seconds, and opening the store `connect` seconds.

    `asyncio.timeout` waits until the cancelled call has ended, and clients take their time over
    that: a deadline of one second may take three. Here the call is a task of its own,
    cancelled and left alone.
    """

    def __init__(self, inner: Driver, *, attempt: float, connect: float) -> None:
        super().__init__(inner)
        self._attempt = attempt
        self._connect = connect

    async def _invoke(self, operation: Operation, call: Callable[[Driver], Awaitable[T]]) -> T:
        async def attempt() -> T:
            return await call(self._inner)

        return await _within(
            self._attempt, attempt(), operation.name, outcome_unknown=operation.writes
        )

    async def open(self) -> None:
        """Open the wrapped store, or give up after `connect` seconds."""
        given_up = False

        async def opening() -> None:
            await self._inner.open()
            if given_up:
                # It is open after all, and nobody knows: nobody else would close it.
                await self._inner.close()

        try:
            await _within(self._connect, opening(), "open", outcome_unknown=False)
        except BaseException:
            given_up = True
            raise

    async def close(self) -> None:
        """Close the wrapped store, or leave it after `attempt` seconds."""
        await _within(self._attempt, self._inner.close(), "close", outcome_unknown=False)

    async def ping(self) -> None:
        """Ask for a sign of life within `connect` seconds."""
        await _within(self._connect, self._inner.ping(), "ping", outcome_unknown=False)


async def _within(
    seconds: float, work: Coroutine[Any, Any, T], operation: str, *, outcome_unknown: bool
) -> T:
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    # By hand what asyncio.wait does for any number of tasks: every call comes through here.
    over: asyncio.Future[None] = loop.create_future()

    def end(_: object = None) -> None:
        if not over.done():
            over.set_result(None)

    task.add_done_callback(end)
    timer = loop.call_later(seconds, end)
    try:
        await over
    except asyncio.CancelledError:
        _abandon(task)
        raise
    finally:
        timer.cancel()
    if task.done():
        try:
            return task.result()
        finally:
            del task  # or an error, its traceback and its task keep each other alive
    _abandon(task)
    raise DeadlineError(
        f"no answer within {seconds:g} s", operation=operation, outcome_unknown=outcome_unknown
    )


def _abandon(task: asyncio.Task[Any]) -> None:
    task.cancel()
    _abandoned.add(task)
    task.add_done_callback(_bury)


def _bury(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        # Nobody waits for it any more. Errors of ours are safe to show, others may hold a body.
        shown = str(error) if isinstance(error, AgentStoreError) else type(error).__name__
        _logger.debug("a call that was given up ended with: %s", shown)
