"""How the driver gets its tables on MySQL, in whose database and with whose engine."""

from __future__ import annotations

import asyncio
import sys
from importlib.abc import MetaPathFinder
from urllib.parse import quote, urlsplit

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import create_async_engine

from agentstore import Message, connect
from agentstore.errors import ConfigurationError, MissingDependencyError
from agentstore.url import URL
from agentstore_sql import MySQLDriver, Tables
from servers import PASSWORD, MariaDB, ask

pytestmark = pytest.mark.asyncio


class _Without(MetaPathFinder):
    """Imports everything but one package, as if it were not installed."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self._package)


def say(text: str) -> Message:
    return Message(role="user", content=text)


async def opened(url: str, **options: object) -> MySQLDriver:
    driver = MySQLDriver(URL.parse(url), **options)
    await driver.open()
    return driver


async def test_many_at_once_make_the_tables_once(mariadb_url: str) -> None:
    """Of twenty that open a new database at the same time, one makes the tables."""
    drivers = await asyncio.gather(*(opened(mariadb_url, pool_size=1) for _ in range(20)))
    for driver in drivers:
        await driver.close()
    assert ask(mariadb_url, "SELECT version_num FROM agentstore_version") == "0001"


async def test_user_without_rights_on_tables(mysql_url: str, mariadb: MariaDB) -> None:
    """With the tables there, a user who may not change them is enough; without, it is told."""
    name = urlsplit(mysql_url).path[1:]
    mariadb.ask(
        f"CREATE OR REPLACE USER app@'%' IDENTIFIED BY '{PASSWORD}';"
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{name}`.* TO app@'%'"
    )
    place = f"app:{quote(PASSWORD, safe='')}@127.0.0.1:{mariadb.port}/{name}"
    async with connect(f"mysql://{place}?create_schema=false") as database:
        await database.conversations.append("s", [say("x")])
        assert len(await database.conversations.read("s")) == 1
    with pytest.raises(ConfigurationError, match="agentstore migrate"):
        await opened(f"mysql://{place}?create_schema=false&table_prefix=other_")


async def test_prefixes_keep_stores_apart(mysql_url: str) -> None:
    """Two stores with different prefixes in one database know nothing of each other."""
    async with (
        connect(mysql_url) as one,
        connect(mysql_url, table_prefix="other_", connect_timeout=30) as other,
    ):
        await one.conversations.append("s", [say("one")])
        await other.conversations.append("s", [say("other")])
        (message,) = await other.conversations.read("s")
        assert message.content == "other"
        assert (await other.state.app().put("k", 1)).version > 0


@pytest.mark.parametrize("client", ["mysql+aiomysql", "mysql+asyncmy", "mariadb+aiomysql"])
async def test_engine_of_the_application(client: str, mysql_url: str) -> None:
    """An engine that is handed in is used with its own settings, and is left open."""
    engine = create_async_engine(
        urlsplit(mysql_url)._replace(scheme=client, query="charset=utf8mb4").geturl(),
        # As the application likes it: the opposite of ours.
        isolation_level="SERIALIZABLE",
    )
    tables = Tables(numbers=True)
    async with connect("mysql://", engine=engine) as database:
        for text in ("\u00e9", "e\u0301"):
            await database.conversations.append(text, [say(text), say("more")])
            await database.conversations.append(text, [say("and more")])
        assert [one.seq for one in await database.conversations.read("\u00e9")] == [1, 2, 3]
        assert await database.conversations.rewind("\u00e9", to=1) == 2
        assert (await database.state.app().put("k", 1)).version > 0
        async with engine.connect() as connection:
            ids = (await connection.execute(select(tables.sessions.c.session_id))).scalars()
            assert sorted(ids) == sorted(["\u00e9", "e\u0301"])
            count = select(func.count()).where(tables.sessions.c.session_id == "\u00e9")
            assert await connection.scalar(count) == 1
    async with engine.connect() as connection:
        assert await connection.scalar(select(1)) == 1
    await engine.dispose()


async def test_engine_that_cuts_values(mysql_url: str) -> None:
    """An engine whose connections aren't strict is refused: the server would cut values to fit."""
    engine = create_async_engine(
        urlsplit(mysql_url)._replace(scheme="mysql+aiomysql").geturl(),
        connect_args={"init_command": "SET sql_mode = ''"},
    )
    with pytest.raises(ConfigurationError, match="STRICT_ALL_TABLES"):
        await opened("mysql://", engine=engine)
    await engine.dispose()


async def test_what_the_server_says_of_itself() -> None:
    """Durability and limits are the server's: its settings are looked at when it is opened."""
    settings = {"innodb_flush_log_at_trx_commit": 2, "max_allowed_packet": 4 * 1024 * 1024}
    with MariaDB(fsync=False, **settings) as server:
        driver = await opened(server.url)
        assert driver.capabilities.durability == "weak"
        assert 1_900_000 < driver.capabilities.limits.message < 2 * 1024 * 1024
        await driver.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://u:p@localhost/d?ssl_mod=DISABLED", "ssl_mode"),
        ("mysql://u:p@localhost/d?pool_sise=3", "pool_size"),
        ("mysql://u:p@localhost/d?pool_size=0", "pool_size is 0"),
        ("mysql://u:p@localhost/d?pool_size=many", "pool_size"),
        ("mysql://u:p@localhost:x/d", "port"),
        ("mysql://u:p@one,two/d", "one host"),
        ("mysql://u:p@localhost", "names no database"),
        ("mysql://u:p@localhost/d?table_prefix=A;B", "table_prefix"),
        ("mysql://u:p@localhost/d?unix_socket=/s&ssl_mode=REQUIRED", "unix_socket"),
    ],
)
async def test_urls_that_are_refused(url: str, said: str) -> None:
    """A URL that can't mean what it says is refused before anything is sent."""
    with pytest.raises(ConfigurationError, match=said):
        MySQLDriver(URL.parse(url))


async def test_hot_statements_use_their_index(mysql_url: str) -> None:
    """Every statement of a hot call enters by the index that is meant for it."""
    driver = await opened(mysql_url)
    conversations = driver.conversations("")
    for place in range(20):
        messages = [say("x") for _ in range(100)]
        await conversations.append(f"s{place}", messages, user_id=f"u{place % 7}")
    found = {"tenant": "", "limit": 20}
    slices = {"after": 0, "before": 1 << 60, "session_id": "s1", **found}
    newest = {"updated_at": 1 << 60, "behind": "", **found}
    by_id = {"start": "s", "behind": "", "stop": "t", **found}
    expected = {
        "find": (driver.statements.find.call(session_id="s1", tenant=""), "agentstore_sessions_id"),
        "window": (driver.statements.slices[False, True].call(**slices), "PRIMARY"),
        "newest": (driver.statements.newest[False].call(**newest), "agentstore_sessions_newest"),
        "of a user": (
            driver.statements.newest[True].call(user_id="u1", **newest),
            "agentstore_sessions_user",
        ),
        "by id": (driver.statements.by_id[False].call(**by_id), "agentstore_sessions_id"),
    }
    used = {}
    for name, ((text, arguments), _) in expected.items():
        rows = await driver.fetch(f"EXPLAIN {text}", arguments, "read")
        used[name] = (rows[0][5], rows[0][9])
    await driver.close()
    for name, (_, index) in expected.items():
        key, extra = used[name]
        assert (name, key) == (name, index)
        assert "filesort" not in extra, name


@pytest.mark.parametrize(
    ("client", "extra"), [("aiomysql", "mysql"), ("pymysql", "mysql"), ("asyncmy", "asyncmy")]
)
async def test_client_that_is_missing(
    client: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its client, the driver says what to install."""
    for name in [name for name in sys.modules if name.startswith("agentstore_sql._mysql_a")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == client]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Without(client), *sys.meta_path])
    scheme = "mysql+asyncmy" if client == "asyncmy" else "mysql"
    with pytest.raises(MissingDependencyError, match=rf"agentstore-sql\[{extra}\]"):
        await opened(f"{scheme}://u:p@localhost/d")
