"""Jobs on the pooled connections of a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agentstore.driver import translated
from agentstore.errors import AgentStoreError

T = TypeVar("T")

Phase = Literal["connect", "execute"]
"""The same exception means "unreachable" while connecting and "unknown outcome" afterwards."""

Translate = Callable[[Exception, Phase], AgentStoreError]


class Pool:
    """Runs jobs on the connections of a SQLAlchemy engine, in a greenlet on the event loop."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        failures: tuple[type[Exception], ...],
        translate: Translate,
    ) -> None:
        self._engine = engine
        self._failures = failures
        self._translate = translate

    async def read(self, job: Callable[[Connection], T]) -> T:
        """Run a job that only reads, on one snapshot."""
        return await self._run(job, write=False)

    async def write(self, job: Callable[[Connection], T]) -> T:
        """Run a job in a transaction of its own, and commit it."""
        return await self._run(job, write=True)

    async def connection(self) -> AsyncConnection:
        """Take a connection from the pool; a failure here has sent no statement of ours."""
        return await self._translated(self._engine.connect().start(), "connect")

    async def _run(self, job: Callable[[Connection], T], *, write: bool) -> T:
        connection = await self.connection()
        try:
            result = await self._translated(connection.run_sync(job), "execute")
            if write:
                await self._translated(connection.commit(), "execute")
        finally:
            # Rolls back what was not committed, and discards a connection that was cut off.
            await connection.close()
        return result

    async def _translated(self, work: Awaitable[T], phase: Phase) -> T:
        return await translated(
            work, failures=self._failures, translate=lambda error: self._translate(error, phase)
        )
