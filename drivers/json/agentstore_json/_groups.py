"""Group commit: what waits for the same thing at the same time is done together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
A = TypeVar("A")
R = TypeVar("R")


class Groups(Generic[K, A, R]):
    """Calls by key: while those of one group are carried out, the next ones gather.

    `work` gives for each call of a group its result or its error.
    A call that has begun is carried out even if its caller is cancelled meanwhile; one that has
    not is dropped.
    """

    def __init__(
        self, work: Callable[[K, Sequence[A]], asyncio.Future[Sequence[R | Exception]]]
    ) -> None:
        self._work = work
        self._waiting: dict[K, list[tuple[A, asyncio.Future[R]]]] = {}
        # Futures and not tasks: those are cancelled by whoever cancels all there are.
        self._under_way: dict[K, asyncio.Future[Sequence[R | Exception]]] = {}

    async def call(self, key: K, argument: A) -> R:
        """Make one call."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append((argument, answer))
        if key not in self._under_way:
            self._begin(key)
        return await answer

    async def close(self) -> None:
        """Carry out all that was asked for."""
        while self._under_way:
            await asyncio.wait(self._under_way.values())

    def _begin(self, key: K) -> None:
        group = [one for one in self._waiting.pop(key, ()) if not one[1].done()]
        if group:
            self._under_way[key] = self._work(key, [argument for argument, _ in group])
            self._under_way[key].add_done_callback(partial(self._end, key, group))

    def _end(
        self,
        key: K,
        group: Sequence[tuple[A, asyncio.Future[R]]],
        done: asyncio.Future[Sequence[R | Exception]],
    ) -> None:
        del self._under_way[key]
        failure = done.exception()
        outcomes = done.result() if failure is None else [failure] * len(group)
        for (_, answer), outcome in zip(group, outcomes, strict=True):
            if answer.done():
                continue
            if isinstance(outcome, BaseException):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)
        self._begin(key)
