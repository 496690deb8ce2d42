"""MySQL and MariaDB: `mysql://user:password@host/database`, on SQLAlchemy and aiomysql."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from sqlalchemy import Connection
from sqlalchemy.dialects.mysql.aiomysql import MySQLDialect_aiomysql

from agentstore.driver import key_hash
from agentstore.errors import ClosedError, ConfigurationError, OverloadedError, StoreError
from agentstore.stores import API_VERSION
from agentstore.types import Capabilities, Durability, Limits, Scope
from agentstore.url import URL

from ._mysql_append import MySQLAppends
from ._mysql_errors import NO_TABLE
from ._mysql_pool import MySQLPool
from ._mysql_statements import SingleTrips, Trip
from ._mysql_stores import MySQLConversations, MySQLState
from ._mysql_url import read_url
from ._pooled import Phase
from ._schema import HEAD, is_current, migrate
from ._statements import Statements
from ._tables import Tables

T = TypeVar("T")

_MIB = 1024 * 1024
# What a statement has beside a value: ids, of which there are five at most, and its own text.
_BESIDE = 16 * 1024


class _Server(NamedTuple):
    """What the server says of itself."""

    packet: int
    read_only: int
    durable: int
    strict: int
    schema: str


class MySQLDriver:
    """Conversations and state in MySQL or MariaDB, for any number of processes."""

    api_version = API_VERSION
    durability = Durability.COMMITTED

    def __init__(self, url: URL, **options: Any) -> None:
        self._target, self._options = read_url(url, options)
        dialect = MySQLDialect_aiomysql()
        tables = Tables(self._options.table_prefix, numbers=True)
        self.statements = Statements(tables, dialect)
        self.trips = SingleTrips(self.statements, dialect)
        self.packet = 16 * _MIB
        self._durable = True
        self._pool: MySQLPool | None = None
        self._appends = MySQLAppends(self)

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do; how durable it is and what it takes, its own settings say."""
        durability: Literal["strong", "weak"] = "strong" if self._durable else "weak"
        # A value goes within a statement, where each of its bytes may have to be escaped.
        largest = (self.packet - _BESIDE) // 2
        return Capabilities(
            atomic_batch=True,
            conflict_detection=True,
            compare_and_set=True,
            ttl=True,
            order="commit",
            listing="exact",
            search=False,
            shared=True,
            invalidation=False,
            durability=durability,
            limits=Limits(
                message=largest,
                state=largest,
                metadata=largest // 2,
                depth=400,
                batch=100_000,
                page=100_000,
            ),
        )

    def conversations(self, tenant: str) -> MySQLConversations:
        """Give the conversations of a tenant."""
        return MySQLConversations(self, tenant, self._appends)

    def state(self, tenant: str, scope: Scope) -> MySQLState:
        """Give the state of a scope."""
        return MySQLState(self, tenant, scope)

    async def open(self) -> None:
        """Connect, look whether the server is fit, and bring the schema up to date."""
        self._pool = MySQLPool(self._target, self._options)
        try:
            await self._check()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Send what was handed in, and close the connections."""
        await self._appends.close()
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.close()

    async def ping(self) -> None:
        """Ask for a sign of life."""
        await self.fetch("SELECT 1", (), "read")

    async def fetch(self, text: str, arguments: Sequence[Any], phase: Phase) -> list[Any]:
        """Run one statement, and give its rows."""
        return await self._connected.fetch(text, arguments, phase)

    async def travel(self, trip: Trip, arguments: Sequence[Any]) -> list[Any]:
        """Run statements that write in one round trip, and give the rows of the last."""
        return await self._connected.fetch(
            trip.text, arguments, "write", statements=trip.statements
        )

    async def read(self, job: Callable[[Connection], T]) -> T:
        """Run a job that only reads."""
        return await self._connected.read(job)

    async def write(self, job: Callable[[Connection], T]) -> T:
        """Run a job in a transaction."""
        return await self._connected.write(job)

    @property
    def _connected(self) -> MySQLPool:
        if self._pool is None:
            raise ClosedError("the store is closed", backend="mysql")
        return self._pool

    async def _check(self) -> None:
        """Ask the server what it is; make the tables where it has none, or old ones."""
        found = await self._asked()
        if found is None or found.schema != HEAD:
            await self._connected.write(self._migrate)
            found = await self._asked()
        assert found is not None  # noqa: S101 - the tables were made just now
        if found.read_only:
            raise ConfigurationError("the server takes no writes: name the primary")
        if not found.strict:
            raise ConfigurationError(
                "sql_mode of the engine's connections is not strict, which cuts values to fit: "
                "add STRICT_ALL_TABLES"
            )
        if found.packet < _MIB:
            raise ConfigurationError(
                f"max_allowed_packet of the server is {found.packet}: it has to be {_MIB} at least"
            )
        self.packet, self._durable = found.packet, bool(found.durable)

    async def _asked(self) -> _Server | None:
        try:
            rows = await self.fetch(self.trips.check, (), "read")
        except StoreError as error:
            if error.code != NO_TABLE:
                raise
            return None
        return _Server(*rows[0])

    def _migrate(self, connection: Connection) -> None:
        tables = self.statements.tables
        if not self._options.create_schema:
            if not is_current(connection, tables):
                raise ConfigurationError(
                    f"the tables {tables.prefix}* are missing or old, and create_schema is off: "
                    "run `agentstore migrate` with a user who may change them"
                )
            return
        # Of several processes one does it; the others look again when it is done. Not a lock of
        # the transaction: every statement that makes a table ends that.
        database = connection.exec_driver_sql("SELECT DATABASE()").scalar_one()
        name = f"agentstore {key_hash(database, tables.prefix).hex()[:32]}"
        seconds = round(self._options.statement_timeout)
        taken = connection.exec_driver_sql(f"SELECT GET_LOCK('{name}', {seconds})").scalar()
        if taken != 1:
            raise OverloadedError("another process changes the tables", backend="mysql")
        try:
            if not is_current(connection, tables):
                migrate(connection, tables)
        finally:
            connection.exec_driver_sql(f"SELECT RELEASE_LOCK('{name}')")
