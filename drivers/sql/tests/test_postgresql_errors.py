"""What goes wrong with PostgreSQL, provoked, and what the caller is told."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import pytest
from postgresql_fixtures import asked
from sqlalchemy import Connection
from sqlalchemy.util import await_only

from agentstore import Message
from agentstore.errors import (
    AgentStoreError,
    AuthenticationError,
    ConfigurationError,
    ConflictError,
    DataError,
    DeadlineError,
    DriverError,
    OutcomeUnknownError,
    OverloadedError,
    StoreError,
    TLSError,
    UnavailableError,
)
from agentstore.testing.proxy import Blackhole, CutReply, CutRequest, Eof, Fault, FaultProxy, Reset
from agentstore.url import URL
from agentstore_sql import PostgreSQLDriver
from servers import PASSWORD, PostgreSQL

pytestmark = pytest.mark.asyncio

BODY = "sentinel-of-a-body"
_HOLD = "SELECT FROM agentstore_sessions FOR UPDATE"


def said() -> Message:
    return Message(role="user", content=BODY)


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[PostgreSQLDriver]:
    """Open the driver alone: no deadline and no check stands before it."""
    driver = PostgreSQLDriver(URL.parse(url), **options)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()


async def append(driver: PostgreSQLDriver) -> None:
    await driver.conversations("").append("s", [said()])


@asynccontextmanager
async def blocked(url: str, driver: PostgreSQLDriver) -> AsyncIterator[None]:
    """Make a session whose row is held by somebody else, so that an append hangs."""
    await append(driver)
    witness = await asyncpg.connect(url, ssl=False)
    try:
        await witness.execute("BEGIN")
        await witness.execute(_HOLD)
        yield
    finally:
        witness.terminate()


async def waits(url: str) -> int:
    """Wait until a statement waits for a lock, and give the pid of its backend."""
    query = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    while True:
        ((rows),) = await asked(url, query)
        if rows:
            return int(str(rows[0][0]))
        await asyncio.sleep(0.01)


def elsewhere(url: str, *, port: int | None = None, **parts: str) -> str:
    """Change parts of a URL."""
    split = urlsplit(url)
    if port is not None:
        parts["netloc"] = f"{split.netloc.rpartition(':')[0]}:{port}"
    return split._replace(**parts).geturl()


def as_user(url: str, user: str, password: str = PASSWORD) -> str:
    split = urlsplit(url)
    return split._replace(
        netloc=f"{user}:{quote(password, safe='')}@{split.netloc.rpartition('@')[2]}"
    ).geturl()


# ---- The provocations: each of them lets the failure out.


async def refused(url: str, server: PostgreSQL) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with opened(elsewhere(url, port=port)):
        pass


async def unknown_name(url: str, server: PostgreSQL) -> None:
    async with opened("postgresql://u:p@nowhere.invalid/d?sslmode=disable"):
        pass


def faulty(fault: Fault, **options: Any) -> Callable[[str, PostgreSQL], Awaitable[None]]:
    """Connect through a network that has this fault."""

    async def provoke(url: str, server: PostgreSQL) -> None:
        with FaultProxy("127.0.0.1", server.port) as proxy:
            proxy.inject(fault)
            async with opened(elsewhere(url, port=proxy.port), **options):
                pass

    return provoke


async def wrong_password(url: str, server: PostgreSQL) -> None:
    async with opened(as_user(url, "agentstore", f"not {PASSWORD}")):
        pass


async def wrong_user(url: str, server: PostgreSQL) -> None:
    async with opened(as_user(url, "nobody")):
        pass


async def wrong_database(url: str, server: PostgreSQL) -> None:
    async with opened(elsewhere(url, path="/nowhere")):
        pass


async def tls_not_offered(url: str, server: PostgreSQL) -> None:
    async with opened(url, sslmode="verify-full"):
        pass


async def tls_required_of_a_plain_server(url: str, server: PostgreSQL) -> None:
    async with opened(url, sslmode="require"):
        pass


async def tls_untrusted(url: str, server: PostgreSQL) -> None:
    with PostgreSQL(fsync=False, tls="127.0.0.1") as other:
        async with opened(other.url, sslmode="verify-full"):
            pass


async def tls_of_another_host(url: str, server: PostgreSQL) -> None:
    with PostgreSQL(fsync=False, tls="elsewhere.example") as other:
        async with opened(other.url, sslmode="verify-full", sslrootcert=str(other.ca)):
            pass


async def missing_ca(url: str, server: PostgreSQL) -> None:
    async with opened(url, sslmode="verify-full", sslrootcert="/nowhere/ca.pem"):
        pass


async def ca_that_is_none(url: str, server: PostgreSQL) -> None:
    async with opened(url, sslmode="verify-full", sslrootcert=__file__):
        pass


async def too_many_clients(url: str, server: PostgreSQL) -> None:
    server.ask(f"CREATE ROLE crowded LOGIN CONNECTION LIMIT 0 PASSWORD '{PASSWORD}'")
    async with opened(as_user(url, "crowded")):
        pass


async def shutting_down(url: str, server: PostgreSQL) -> None:
    with PostgreSQL(fsync=False) as other:
        witness = await asyncpg.connect(other.url, ssl=False)
        try:
            os.kill(other.pid, signal.SIGTERM)  # it waits for the witness
            await asyncio.sleep(0.2)
            async with opened(other.url):
                pass
        finally:
            witness.terminate()


async def killed_in_a_statement(url: str, server: PostgreSQL) -> None:
    with PostgreSQL(fsync=False) as other:
        async with opened(other.url) as driver, blocked(other.url, driver):
            task = asyncio.create_task(append(driver))
            await waits(other.url)
            other.kill()
            await task


async def terminated_in_a_statement(url: str, server: PostgreSQL) -> None:
    async with opened(url) as driver, blocked(url, driver):
        task = asyncio.create_task(append(driver))
        await asked(url, f"SELECT pg_terminate_backend({await waits(url)})")
        await task


async def terminated_in_a_read(url: str, server: PostgreSQL) -> None:
    async with opened(url) as driver:
        task = asyncio.create_task(driver.fetch("SELECT pg_sleep(10)", (), "read"))
        query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query = "
        query += "'SELECT pg_sleep(10)'"
        while await asked(url, query) == [[(0,)]]:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.01)
        await task


async def frozen_in_a_statement(url: str, server: PostgreSQL) -> None:
    with PostgreSQL(fsync=False) as other:
        async with opened(other.url, statement_timeout=0.2, connect_timeout=0.5) as driver:
            await append(driver)
            other.freeze()
            try:
                await append(driver)
            finally:
                other.thaw()


async def statement_timeout(url: str, server: PostgreSQL) -> None:
    async with opened(url, statement_timeout=0.3) as driver, blocked(url, driver):
        await append(driver)


async def cancelled_by_an_administrator(url: str, server: PostgreSQL) -> None:
    async with opened(url) as driver, blocked(url, driver):
        task = asyncio.create_task(append(driver))
        await asked(url, f"SELECT pg_cancel_backend({await waits(url)})")
        await task


async def lock_timeout(url: str, server: PostgreSQL) -> None:
    await asked(url, f"ALTER DATABASE {urlsplit(url).path[1:]} SET lock_timeout = '200ms'")
    async with opened(url) as driver, blocked(url, driver):
        await append(driver)


async def deadlock(url: str, server: PostgreSQL) -> None:
    await asked(url, "CREATE TABLE t (n int PRIMARY KEY)", "INSERT INTO t VALUES (1), (2)")
    witness = await asyncpg.connect(url, ssl=False)
    hold = "SELECT FROM t WHERE n = {} FOR UPDATE"
    async with opened(url) as driver:

        def job(connection: Connection) -> None:
            connection.exec_driver_sql(hold.format(1))
            await_only(asyncio.sleep(0.1))
            connection.exec_driver_sql(hold.format(2))

        await witness.execute("BEGIN")
        await witness.execute(hold.format(2))
        task = asyncio.create_task(driver.write(job))
        await waits(url)
        # The one that has waited for longer is given up: that is us.
        other = asyncio.create_task(witness.execute(hold.format(1)))
        try:
            await task
        finally:
            await other
            witness.terminate()


async def serialization(url: str, server: PostgreSQL) -> None:
    await asked(url, "CREATE TABLE t (n int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    async with opened(url) as driver:

        def job(connection: Connection) -> None:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            connection.exec_driver_sql("SELECT FROM t")
            await_only(asked(url, "UPDATE t SET n = 2"))
            connection.exec_driver_sql("UPDATE t SET n = 3")

        await driver.write(job)


async def read_only(url: str, server: PostgreSQL) -> None:
    name = urlsplit(url).path[1:]
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    async with opened(url, pool_size=1) as driver:
        await asked(
            url,
            f"ALTER DATABASE {name} SET default_transaction_read_only = on",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}",  # noqa: S608
        )
        await asyncio.sleep(0.1)
        await append(driver)


async def pool_exhausted(url: str, server: PostgreSQL) -> None:
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.2}
    async with opened(url, **options) as driver, blocked(url, driver):
        task = asyncio.create_task(append(driver))
        await waits(url)
        try:
            await driver.ping()
        finally:
            task.cancel()
            await asked(url, f"SELECT pg_cancel_backend({await waits(url)})")


async def _through_a_cut(fault: Fault, url: str, server: PostgreSQL) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        async with opened(elsewhere(url, port=proxy.port)) as driver:
            proxy.inject(fault)
            await append(driver)


async def reply_cut(url: str, server: PostgreSQL) -> None:
    await _through_a_cut(CutReply(match=BODY.encode()), url, server)


async def request_cut(url: str, server: PostgreSQL) -> None:
    await _through_a_cut(CutRequest(match=BODY.encode()), url, server)


def statement(text: str) -> Callable[[str, PostgreSQL], Awaitable[None]]:
    """Run a statement that the server refuses."""

    async def provoke(url: str, server: PostgreSQL) -> None:
        async with opened(url) as driver:
            await driver.write(lambda connection: connection.exec_driver_sql(text))

    return provoke


async def forbidden(url: str, server: PostgreSQL) -> None:
    server.ask(f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")
    async with opened(as_user(url, "guest")) as driver:
        await append(driver)


async def missing_table(url: str, server: PostgreSQL) -> None:
    async with opened(url) as driver:
        await asked(url, "DROP TABLE agentstore_messages")
        await append(driver)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A failure: how it is provoked, or why it isn't, and what the caller is told."""

    name: str
    provoke: Callable[[str, PostgreSQL], Awaitable[None]] | None = None
    why_not: str = ""
    error: type[AgentStoreError] = UnavailableError
    code: str | None = None
    retryable: bool = False
    unknown: bool = False
    within: float = 5.0


RETRY = Case(name="", retryable=True)
LOST = Case(name="", error=OutcomeUnknownError, retryable=True, unknown=True)
BUSY = Case(name="", error=OverloadedError, retryable=True)
RAISE = Case(name="")

CASES = [
    replace(RETRY, name="not listening", provoke=refused, code="ConnectionRefusedError"),
    replace(RETRY, name="DNS", provoke=unknown_name, code="gaierror"),
    replace(RETRY, name="RST at connect", provoke=faulty(Reset())),
    replace(RETRY, name="FIN at connect", provoke=faulty(Eof())),
    replace(
        RETRY,
        name="accepts, never answers",
        provoke=faulty(Blackhole(), connect_timeout=0.5),
        code="TimeoutError",
        within=1.0,
    ),
    replace(
        RETRY,
        name="FIN in place of TLS",
        provoke=faulty(Eof(), sslmode="verify-full"),
    ),
    replace(
        RAISE,
        name="wrong password",
        provoke=wrong_password,
        error=AuthenticationError,
        code="28P01",
    ),
    replace(RAISE, name="wrong user", provoke=wrong_user, error=AuthenticationError, code="28P01"),
    replace(RAISE, name="wrong database", provoke=wrong_database, error=ConfigurationError),
    replace(RAISE, name="TLS not offered", provoke=tls_not_offered, error=TLSError),
    replace(
        RAISE,
        name="TLS not offered, unverified",
        provoke=tls_required_of_a_plain_server,
        error=TLSError,
    ),
    replace(
        RAISE,
        name="untrusted certificate",
        provoke=tls_untrusted,
        error=TLSError,
        code="SSLCertVerificationError",
        within=15,
    ),
    replace(
        RAISE,
        name="another host's certificate",
        provoke=tls_of_another_host,
        error=TLSError,
        code="SSLCertVerificationError",
        within=15,
    ),
    replace(RAISE, name="missing CA file", provoke=missing_ca, error=ConfigurationError),
    replace(RAISE, name="CA that is none", provoke=ca_that_is_none, error=ConfigurationError),
    replace(BUSY, name="too many clients", provoke=too_many_clients, code="53300"),
    replace(RETRY, name="shutting down", provoke=shutting_down, code="57P03", within=15),
    replace(
        LOST, name="kill -9 in a statement", provoke=killed_in_a_statement, code="08003", within=15
    ),
    replace(LOST, name="terminated in a statement", provoke=terminated_in_a_statement),
    replace(RETRY, name="terminated in a read", provoke=terminated_in_a_read),
    replace(
        LOST,
        name="hung in a statement",
        provoke=frozen_in_a_statement,
        error=DeadlineError,
        within=15,
    ),
    replace(BUSY, name="statement_timeout", provoke=statement_timeout, code="57014"),
    replace(BUSY, name="cancelled", provoke=cancelled_by_an_administrator, code="57014"),
    replace(BUSY, name="lock_timeout", provoke=lock_timeout, code="55P03"),
    replace(BUSY, name="deadlock", provoke=deadlock, code="40P01"),
    replace(BUSY, name="serialization", provoke=serialization, code="40001"),
    replace(RETRY, name="read-only", provoke=read_only, code="25006"),
    replace(BUSY, name="pool exhausted", provoke=pool_exhausted, code="pool"),
    replace(LOST, name="reply cut after the commit", provoke=reply_cut),
    replace(LOST, name="request cut", provoke=request_cut),
    replace(
        RAISE,
        name="unique",
        provoke=statement("INSERT INTO agentstore_version SELECT * FROM agentstore_version"),
        error=ConflictError,
        code="23505",
    ),
    replace(
        RAISE,
        name="a value that doesn't fit",
        provoke=statement(f"SELECT '{BODY}'::integer"),
        error=DataError,
        code="22P02",
    ),
    replace(
        RAISE,
        name="too many columns",
        provoke=statement(f"SELECT {', '.join(['1'] * 1700)}"),
        error=DataError,
        code="54011",
    ),
    replace(RAISE, name="no right", provoke=forbidden, error=AuthenticationError, code="42501"),
    replace(RAISE, name="no table", provoke=missing_table, error=DriverError, code="42P01"),
    replace(
        RAISE,
        name="syntax",
        provoke=statement(f"SELEKT '{BODY}'"),
        error=DriverError,
        code="42601",
    ),
    replace(RAISE, name="disk full", why_not="53100 needs a file system of its own"),
    replace(RAISE, name="out of memory", why_not="53200 would take the machine's memory"),
    replace(
        RAISE,
        name="idle in transaction",
        why_not="no transaction of ours waits for its caller",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def count(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Say at the end how many of the failures were provoked."""
    provoked: list[str] = []
    yield provoked
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\nPostgreSQL: {len(provoked)} of {len(CASES)} failures provoked")  # noqa: T201


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_failure(
    case: Case,
    count: list[str],
    postgresql_url: str,
    postgresql_server: PostgreSQL,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A failure has its class, its code and its kind, in time, and tells no secret."""
    if case.provoke is None:
        pytest.skip(case.why_not)
    caplog.set_level("DEBUG", "agentstore")
    started = time.monotonic()
    with pytest.raises(case.error) as caught:
        await case.provoke(postgresql_url, postgresql_server)
    error = caught.value
    assert type(error) is case.error
    assert time.monotonic() - started < case.within
    if isinstance(error, StoreError):
        assert (error.retryable, error.outcome_unknown) == (case.retryable, case.unknown)
        assert case.code in (None, error.code)
    assert error.__cause__ is None
    shown = "".join([str(error), repr(error), *traceback.format_exception(error), caplog.text])
    for secret in (PASSWORD, quote(PASSWORD, safe=""), BODY):
        assert secret not in shown
    count.append(case.name)


async def test_dead_idle_connection_is_not_seen(
    postgresql_url: str, postgresql_server: PostgreSQL
) -> None:
    """A connection that died while nobody used it is replaced, and no call fails of it."""
    with FaultProxy("127.0.0.1", postgresql_server.port) as proxy:
        async with opened(elsewhere(postgresql_url, port=proxy.port)) as driver:
            for fault in (Eof(), Reset()):
                await append(driver)
                proxy.inject(fault)
                await asyncio.sleep(0.05)
                proxy.heal()
                await append(driver)


async def test_connection_that_died_without_a_word(
    postgresql_url: str, postgresql_server: PostgreSQL
) -> None:
    """A connection that was idle for long is asked before it is used."""
    with FaultProxy("127.0.0.1", postgresql_server.port) as proxy:
        async with opened(
            elsewhere(postgresql_url, port=proxy.port), pool_check=0, connect_timeout=0.3
        ) as driver:
            await append(driver)
            proxy.inject(Blackhole(new=False))
            await append(driver)


async def test_repeat_after_a_cut_reply(postgresql_url: str, postgresql_server: PostgreSQL) -> None:
    """An append whose reply was cut is stored once, and sent again it finds itself."""
    message = said()
    with FaultProxy("127.0.0.1", postgresql_server.port) as proxy:
        async with opened(elsewhere(postgresql_url, port=proxy.port)) as driver:
            conversations = driver.conversations("")
            proxy.inject(CutReply(match=BODY.encode()))
            with pytest.raises(OutcomeUnknownError):
                await conversations.append("s", [message])
            again = await conversations.append("s", [message])
            assert (again.seqs, again.created) == ((1,), (False,))
            assert len(await conversations.read("s")) == 1


async def test_pool_is_discarded_after_a_failover(postgresql_url: str) -> None:
    """When the server turns out to be a standby, every connection to it is given up."""
    name = urlsplit(postgresql_url).path[1:]
    async with opened(postgresql_url) as driver:
        await append(driver)
        (pid,) = (await driver.fetch("SELECT pg_backend_pid()", (), "read"))[0]
        await driver.fetch("SET default_transaction_read_only = on", (), "read")
        with pytest.raises(UnavailableError):
            await append(driver)
        (other,) = (await driver.fetch("SELECT pg_backend_pid()", (), "read"))[0]
        assert other != pid
        await append(driver)
    assert await asked(postgresql_url, f"SELECT '{name}' = current_database()") == [[(True,)]]


async def test_verified_connection(tmp_path: Path) -> None:
    """With its authority known, a server is verified; `require` and `verify-ca` ask for less."""
    with PostgreSQL(fsync=False, tls="127.0.0.1") as server:
        for mode in ("verify-full", "verify-ca", "require"):
            async with opened(server.url, sslmode=mode, sslrootcert=str(server.ca)) as driver:
                query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
                assert [tuple(row) for row in await driver.fetch(query, (), "read")] == [(True,)]
        async with opened(server.url, sslmode="require"):
            pass
