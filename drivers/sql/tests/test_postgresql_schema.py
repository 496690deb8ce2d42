"""The tables on PostgreSQL: made once, by whoever may, where they are wanted."""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import quote, urlsplit

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from postgresql_fixtures import asked
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from agentstore import Message, connect
from agentstore.errors import AuthenticationError, ConfigurationError
from agentstore_sql import Tables
from servers import PASSWORD, PostgreSQL

pytestmark = pytest.mark.asyncio

_TABLES = (
    "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = {}::regnamespace"
)

_PROCESS = """
import asyncio, sys
from agentstore import Message, connect

async def main():
    async with connect(sys.argv[1], connect_timeout=110) as database:
        await database.conversations.append("s", [Message(role="user", content=sys.argv[2])])

asyncio.run(main())
"""


async def _tables(url: str, schema: str = "public") -> list[object]:
    (rows,) = await asked(url, _TABLES.format(f"'{schema}'"))
    return sorted(name for (name,) in rows)


@pytest.mark.timeout(150)  # they share few cores
async def test_twenty_processes_at_once(postgresql_empty_url: str) -> None:
    """Twenty processes that begin on an empty database make its tables once."""
    command = [sys.executable, "-c", _PROCESS, postgresql_empty_url]
    processes = [await asyncio.create_subprocess_exec(*command, str(n)) for n in range(20)]
    try:
        async with asyncio.timeout(120):
            assert [await process.wait() for process in processes] == [0] * 20
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
    async with connect(postgresql_empty_url) as database:
        stored = await database.conversations.read("s")
        assert sorted(int(message.text) for message in stored) == list(range(20))
        assert [message.seq for message in stored] == list(range(1, 21))
    assert await asked(postgresql_empty_url, "SELECT * FROM agentstore_version") == [[("0001",)]]


async def test_role_without_ddl(postgresql_empty_url: str, postgresql_server: PostgreSQL) -> None:
    """A role that may not make tables works on those that another made, and says so otherwise."""
    url = postgresql_empty_url
    await asked(url, "CREATE SCHEMA plain")
    postgresql_server.ask(f"CREATE ROLE plain LOGIN PASSWORD '{PASSWORD}'")
    split = urlsplit(url)
    host = split.netloc.rpartition("@")[2]
    mine = split._replace(netloc=f"plain:{quote(PASSWORD, safe='')}@{host}").geturl()
    await asked(url, "GRANT USAGE ON SCHEMA plain TO plain")

    with pytest.raises(ConfigurationError, match="agentstore migrate"):
        async with connect(f"{mine}?schema=plain&create_schema=false"):
            pass
    with pytest.raises(AuthenticationError):
        async with connect(f"{mine}?schema=plain"):
            pass
    async with connect(f"{url}?schema=plain"):
        pass
    await asked(
        url,
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA plain TO plain",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA plain TO plain",
    )
    async with connect(f"{mine}?schema=plain&create_schema=false") as database:
        await database.conversations.append("s", [Message(role="user", content="x")])
        await database.state.app().put("k", 1)
        await database.conversations.delete("s")


async def test_schema_and_prefix(postgresql_empty_url: str) -> None:
    """Tables of several stores stand side by side, in schemas and under prefixes of their own."""
    url = postgresql_empty_url
    await asked(url, "CREATE SCHEMA chat")
    async with (
        connect(url) as plain,
        connect(url, schema="chat") as schema,
        connect(url, schema="chat", table_prefix="bot_") as prefix,
    ):
        stores = {"plain": plain, "schema": schema, "prefix": prefix}
        for name, store in stores.items():
            await store.conversations.append("s", [Message(role="user", content=name)])
            put = await store.state.app().put("k", name)
            assert put.version == 1
        for name, store in stores.items():
            assert [one.text for one in await store.conversations.read("s")] == [name]
            assert await store.conversations.delete("s") is True
    names = ["messages", "sessions", "state", "version"]
    assert await _tables(url) == [f"agentstore_{name}" for name in names]
    assert await _tables(url, "chat") == [
        *(f"agentstore_{name}" for name in names),
        *(f"bot_{name}" for name in names),
    ]


@pytest.mark.parametrize("name", ["Bot", "bot;", "1bot", "b" * 41, "", "a b", 'b"'])
async def test_hostile_prefix(postgresql_url: str, name: str) -> None:
    """A prefix or a schema that is no plain name is refused."""
    for option in ("table_prefix", "schema"):
        with pytest.raises(ConfigurationError, match=option):
            async with connect(postgresql_url, **{option: name}):
                pass


async def test_missing_schema(postgresql_empty_url: str) -> None:
    """A schema that isn't there is an error of configuration."""
    with pytest.raises(ConfigurationError):
        async with connect(postgresql_empty_url, schema="nowhere"):
            pass


async def test_newer_version_is_refused(postgresql_url: str) -> None:
    """Tables of a later version are left alone, and the error says what to do."""
    await asked(postgresql_url, "UPDATE agentstore_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match="9999.*upgrade"):
        async with connect(postgresql_url):
            pass


@pytest.mark.parametrize("schema", [None, "chat"])
async def test_migrations_make_what_the_code_expects(
    postgresql_empty_url: str, schema: str | None
) -> None:
    """Alembic finds no difference between the tables that were made and those of the code."""
    await asked(postgresql_empty_url, "CREATE SCHEMA chat")
    async with connect(postgresql_empty_url, schema=schema):
        pass
    tables = Tables(schema=schema, sequences=True)

    def differences(connection: Connection) -> object:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_schemas": schema is not None,
                "version_table": tables.version,
                "version_table_schema": schema,
            },
        )
        return compare_metadata(context, tables.metadata)

    engine = create_async_engine(
        postgresql_empty_url.replace("postgresql://", "postgresql+asyncpg://"),
        connect_args={"ssl": False},
    )
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_ids_are_compared_by_their_bytes(postgresql_url: str) -> None:
    """Each column of ids has the collation of bytes, whatever the database's own is."""
    query = """
        SELECT DISTINCT collname::text FROM pg_attribute JOIN pg_collation c ON c.oid = attcollation
        WHERE attrelid::regclass::text LIKE 'agentstore_%' AND attname IN
          ('tenant', 'session_id', 'user_id', 'agent', 'id', 'owner', 'key')
    """
    assert await asked(postgresql_url, query) == [[("C",)]]


async def test_appends_are_hot(postgresql_url: str) -> None:
    """An append changes its session's row within its page, and none of its indexes."""
    async with connect(postgresql_url) as database:
        for _ in range(50):
            await database.conversations.append("s", [Message(role="user", content="x")])
    query = """
        SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables
        WHERE relname = 'agentstore_sessions'
    """
    for _ in range(100):
        ((updates, hot),) = (await asked(postgresql_url, query))[0]
        if updates == 49:
            break
        await asyncio.sleep(0.05)
    assert (updates, hot) == (49, 49)


async def test_engine_that_was_handed_in(postgresql_url: str) -> None:
    """An engine of the application's serves the store, and is open afterwards."""
    engine = create_async_engine(
        postgresql_url.replace("postgresql://", "postgresql+asyncpg://"),
        connect_args={"ssl": False},
    )
    async with connect("postgresql://", engine=engine) as database:
        await database.conversations.append("s", [Message(role="user", content="x")])
        await database.conversations.rewind("s", to=0)
    assert engine.pool.checkedin() > 0  # type: ignore[attr-defined]  # the queue's
    async with engine.connect() as connection:
        count = await connection.exec_driver_sql("SELECT count(*) FROM agentstore_sessions")
        assert count.scalar() == 1
    await engine.dispose()


async def test_durability_is_asked_for(postgresql_url: str) -> None:
    """A database that doesn't wait for its disk makes the store say so."""
    async with connect(postgresql_url) as database:
        assert database.capabilities.durability == "strong"
    name = urlsplit(postgresql_url).path[1:]
    await asked(postgresql_url, f"ALTER DATABASE {name} SET synchronous_commit = off")
    async with connect(postgresql_url) as database:
        assert database.capabilities.durability == "weak"


async def test_database_of_another_encoding(postgresql_server: PostgreSQL) -> None:
    """A database that can't hold every character is refused."""
    postgresql_server.ask(
        "CREATE DATABASE latin OWNER agentstore TEMPLATE template0 ENCODING LATIN1 "
        "LOCALE 'C' LOCALE_PROVIDER libc;"
    )
    url = urlsplit(postgresql_server.url)._replace(path="/latin").geturl()
    with pytest.raises(ConfigurationError, match="LATIN1"):
        async with connect(url):
            pass
