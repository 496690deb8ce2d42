"""Jobs on the pooled connections of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agentstore.driver import translated
from agentstore.errors import AgentStoreError, UnavailableError

T = TypeVar("T")

Phase: TypeAlias = Literal["connect", "read", "write"]
"""The same exception means "unreachable" while connecting, and "unknown outcome" of a write."""

Translate: TypeAlias = Callable[[Exception, Phase], AgentStoreError]


class Pool:
    """Runs jobs on the connections of a SQLAlchemy engine, in a greenlet on the event loop."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        failures: tuple[type[Exception], ...],
        translate: Translate,
    ) -> None:
        self.engine = engine
        # A job that reads is one statement, and that is a snapshot; so it needs no transaction.
        self._reading = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._failures = failures
        self._translate = translate

    async def read(self, job: Callable[[Connection], T]) -> T:
        """Run a job of one statement that only reads."""
        connection = await self.translated(self._reading.connect().start(), "connect")
        return await self._run(connection, lambda: connection.run_sync(job), "read")

    async def write(self, job: Callable[[Connection], T]) -> T:
        """Run a job in a transaction of its own, and commit it."""
        connection = await self.translated(self.engine.connect().start(), "connect")

        async def work() -> T:
            # Said aloud: jobs use the driver's cursors, of which SQLAlchemy knows nothing.
            transaction = await connection.begin()
            result = await connection.run_sync(job)
            await transaction.commit()
            return result

        return await self._run(connection, work, "write")

    async def translated(self, work: Awaitable[T], phase: Phase) -> T:
        """Await what the engine does, and translate what it raises."""
        return await translated(
            work, failures=self._failures, translate=lambda error: self._translate(error, phase)
        )

    async def _run(
        self, connection: AsyncConnection, work: Callable[[], Awaitable[T]], phase: Phase
    ) -> T:
        try:
            return await self.translated(work(), phase)
        except (asyncio.CancelledError, UnavailableError):
            # Half-read or dead: nobody is to have it again, and nothing is to wait for it.
            await discard(connection)
            raise
        finally:
            # It rolls back what was not committed, which can fail as anything else.
            await self.translated(connection.close(), phase)


async def discard(connection: AsyncConnection) -> None:
    """Cut a connection off, and take it out of its pool."""
    pooled = await connection.get_raw_connection()
    if pooled.dbapi_connection is not None:
        # Outside of a greenlet this cuts the connection off, without a word to the server.
        pooled.dbapi_connection.terminate()
    await connection.invalidate()
