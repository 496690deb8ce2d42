"""PostgreSQL: `postgresql://user:password@host/database`, on SQLAlchemy and asyncpg."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from agentstore.driver import key_hash
from agentstore.errors import ClosedError, ConfigurationError, StoreError
from agentstore.stores import API_VERSION
from agentstore.types import Capabilities, Durability, Limits, Scope
from agentstore.url import URL

from ._pooled import Phase
from ._postgresql_append import PostgreSQLAppends
from ._postgresql_conversations import PostgreSQLConversations
from ._postgresql_pool import PostgreSQLPool
from ._postgresql_state import PostgreSQLState
from ._postgresql_statements import SingleStatements
from ._postgresql_url import read_url
from ._schema import HEAD, is_current, migrate
from ._statements import Statements
from ._tables import Tables

T = TypeVar("T")

_LARGEST = 1 << 28

_NO_TABLE = "42P01"


class PostgreSQLDriver:
    """Conversations and state in PostgreSQL, for any number of processes."""

    api_version = API_VERSION
    durability = Durability.COMMITTED

    def __init__(self, url: URL, **options: Any) -> None:
        self._target, self._options = read_url(url, options)
        tables = Tables(self._options.table_prefix, schema=self._options.schema, sequences=True)
        dialect = PGDialect_asyncpg()  # type: ignore[no-untyped-call]
        self.statements = Statements(tables, dialect)
        self.single = SingleStatements(self.statements, dialect)
        self._durable = True
        self._pool: PostgreSQLPool | None = None
        self._appends = PostgreSQLAppends(self)

    @property
    def capabilities(self) -> Capabilities:
        """What PostgreSQL can do; how durable it is, its own settings say."""
        durability: Literal["strong", "weak"] = "strong" if self._durable else "weak"
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
                message=_LARGEST,
                state=_LARGEST,
                metadata=_LARGEST,
                depth=400,
                batch=100_000,
                page=100_000,
            ),
        )

    def conversations(self, tenant: str) -> PostgreSQLConversations:
        """Give the conversations of a tenant."""
        return PostgreSQLConversations(self, tenant, self._appends)

    def state(self, tenant: str, scope: Scope) -> PostgreSQLState:
        """Give the state of a scope."""
        return PostgreSQLState(self, tenant, scope)

    async def open(self) -> None:
        """Connect, look whether the server is fit, and bring the schema up to date."""
        self._pool = PostgreSQLPool(self._target, self._options)
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
        """Run one statement in one round trip, and give its rows."""
        return await self._connected.fetch(text, arguments, phase)

    async def read(self, job: Callable[[Connection], T]) -> T:
        """Run a job that only reads."""
        return await self._connected.read(job)

    async def write(self, job: Callable[[Connection], T]) -> T:
        """Run a job in a transaction."""
        return await self._connected.write(job)

    @property
    def _connected(self) -> PostgreSQLPool:
        if self._pool is None:
            raise ClosedError("the store is closed", backend="postgresql")
        return self._pool

    async def _check(self) -> None:
        """Ask the server what it is; make the tables where it has none, or old ones."""
        found = await self._asked()
        if found is None or found[3] != HEAD:
            await self._migrate()
            found = await self._asked()
        assert found is not None  # noqa: S101 - the tables were made just now
        encoding, read_only, self._durable, _ = found
        if encoding != "UTF8":
            raise ConfigurationError(f"the database's encoding is {encoding}: make one with UTF8")
        if read_only:
            raise ConfigurationError(
                "the server takes no writes: name the primary, or all hosts and "
                "target_session_attrs=read-write"
            )

    async def _asked(self) -> tuple[str, bool, bool, str] | None:
        try:
            rows = await self.fetch(self.single.check, (), "read")
        except StoreError as error:
            if error.code != _NO_TABLE:
                raise
            return None
        return tuple(rows[0])

    async def _migrate(self) -> None:
        tables = self.statements.tables
        lock = int.from_bytes(key_hash(tables.schema or "", tables.prefix)[:8], signed=True)

        def job(connection: Connection) -> None:
            if not self._options.create_schema:
                if not is_current(connection, tables):
                    raise ConfigurationError(
                        f"the tables {tables.prefix}* are missing or old, and create_schema is "
                        "off: run `agentstore migrate` with a role that may change them"
                    )
                return
            # Of several processes one does it; the others look again when it is done.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({lock})")
            if not is_current(connection, tables):
                migrate(connection, tables)

        await self._connected.write(job)
