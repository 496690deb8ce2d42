"""What goes wrong with MariaDB, provoked over either client, and what the caller is told."""

from __future__ import annotations

import asyncio
import socket
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlsplit

import aiomysql
import pytest
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
from agentstore_sql import MySQLDriver
from agentstore_sql._mysql_statements import Trip
from servers import PASSWORD, USER, MariaDB, ServerError, ask

pytestmark = pytest.mark.asyncio

BODY = "sentinel-of-a-body"
_HOLD = "SELECT pk FROM agentstore_sessions FOR UPDATE"


def said(text: str = BODY) -> Message:
    return Message(role="user", content=text)


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[MySQLDriver]:
    """Open the driver alone: no deadline and no check stands before it."""
    driver = MySQLDriver(URL.parse(url), **options)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()


async def append(driver: MySQLDriver) -> None:
    await driver.conversations("").append("s", [said()])


@asynccontextmanager
async def witness(url: str) -> AsyncIterator[aiomysql.Connection]:
    """Connect as somebody who knows nothing of the store."""
    parts = urlsplit(url)
    connection = await aiomysql.connect(
        host=parts.hostname,
        port=parts.port,
        user=USER,
        password=PASSWORD,
        db=parts.path[1:],
        autocommit=True,
    )
    try:
        yield connection
    finally:
        connection.close()


async def asked(connection: aiomysql.Connection, statement: str) -> tuple[tuple[Any, ...], ...]:
    async with connection.cursor() as cursor:
        await cursor.execute(statement)
        return tuple(await cursor.fetchall())


@asynccontextmanager
async def blocked(url: str, driver: MySQLDriver) -> AsyncIterator[aiomysql.Connection]:
    """Make a session whose row is held by somebody else, so that an append hangs."""
    await append(driver)
    async with witness(url) as other:
        await asked(other, "BEGIN")
        await asked(other, _HOLD)
        yield other


async def waits(other: aiomysql.Connection, part: str = "INTO @pk") -> int:
    """Wait until a statement is under way, and give the id of its connection."""
    query = (
        "SELECT id FROM information_schema.processlist "  # noqa: S608
        f"WHERE info LIKE '%{part}%' AND id <> CONNECTION_ID()"
    )
    while not (rows := await asked(other, query)):  # noqa: ASYNC110 - the server sends no event
        await asyncio.sleep(0.01)
    return int(rows[0][0])


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


@dataclass(frozen=True)
class Place:
    """Where a failure is provoked: a shared server, one to do harm to, and one with TLS."""

    url: str
    server: MariaDB
    victim: MariaDB
    tls: MariaDB

    def like(self, url: str) -> str:
        """Give a URL for the client that is tested."""
        return elsewhere(url, scheme=urlsplit(self.url).scheme)


# ---- The provocations: each of them lets the failure out.


async def refused(at: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with opened(elsewhere(at.url, port=port)):
        pass


async def unknown_name(at: Place) -> None:
    async with opened(at.like("mysql://u:p@nowhere.invalid/d?ssl_mode=DISABLED")):
        pass


def faulty(fault: Fault, **options: Any) -> Callable[[Place], Awaitable[None]]:
    """Connect through a network that has this fault."""

    async def provoke(at: Place) -> None:
        with FaultProxy("127.0.0.1", at.server.port) as proxy:
            proxy.inject(fault)
            async with opened(elsewhere(at.url, port=proxy.port), **options):
                pass

    return provoke


async def frozen_at_connect(at: Place) -> None:
    at.victim.freeze()
    try:
        async with opened(at.like(at.victim.url), connect_timeout=0.4):
            pass
    finally:
        at.victim.thaw()


async def wrong_password(at: Place) -> None:
    async with opened(as_user(at.url, USER, f"not {PASSWORD}")):
        pass


async def wrong_user(at: Place) -> None:
    async with opened(as_user(at.url, "nobody")):
        pass


async def forbidden_database(at: Place) -> None:
    async with opened(elsewhere(at.url, path="/mysql")):
        pass


async def wrong_database(at: Place) -> None:
    async with opened(elsewhere(at.url, path=f"/{USER}_nowhere")):
        pass


async def tls_not_offered(at: Place) -> None:
    async with opened(at.url, ssl_mode="VERIFY_IDENTITY"):
        pass


async def tls_unverified_not_offered(at: Place) -> None:
    async with opened(at.url, ssl_mode="REQUIRED"):
        pass


async def tls_untrusted(at: Place) -> None:
    async with opened(at.like(at.tls.url), ssl_mode="VERIFY_IDENTITY"):
        pass


async def tls_of_another_host(at: Place) -> None:
    url = at.like(at.tls.url).replace("127.0.0.1", "localhost")
    async with opened(url, ssl_mode="VERIFY_IDENTITY", ssl_ca=str(at.tls.ca)):
        pass


async def missing_ca(at: Place) -> None:
    async with opened(at.url, ssl_ca="/nowhere/ca.pem"):
        pass


async def ca_that_is_none(at: Place) -> None:
    async with opened(at.url, ssl_ca=__file__):
        pass


async def too_many_clients(at: Place) -> None:
    at.victim.ask("SET GLOBAL max_connections = 10")
    others = [witness(at.victim.url) for _ in range(10)]
    try:
        for other in others:
            await other.__aenter__()
        async with opened(at.like(at.victim.url)):
            pass
    finally:
        for other in others:
            await other.__aexit__(None, None, None)


async def too_many_of_a_user(at: Place) -> None:
    at.server.ask(
        f"CREATE OR REPLACE USER crowded@'%' IDENTIFIED BY '{PASSWORD}' "
        f"WITH MAX_USER_CONNECTIONS 1; GRANT ALL ON `{USER}%`.* TO crowded@'%'"
    )
    async with opened(as_user(at.url, "crowded")), opened(as_user(at.url, "crowded")):
        pass


async def killed_in_a_statement(at: Place) -> None:
    url = at.like(at.victim.url)
    async with opened(url) as driver, blocked(url, driver) as other:
        task = asyncio.create_task(append(driver))
        await waits(other)
        at.victim.kill()
        await task


async def connection_killed(at: Place) -> None:
    async with opened(at.url) as driver, blocked(at.url, driver) as other:
        task = asyncio.create_task(append(driver))
        await asked(other, f"KILL CONNECTION {await waits(other)}")
        await task


async def connection_killed_in_a_read(at: Place) -> None:
    async with opened(at.url) as driver, witness(at.url) as other:
        task = asyncio.create_task(driver.fetch("SELECT SLEEP(9)", (), "read"))
        await asked(other, f"KILL CONNECTION {await waits(other, 'SELECT SLEEP')}")
        await task


async def connection_killed_before_the_commit(at: Place) -> None:
    async with opened(at.url) as driver, blocked(at.url, driver) as other:
        task = asyncio.create_task(driver.conversations("").update("s", title="t"))
        await asked(other, f"KILL CONNECTION {await waits(other, 'FOR UPDATE')}")
        await task


async def frozen_in_a_statement(at: Place) -> None:
    async with opened(at.like(at.victim.url), statement_timeout=0.2) as driver:
        await append(driver)
        at.victim.freeze()
        try:
            await append(driver)
        finally:
            at.victim.thaw()


async def statement_timeout(at: Place) -> None:
    async with opened(at.url, statement_timeout=0.3) as driver, blocked(at.url, driver):
        await append(driver)


async def query_killed(at: Place) -> None:
    async with opened(at.url) as driver, blocked(at.url, driver) as other:
        task = asyncio.create_task(append(driver))
        await asked(other, f"KILL QUERY {await waits(other)}")
        await task


async def lock_wait(at: Place) -> None:
    def job(connection: Connection) -> None:
        connection.exec_driver_sql("SET innodb_lock_wait_timeout = 0")
        connection.exec_driver_sql(_HOLD)

    async with opened(at.url) as driver, blocked(at.url, driver):
        await driver.write(job)


async def deadlock(at: Place) -> None:
    name = "agentstore_sessions"
    async with opened(at.url) as driver, witness(at.url) as other:
        for session in "ab":
            await driver.conversations("").append(session, [said()])

        await asked(other, "BEGIN")
        # The one that has changed less is given up: that is us.
        await asked(other, f"UPDATE {name} SET title = 'x' WHERE tenant = '' AND session_id = 'b'")  # noqa: S608

        def crossed(connection: Connection) -> None:
            where = f"FROM {name} FORCE INDEX (agentstore_sessions_id) WHERE tenant = ''"
            connection.exec_driver_sql(f"SELECT pk {where} AND session_id = 'a' FOR UPDATE")
            await_only(asyncio.sleep(0.1))
            connection.exec_driver_sql(f"SELECT pk {where} AND session_id = 'b' FOR UPDATE")

        task = asyncio.create_task(driver.write(crossed))
        await waits(other, "AND session_id = ''b''")
        second = f"UPDATE {name} SET title = 'x' WHERE tenant = '' AND session_id = 'a'"  # noqa: S608
        crossing = asyncio.create_task(asked(other, second))
        try:
            await task
        finally:
            await crossing


async def read_only(at: Place) -> None:
    async with opened(at.like(at.victim.url)) as driver:
        at.victim.ask("SET GLOBAL read_only = 1")
        try:
            await append(driver)
        finally:
            at.victim.ask("SET GLOBAL read_only = 0")


async def read_only_at_open(at: Place) -> None:
    at.victim.ask("SET GLOBAL read_only = 1")
    try:
        async with opened(at.like(at.victim.url)):
            pass
    finally:
        at.victim.ask("SET GLOBAL read_only = 0")


async def read_only_transaction(at: Place) -> None:
    text = "START TRANSACTION READ ONLY;DELETE FROM agentstore_messages"
    async with opened(at.url) as driver:
        await driver.travel(Trip(text), ())


async def pool_exhausted(at: Place) -> None:
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.2}
    async with opened(at.url, **options) as driver, blocked(at.url, driver) as other:
        task = asyncio.create_task(append(driver))
        await waits(other)
        try:
            await driver.ping()
        finally:
            task.cancel()
            await asked(other, "ROLLBACK")


async def _through_a_cut(fault: Fault, at: Place) -> None:
    with FaultProxy("127.0.0.1", at.server.port) as proxy:
        async with opened(elsewhere(at.url, port=proxy.port)) as driver:
            proxy.inject(fault)
            await append(driver)


async def reply_cut(at: Place) -> None:
    await _through_a_cut(CutReply(match=BODY.encode()), at)


async def request_cut(at: Place) -> None:
    await _through_a_cut(CutRequest(match=BODY.encode()), at)


async def too_large(at: Place) -> None:
    async with opened(at.url) as driver:
        try:
            await driver.conversations("").append("s", [said(BODY + "x" * 17 * 1024 * 1024)])
        finally:
            # No connection was lost over it.
            assert driver.capabilities.limits.message < 8 * 1024 * 1024
            await append(driver)


def statement(text: str) -> Callable[[Place], Awaitable[None]]:
    """Run a statement that the server refuses."""

    async def provoke(at: Place) -> None:
        async with opened(at.url) as driver:
            await append(driver)
            await driver.write(lambda connection: connection.exec_driver_sql(text))

    return provoke


async def forbidden(at: Place) -> None:
    name = urlsplit(at.url).path[1:]
    at.server.ask(
        f"CREATE OR REPLACE USER guest@'%' IDENTIFIED BY '{PASSWORD}';"
        f"GRANT SELECT ON `{name}`.* TO guest@'%'"
    )
    async with opened(as_user(at.url, "guest")) as driver:
        await append(driver)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A failure: how it is provoked, or why it isn't, and what the caller is told."""

    name: str
    provoke: Callable[[Place], Awaitable[None]] | None = None
    why_not: str = ""
    error: type[AgentStoreError] = UnavailableError
    code: tuple[str, ...] = ()
    retryable: bool = False
    unknown: bool = False
    within: float = 5.0


RETRY = Case(name="", retryable=True)
LOST = Case(name="", error=OutcomeUnknownError, retryable=True, unknown=True)
BUSY = Case(name="", error=OverloadedError, retryable=True)
RAISE = Case(name="")
AUTH = Case(name="", error=AuthenticationError)
TLS = Case(name="", error=TLSError)
CONFIG = Case(name="", error=ConfigurationError)
DATA = Case(name="", error=DataError)
BUG = Case(name="", error=DriverError)

_CUT = ("2013", "2006", "1927")

CASES = [
    replace(RETRY, name="not listening", provoke=refused, code=("2003",)),
    replace(RETRY, name="DNS", provoke=unknown_name, code=("2003",)),
    replace(RETRY, name="RST at connect", provoke=faulty(Reset())),
    replace(RETRY, name="FIN at connect", provoke=faulty(Eof())),
    replace(
        RETRY,
        name="accepts, never answers",
        provoke=faulty(Blackhole(), connect_timeout=0.4),
        code=("TimeoutError",),
        within=1.0,
    ),
    replace(RETRY, name="SIGSTOP at connect", provoke=frozen_at_connect, within=2.0),
    replace(RETRY, name="FIN in place of TLS", provoke=faulty(Eof(), ssl_mode="REQUIRED")),
    replace(AUTH, name="wrong password", provoke=wrong_password, code=("1045",)),
    replace(AUTH, name="wrong user", provoke=wrong_user, code=("1045",)),
    replace(AUTH, name="forbidden database", provoke=forbidden_database, code=("1044",)),
    replace(CONFIG, name="wrong database", provoke=wrong_database),
    replace(TLS, name="TLS not offered", provoke=tls_not_offered),
    replace(TLS, name="TLS not offered, unverified", provoke=tls_unverified_not_offered),
    replace(TLS, name="untrusted certificate", provoke=tls_untrusted, code=("2003",)),
    replace(TLS, name="another host's certificate", provoke=tls_of_another_host, code=("2003",)),
    replace(CONFIG, name="missing CA file", provoke=missing_ca),
    replace(CONFIG, name="CA that is none", provoke=ca_that_is_none),
    replace(BUSY, name="too many clients", provoke=too_many_clients, code=("1040",)),
    replace(BUSY, name="too many of a user", provoke=too_many_of_a_user, code=("1226",)),
    replace(LOST, name="kill -9 in a statement", provoke=killed_in_a_statement, code=_CUT),
    replace(LOST, name="KILL CONNECTION", provoke=connection_killed, code=_CUT),
    replace(
        RETRY, name="KILL CONNECTION in a read", provoke=connection_killed_in_a_read, code=_CUT
    ),
    replace(
        RETRY,
        name="KILL CONNECTION before the commit",
        provoke=connection_killed_before_the_commit,
        code=_CUT,
    ),
    replace(LOST, name="SIGSTOP", provoke=frozen_in_a_statement, error=DeadlineError),
    replace(BUSY, name="statement_timeout", provoke=statement_timeout, code=("1969",)),
    replace(BUSY, name="KILL QUERY", provoke=query_killed, code=("1317",)),
    replace(BUSY, name="lock wait", provoke=lock_wait, code=("1205",)),
    replace(BUSY, name="deadlock", provoke=deadlock, code=("1213",)),
    replace(RETRY, name="read-only", provoke=read_only, code=("1290",)),
    replace(CONFIG, name="read-only at open", provoke=read_only_at_open),
    replace(RETRY, name="read-only transaction", provoke=read_only_transaction, code=("1792",)),
    replace(BUSY, name="pool exhausted", provoke=pool_exhausted, code=("pool",)),
    replace(LOST, name="reply cut after the commit", provoke=reply_cut, code=_CUT),
    replace(LOST, name="request cut", provoke=request_cut, code=_CUT),
    replace(
        RAISE,
        name="duplicate",
        provoke=statement("INSERT INTO agentstore_version SELECT * FROM agentstore_version"),
        error=ConflictError,
        code=("1062",),
    ),
    replace(
        DATA,
        name="too long",
        provoke=statement("UPDATE agentstore_sessions SET session_id = REPEAT('x', 513)"),
        code=("1406",),
    ),
    replace(
        DATA,
        name="no number",
        provoke=statement(f"UPDATE agentstore_sessions SET last_seq = '{BODY}'"),  # noqa: S608
        code=("1366", "1292"),
    ),
    replace(
        DATA,
        name="out of range",
        provoke=statement("UPDATE agentstore_sessions SET last_seq = 1e30"),
        code=("1264",),
    ),
    replace(DATA, name="larger than a packet", provoke=too_large, code=("1153",), within=10),
    replace(AUTH, name="no right", provoke=forbidden, code=("1142",)),
    replace(BUG, name="no table", provoke=statement("SELECT * FROM nowhere"), code=("1146",)),
    replace(BUG, name="syntax", provoke=statement(f"SELEKT '{BODY}'"), code=("1064",)),
    replace(RAISE, name="disk full", why_not="1114 and 1021 need a file system of their own"),
]


@pytest.fixture(scope="module")
def victim() -> Iterator[MariaDB]:
    """A server to do harm to."""
    with MariaDB(fsync=False) as server:
        yield server


@pytest.fixture(scope="module")
def tls() -> Iterator[MariaDB]:
    """A server with a certificate."""
    with MariaDB(fsync=False, tls="127.0.0.1") as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def count(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Say at the end how many of the failures were provoked."""
    provoked: list[str] = []
    yield provoked
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"\nMySQL: {len(provoked)} of {2 * len(CASES)} failures provoked")


@contextmanager
def alive(server: MariaDB) -> Iterator[None]:
    """Start the server again, where it was killed."""
    yield
    try:
        server.pid  # noqa: B018
    except ServerError:
        server.start()


@pytest.fixture(params=["mysql", "mysql+asyncmy"])
def url(request: pytest.FixtureRequest, mysql_url: str) -> str:
    """The database, over each client."""
    return elsewhere(mysql_url, scheme=request.param)


@pytest.fixture
def place(url: str, mariadb: MariaDB, victim: MariaDB, tls: MariaDB) -> Place:
    """Where failures are provoked."""
    return Place(url, mariadb, victim, tls)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_failure(
    case: Case,
    count: list[str],
    place: Place,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A failure has its class, its code and its kind, in time, and tells no secret."""
    if case.provoke is None:
        pytest.skip(case.why_not)
    caplog.set_level("DEBUG", "agentstore")
    started = time.monotonic()
    with alive(place.victim), pytest.raises(case.error) as caught:
        await case.provoke(place)
    error = caught.value
    assert type(error) is case.error
    assert time.monotonic() - started < case.within
    if isinstance(error, StoreError):
        assert (error.retryable, error.outcome_unknown) == (case.retryable, case.unknown)
        assert not case.code or error.code in case.code
    assert error.__cause__ is None
    shown = "".join([str(error), repr(error), *traceback.format_exception(error), caplog.text])
    for secret in (PASSWORD, quote(PASSWORD, safe=""), BODY):
        assert secret not in shown
    count.append(case.name)


async def test_dead_idle_connection_is_not_seen(url: str, mariadb: MariaDB) -> None:
    """A connection that died while nobody used it is replaced, and no call fails of it."""
    with FaultProxy("127.0.0.1", mariadb.port) as proxy:
        async with opened(elsewhere(url, port=proxy.port)) as driver:
            for fault in (Eof(), Reset()):
                await append(driver)
                proxy.inject(fault)
                await asyncio.sleep(0.05)
                proxy.heal()
                await append(driver)


async def test_connection_killed_while_idle_is_not_seen(url: str) -> None:
    """Nor does one fail that the server closed with a last word."""
    async with opened(url) as driver, witness(url) as other:
        await append(driver)
        ((number,),) = await driver.fetch("SELECT CONNECTION_ID()", (), "read")
        await asked(other, f"KILL CONNECTION {number}")
        await asyncio.sleep(0.1)
        await append(driver)


async def test_connection_that_died_without_a_word(url: str, mariadb: MariaDB) -> None:
    """A connection that was idle for long is asked before it is used."""
    with FaultProxy("127.0.0.1", mariadb.port) as proxy:
        async with opened(
            elsewhere(url, port=proxy.port), pool_check=0, connect_timeout=0.3
        ) as driver:
            await append(driver)
            proxy.inject(Blackhole(new=False))
            await append(driver)


async def test_repeat_after_a_cut_reply(url: str, mariadb: MariaDB) -> None:
    """An append whose reply was cut is stored once, and sent again it finds itself."""
    message = said()
    with FaultProxy("127.0.0.1", mariadb.port) as proxy:
        async with opened(elsewhere(url, port=proxy.port)) as driver:
            conversations = driver.conversations("")
            await append(driver)
            proxy.inject(CutReply(match=BODY.encode()))
            with pytest.raises(OutcomeUnknownError):
                await conversations.append("s", [message])
            again = await conversations.append("s", [message])
            assert (again.seqs, again.created) == ((2,), (False,))
            assert len(await conversations.read("s")) == 2


async def test_lock_wait_leaves_nothing_behind(url: str, mysql_url: str) -> None:
    """After a statement that the server gave up, its transaction is rolled back: 1205 isn't."""
    async with opened(url, statement_timeout=0.3, pool_size=1, max_overflow=0) as driver:
        conversations = driver.conversations("")
        async with blocked(url, driver):
            with pytest.raises(OverloadedError):
                await append(driver)
        ((inside,),) = await driver.fetch("SELECT @@in_transaction", (), "read")
        assert inside == 0
        await append(driver)
        assert [message.seq for message in await conversations.read("s")] == [1, 2]
    assert ask(mysql_url, "SELECT next_seq, message_count FROM agentstore_sessions") == "3\t2"
