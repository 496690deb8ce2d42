"""Connections to MySQL: SQLAlchemy's pool of them, and single round trips beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from importlib import import_module
from math import ceil
from typing import Any, TypeVar

from sqlalchemy import Connection, PoolProxiedConnection, event
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only, greenlet_spawn

from agentstore.errors import AgentStoreError, MissingDependencyError, StoreError, UnavailableError

from ._mysql_errors import READ_ONLY, translate
from ._mysql_url import Client, Options, Target
from ._pooled import Phase, Pool, discard

T = TypeVar("T")

BEGIN = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;BEGIN"
"""How a transaction begins, on a connection of anybody's.

REPEATABLE READ, which is the server's default, locks the gaps between rows as well: appends to
different sessions then end one another as deadlocks.
"""

_NEEDED = {"aiomysql": ("aiomysql", "pymysql"), "asyncmy": ("asyncmy",)}
_FOUND_ROWS = 2  # as SQLAlchemy has it: an UPDATE counts the rows that it found


class MySQLPool(Pool):
    """A pool of its own, or one over an engine that was handed in and is left alone."""

    def __init__(self, target: Target, options: Options) -> None:
        self._own = options.engine is None
        engine = _engine(target, options) if options.engine is None else options.engine
        failures = (
            engine.dialect.loaded_dbapi.Error,
            DBAPIError,
            PoolTimeoutError,
            OSError,  # and with it those of timeouts
        )
        super().__init__(engine, failures=failures, translate=translate)
        # The server's own limit comes first: its answer leaves the connection usable.
        self._patience = options.statement_timeout + 1

    async def close(self) -> None:
        """Close the connections, unless somebody else opened them."""
        if self._own:
            await self.engine.dispose()

    async def fetch(
        self, text: str, arguments: Sequence[Any], phase: Phase, *, statements: int = 1
    ) -> list[Any]:
        """Run one or several statements in one round trip, and give the rows of the last.

        Both clients allow several always.
        """
        pooled = await self.translated(
            greenlet_spawn(self.engine.sync_engine.raw_connection), "connect"
        )

        def work() -> list[Any]:
            cursor = pooled.cursor()
            cursor.execute(text, arguments)
            for _ in range(statements - 1):
                cursor.nextset()
            return list(cursor.fetchall())

        try:
            return await self._patiently(greenlet_spawn(work), phase)
        except (asyncio.CancelledError, UnavailableError) as error:
            # Half-read or dead: nobody is to have it again, and nothing is to wait for it.
            connection: Any = pooled.driver_connection
            connection.close()
            await greenlet_spawn(pooled.invalidate)
            await self._moved(error)
            raise
        except AgentStoreError:
            # One of several failed; those before it have no end.
            if statements > 1:
                await self._patiently(greenlet_spawn(pooled.rollback), "read")
            raise
        finally:
            await greenlet_spawn(pooled.close)

    async def write(self, job: Callable[[Connection], T]) -> T:
        """Run a job in a transaction of its own, and commit it."""
        connection = await self.translated(self.engine.connect().start(), "connect")

        async def work() -> T:
            await connection.begin()
            await connection.exec_driver_sql(BEGIN)
            return await connection.run_sync(job)

        async def commit() -> None:
            await connection.commit()

        try:
            # What is lost before the commit was sent is undone for certain: nothing is unknown.
            result = await self._patiently(work(), "read")
            await self._patiently(commit(), "write")
        except (asyncio.CancelledError, UnavailableError) as error:
            await discard(connection)
            await self._moved(error)
            raise
        else:
            return result
        finally:
            await self._patiently(connection.close(), "read")

    async def _patiently(self, work: Awaitable[T], phase: Phase) -> T:
        """Await an answer, but not for ever: the clients themselves would."""

        async def limited() -> T:
            async with asyncio.timeout(self._patience):
                return await work

        return await self.translated(limited(), phase)

    async def _moved(self, error: BaseException) -> None:
        """After a failover connect anew, to whoever is the primary now."""
        if self._own and isinstance(error, StoreError) and error.code in READ_ONLY:
            await self.engine.dispose()


def _engine(target: Target, options: Options) -> AsyncEngine:
    make = _client(target.client)
    arguments = target.arguments() | {
        "charset": "utf8mb4",
        "client_flag": _FOUND_ROWS,
        "autocommit": True,
    }

    async def connect(*_: object, **__: object) -> Any:  # noqa: ANN401 - either client's
        # The clients' own limits are of less than all of connecting.
        async with asyncio.timeout(options.connect_timeout):
            connection = make(**arguments)
            await connection.open()
            try:
                connection.packet = await _set_up(connection, options.statement_timeout)
            except BaseException:
                connection.close()
                raise
        return connection

    engine = create_async_engine(
        f"mysql+{target.client}://",
        connect_args={"async_creator_fn": connect},
        pool_size=options.pool_size,
        max_overflow=options.max_overflow,
        pool_timeout=options.pool_timeout,
        pool_recycle=round(options.pool_recycle),
        # Outside of a transaction there is nothing to undo, and a job ends its own.
        pool_reset_on_return=None,
        pool_use_lifo=True,
        hide_parameters=True,
    )
    _check_idle(engine, options)
    return engine


def _client(name: Client) -> Any:  # noqa: ANN401 - a class of either client's
    """Import a client, which need not be installed."""
    try:
        return import_module(f"._mysql_{name}", __package__).Connection
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED[name]:
            raise
        extra = "mysql" if name == "aiomysql" else name
        raise MissingDependencyError(
            f"{error.name} is not installed: run pip install 'agentstore-sql[{extra}]'"
        ) from None


async def _set_up(connection: Any, seconds: float) -> int:  # noqa: ANN401 - either client's
    """Bring a connection into the state that the statements expect; gives its largest packet."""
    limit = f"max_execution_time = {round(seconds * 1000)}"
    if "mariadb" in connection.get_server_info().lower():
        limit = f"max_statement_time = {seconds}"
    settings = (
        f"SET SESSION sql_mode = 'STRICT_ALL_TABLES', {limit}, "
        f"innodb_lock_wait_timeout = {max(1, ceil(seconds))};SELECT @@max_allowed_packet"
    )
    async with connection.cursor() as cursor:
        await cursor.execute(settings)
        await cursor.nextset()
        ((packet,),) = await cursor.fetchall()
    return int(packet)


def _check_idle(engine: AsyncEngine, options: Options) -> None:
    """Look at a connection before it is used again: the clients know of most that are dead.

    One that was idle for long may be dead without a word, behind a firewall that forgot it: that
    one is asked. Asking each time would double the round trips.
    """

    def checkin(_: object, record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's
        record.info["idle since"] = time.monotonic()

    def checkout(adapted: Any, record: Any, _: PoolProxiedConnection) -> None:  # noqa: ANN401
        connection = adapted.driver_connection
        idle = time.monotonic() - record.info.get("idle since", time.monotonic())
        if connection.is_dead or (
            idle > options.pool_check
            and not await_only(_answers(engine, connection, options.connect_timeout))
        ):
            raise DisconnectionError

    event.listen(engine.sync_engine, "checkin", checkin)
    event.listen(engine.sync_engine, "checkout", checkout)


async def _answers(engine: AsyncEngine, connection: Any, seconds: float) -> bool:  # noqa: ANN401
    with suppress(engine.dialect.loaded_dbapi.Error, OSError):
        async with asyncio.timeout(seconds):
            await connection.ping(reconnect=False)
            return True
    connection.close()
    return False
