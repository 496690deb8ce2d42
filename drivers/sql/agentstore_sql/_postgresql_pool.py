"""Connections to PostgreSQL: SQLAlchemy's pool of them, and single statements beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import PoolProxiedConnection, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.util import await_only, greenlet_spawn

from agentstore.errors import StoreError, UnavailableError

from ._pooled import Phase, Pool
from ._postgresql_errors import FAILURES, READ_ONLY, translate
from ._postgresql_url import Options, Target

T = TypeVar("T")


class PostgreSQLPool(Pool):
    """A pool of its own, or one over an engine that was handed in and is left alone."""

    def __init__(self, target: Target, options: Options) -> None:
        self._own = options.engine is None
        engine = _engine(target, options) if options.engine is None else options.engine
        super().__init__(engine, failures=FAILURES, translate=translate)

    async def close(self) -> None:
        """Close the connections, unless somebody else opened them."""
        if self._own:
            await self.engine.dispose()

    async def fetch(self, text: str, arguments: Sequence[Any], phase: Phase) -> list[Any]:
        """Run one statement by itself, in one round trip, on asyncpg's own connection."""
        pooled = await self.translated(
            greenlet_spawn(self.engine.sync_engine.raw_connection), "connect"
        )
        connection: asyncpg.Connection = pooled.driver_connection
        try:
            return await self.translated(connection.fetch(text, *arguments), phase)
        except (asyncio.CancelledError, UnavailableError) as error:
            # Half-read or dead: nobody is to have it again, and nothing is to wait for it.
            connection.terminate()
            await greenlet_spawn(pooled.invalidate)
            await self._moved(error)
            raise
        finally:
            await greenlet_spawn(pooled.close)

    async def _run(
        self, connection: AsyncConnection, work: Callable[[], Awaitable[T]], phase: Phase
    ) -> T:
        try:
            return await super()._run(connection, work, phase)
        except UnavailableError as error:
            await self._moved(error)
            raise

    async def _moved(self, error: BaseException) -> None:
        """After a failover connect anew, to whoever is the primary now."""
        if self._own and isinstance(error, StoreError) and error.code == READ_ONLY:
            await self.engine.dispose()


def _engine(target: Target, options: Options) -> AsyncEngine:
    arguments = target.arguments() | {
        "timeout": options.connect_timeout,
        # The server's own limit comes first: its answer leaves the connection usable.
        "command_timeout": options.statement_timeout + 1,
        "target_session_attrs": options.target_session_attrs
        or ("read-write" if len(target.hosts) > 1 else None),
    }
    names: dict[str, Any] = {}
    if options.pgbouncer:
        # The next statement may find itself on another server: nothing may be left on one.
        arguments["statement_cache_size"] = 0
        names = {
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: "",
        }
    else:
        arguments["server_settings"] = {
            "application_name": options.application_name,
            "statement_timeout": str(round(options.statement_timeout * 1000)),
            # Every statement of ours has an index to enter by. Of a table without statistics, as a
            # new one is, the server thinks otherwise, and keeps the plan.
            "enable_bitmapscan": "off",
            "enable_seqscan": "off",
        }

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(**arguments)

    engine = create_async_engine(
        "postgresql+asyncpg://",
        connect_args={"async_creator_fn": connect, **names},
        pool_size=options.pool_size,
        max_overflow=options.max_overflow,
        pool_timeout=options.pool_timeout,
        pool_recycle=round(options.pool_recycle),
        pool_use_lifo=True,
        hide_parameters=True,
    )
    _check_idle(engine, options)
    return engine


def _check_idle(engine: AsyncEngine, options: Options) -> None:
    """Look at a connection before it is used again: asyncpg knows of most that are dead.

    One that was idle for long may be dead without a word, behind a firewall that forgot it: that
    one is asked. Asking each time would double the round trips.
    """

    def checkin(_: object, record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's
        record.info["idle since"] = time.monotonic()

    def checkout(adapted: Any, record: Any, _: PoolProxiedConnection) -> None:  # noqa: ANN401
        connection: asyncpg.Connection = adapted.driver_connection
        idle = time.monotonic() - record.info.get("idle since", time.monotonic())
        if connection.is_closed() or (
            idle > options.pool_check
            and not await_only(_answers(connection, options.connect_timeout))
        ):
            raise DisconnectionError

    event.listen(engine.sync_engine, "checkin", checkin)
    event.listen(engine.sync_engine, "checkout", checkout)


async def _answers(connection: asyncpg.Connection, seconds: float) -> bool:
    try:
        await connection.execute("SELECT 1", timeout=seconds)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        connection.terminate()
        return False
    return True
