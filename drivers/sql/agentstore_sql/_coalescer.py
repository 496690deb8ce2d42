"""What waits for the same key at the same time goes out together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")

Outcome: TypeAlias = R | BaseException

Send: TypeAlias = Callable[[K, Sequence[T]], Awaitable[Sequence[Outcome[R]]]]
"""Sends what goes together, and says what became of each."""


@dataclass(slots=True)
class _Waiting(Generic[T, R]):
    item: T
    # Resolved with an outcome always: an error set here could be one that futures refuse.
    answer: asyncio.Future[Outcome[R]]


class Coalescer(Generic[K, T, R]):
    """Has at most one batch of each key under way; different keys go in parallel.

    Who comes first sends his item himself, alone, without the turns on the loop that a task takes.
    Those who come meanwhile are sent by a task, so that no caller who is cancelled cancels his
    neighbours; what of theirs was not sent yet is dropped.
    """

    def __init__(self, send: Send[K, T, R], *, together: Callable[[Sequence[T]], int]) -> None:
        self._send = send
        # How many of those that wait, from the first on, may be one batch.
        self._together = together
        self._queues: dict[K, list[_Waiting[T, R]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()

    async def put(self, key: K, item: T) -> R:
        """Send an item, alone or with others, and give what became of it."""
        queue = self._queues.get(key)
        if queue is None:
            outcome = await self._send_first(key, item)
        else:
            waiting = _Waiting[T, R](item, asyncio.get_running_loop().create_future())
            queue.append(waiting)
            outcome = await waiting.answer
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Wait until everything is sent that was handed in."""
        while self._queues:
            self._ended.clear()
            await self._ended.wait()

    async def _send_first(self, key: K, item: T) -> Outcome[R]:
        queue = self._queues[key] = []
        try:
            (outcome,) = await self._send(key, [item])
        finally:
            if queue:
                task = asyncio.get_running_loop().create_task(self._send_waiting(key, queue))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._end(key)
        return outcome

    async def _send_waiting(self, key: K, queue: list[_Waiting[T, R]]) -> None:
        batch: list[_Waiting[T, R]] = []
        try:
            while batch := self._next(queue):
                outcomes = await self._outcomes(key, [one.item for one in batch])
                for one, outcome in zip(batch, outcomes, strict=True):
                    if not one.answer.done():
                        one.answer.set_result(outcome)
        finally:
            self._end(key)
            # Only where this task itself was cancelled, as a program does that ends.
            for one in (*batch, *queue):
                one.answer.cancel()

    def _next(self, queue: list[_Waiting[T, R]]) -> list[_Waiting[T, R]]:
        wanted = [one for one in queue if not one.answer.done()]
        count = self._together([one.item for one in wanted]) if wanted else 0
        queue[:] = wanted[count:]
        return wanted[:count]

    async def _outcomes(self, key: K, items: Sequence[T]) -> Sequence[Outcome[R]]:
        try:
            return await self._send(key, items)
        except Exception as error:  # noqa: BLE001 - it goes to the callers
            return [error] * len(items)

    def _end(self, key: K) -> None:
        del self._queues[key]
        self._ended.set()
