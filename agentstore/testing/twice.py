"""A wrapper that loses answers, to test what a driver makes of a call that comes again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..stores import Driver
from ..wrappers import Operation, Wrapper

__all__ = ["Twice"]

T = TypeVar("T")


class Twice(Wrapper):
    """Makes every repeatable call twice, as if the first answer had been lost on its way.

    `between` runs after the first attempt at a write: what others do before the second one.
    """

    def __init__(
        self, inner: Driver, *, between: Callable[[Operation], Awaitable[object]] | None = None
    ) -> None:
        super().__init__(inner)
        self.between = between

    async def _invoke(self, operation: Operation, call: Callable[[Driver], Awaitable[T]]) -> T:
        if operation.repeatable:
            await call(self._inner)
            if self.between and operation.writes:
                await self.between(operation)
        return await call(self._inner)
