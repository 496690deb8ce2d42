"""URLs of PostgreSQL, as people have them."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from agentstore import Message, connect
from agentstore.errors import ConfigurationError
from agentstore.url import URL
from agentstore_sql import PostgreSQLDriver
from agentstore_sql._postgresql_url import Target, read_url
from servers import PostgreSQL


def target(text: str, **options: Any) -> Target:
    return read_url(URL.parse(text), options)[0]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_parts(scheme: str) -> None:
    """A URL names its parts, and escapes what would end them."""
    found = target(f"{scheme}://us%40er:p%40ss%2Fw%3Ard@db.example:6432/my%20db")
    assert (found.user, found.password) == ("us@er", "p@ss/w:rd")
    assert (found.hosts, found.ports, found.database) == (("db.example",), (6432,), "my db")
    assert "p@ss" not in repr(found)


def test_password_that_nobody_escaped() -> None:
    """The last `@` ends a password that has one."""
    assert target("postgresql://u:p@ss@h/d").password == "p@ss"


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        ("postgresql://h/d", ["h"], [5432]),
        ("postgresql://h1:5433,h2/d", ["h1", "h2"], [5433, 5432]),
        ("postgresql://[::1]:5433,[fe80::1]/d", ["::1", "fe80::1"], [5433, 5432]),
        ("postgresql://u:p@/d?host=/var/run/postgresql", ["/var/run/postgresql"], [5432]),
        ("postgresql://%2Fvar%2Frun/d", ["/var/run"], [5432]),
        ("postgresql:///d?host=h1,h2&port=1,2", ["h1", "h2"], [1, 2]),
        ("postgresql:///d?host=h1,h2&port=7", ["h1", "h2"], [7, 7]),
        ("postgresql:///d", [], []),
    ],
)
def test_hosts(url: str, hosts: list[str], ports: list[int]) -> None:
    """Hosts are one or several, names, addresses or directories of sockets."""
    found = target(url)
    assert (list(found.hosts), list(found.ports)) == (hosts, ports)


def test_hosts_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """PGHOST and PGPORT stand in for what a URL leaves out, and off loopback it is verified."""
    monkeypatch.setenv("PGHOST", "db.example")
    monkeypatch.setenv("PGPORT", "6000")
    found = target("postgresql:///d")
    assert (found.hosts, found.ports, found.sslmode) == (("db.example",), (6000,), "verify-full")


@pytest.mark.parametrize(
    ("url", "mode"),
    [
        ("postgresql://localhost/d", "disable"),
        ("postgresql://127.0.0.2/d", "disable"),
        ("postgresql://[::1]/d", "disable"),
        ("postgresql:///d?host=/run", "disable"),
        ("postgresql:///d", "disable"),
        ("postgresql://localhost/d?sslmode=prefer", "prefer"),
        ("postgresql://localhost/d?sslrootcert=ca.pem", "verify-full"),
        ("postgresql://db.example/d", "verify-full"),
        ("postgresql://10.0.0.1/d", "verify-full"),
        ("postgresql://localhost,db.example/d", "verify-full"),
        ("postgresql://db.example/d?sslmode=disable", "disable"),
        ("postgresql://db.example/d?sslmode=require", "require"),
    ],
)
def test_tls_is_the_default_off_loopback(url: str, mode: str) -> None:
    """Off loopback a connection is verified, unless the URL asks for less."""
    assert target(url).sslmode == mode


@pytest.mark.parametrize(
    ("mode", "verify", "hostname"),
    [
        ("verify-full", ssl.CERT_REQUIRED, True),
        ("verify-ca", ssl.CERT_REQUIRED, False),
        ("require", ssl.CERT_NONE, False),
    ],
)
def test_contexts(mode: str, verify: ssl.VerifyMode, hostname: bool) -> None:  # noqa: FBT001
    """Each mode verifies what it says."""
    context = target(f"postgresql://db.example/d?sslmode={mode}").arguments()["ssl"]
    assert (context.verify_mode, context.check_hostname) == (verify, hostname)


@pytest.mark.parametrize(
    ("query", "match"),
    [
        ("sslmod=require", "did you mean sslmode"),
        ("pool_sise=3", "did you mean pool_size"),
        ("sslmode=prefer", "verify-full"),
        ("sslmode=always", "one of disable"),
        ("pool_size=many", "pool_size"),
        ("pool_size=0", "pool_size"),
        ("pool_timeout=-1", "pool_timeout"),
        ("statement_timeout=1000000", "statement_timeout"),
        ("port=http", "port"),
        ("port=70000", "port"),
        ("host=a,b&port=1,2,3", "port"),
        ("pgbouncer=perhaps", "pgbouncer"),
    ],
)
def test_wrong_options(query: str, match: str) -> None:
    """What nobody knows and what makes no sense is refused when the driver is made."""
    with pytest.raises(ConfigurationError, match=match):
        PostgreSQLDriver(URL.parse(f"postgresql://u:secret@db.example/d?{query}"))


@pytest.mark.asyncio
async def test_unix_socket(postgresql_server: PostgreSQL) -> None:
    """A server is reached by its socket."""
    split = postgresql_server.url.partition("@")
    url = f"{split[0]}@/agentstore?host={postgresql_server.directory}&port={postgresql_server.port}"
    async with connect(url) as database:
        assert (await database.health()).ok


@pytest.mark.asyncio
async def test_first_host_that_takes_writes(postgresql_url: str) -> None:
    """Of several hosts, the first that answers and takes writes is used."""
    head, _, tail = postgresql_url.partition("@")
    url = f"{head}@127.0.0.1:1,{tail}"
    async with connect(url) as database:
        await database.conversations.append("s", [Message(role="user", content="x")])


@pytest.mark.asyncio
async def test_without_prepared_statements(postgresql_url: str) -> None:
    """For PgBouncer nothing is left on a connection: no statement, no setting."""
    driver = PostgreSQLDriver(URL.parse(f"{postgresql_url}?pgbouncer=true&pool_size=1"))
    await driver.open()
    conversations = driver.conversations("")
    for _ in range(3):
        await conversations.append("s", [Message(role="user", content="x")])
        await conversations.update("s", title="T")
    assert len(await conversations.read("s")) == 3
    query = "SELECT count(*) FROM pg_prepared_statements"
    assert [tuple(row) for row in await driver.fetch(query, (), "read")] == [(0,)]
    await driver.close()
