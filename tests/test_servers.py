"""The private servers, and what is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from processes import freeze, thaw
from servers import (
    PASSWORD,
    USER,
    MariaDB,
    PostgreSQL,
    Redis,
    Server,
    ServerError,
    ask,
    fresh_database,
    mariadb,
    mariadb_url,
    postgresql,
    postgresql_url,
    redis_server,
    redis_url,
)

__all__ = [
    "mariadb",
    "mariadb_url",
    "postgresql",
    "postgresql_url",
    "redis_server",
    "redis_url",
]

SOON = 30.0
WRITE = "CREATE TABLE kept (n int); INSERT INTO kept VALUES (41), (42);"
READ = "SELECT n FROM kept ORDER BY n"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pids: list[int]) -> list[int]:
    """Those that run; one that its parent hasn't asked for yet doesn't."""
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                found.append(pid)
    return found


def family(server: Server) -> list[int]:
    """The processes of a server."""
    members = freeze(server.pid)
    thaw(members)
    return members


def shared_memory(creator: int) -> list[str]:
    """The segments that a process has made."""
    rows = map(str.split, Path("/proc/sysvipc/shm").read_text().splitlines()[1:])
    return [segment for _, segment, _, _, by, *_ in rows if by == str(creator)]


@pytest.mark.parametrize(
    ("kind", "write", "read"),
    [
        (PostgreSQL, WRITE, READ),
        (MariaDB, WRITE, READ),
        (Redis, "RPUSH kept 41 42", "LRANGE kept 0 -1"),
    ],
    ids=["PostgreSQL", "MariaDB", "Redis"],
)
def test_what_was_committed_survives_a_kill(kind: type[Server], write: str, read: str) -> None:
    """A server that is killed starts again, soon and at the same URL, with every row."""
    began = time.monotonic()
    with kind() as server:
        url = server.url
        ask(url, write)
        server.kill()
        with pytest.raises(ServerError, match=r"(?i)refused|can't connect"):
            ask(url, read)
        server.start()
        assert (server.url, ask(url, read)) == (url, "41\n42")
        server.restart()
        assert ask(url, read) == "41\n42"
    assert time.monotonic() - began < SOON


def test_a_kill_reaches_every_process() -> None:
    """No process of PostgreSQL outlives a kill, not even one that is at work or frozen."""
    with PostgreSQL(fsync=False) as server, ThreadPoolExecutor(1) as pool:
        work = pool.submit(server.ask, "SELECT pg_sleep(60)")
        sleepers = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        wait_until(lambda: server.ask(sleepers) == "1")
        members = family(server)
        server.freeze()
        server.kill()
        assert alive(members) == []
        with pytest.raises(ServerError, match="closed the connection"):
            work.result(SOON)
        server.start()
        assert server.ask(sleepers) == "0"


@pytest.mark.parametrize(("kind", "reply"), [(PostgreSQL, "1"), (MariaDB, "1"), (Redis, "PONG")])
def test_a_frozen_server_hangs_until_it_is_thawed(kind: type[Server], reply: str) -> None:
    """It takes connections and answers nothing; thawed, it answers what it was asked meanwhile."""
    with kind(fsync=False) as server, ThreadPoolExecutor(1) as pool:
        server.freeze()
        answer = pool.submit(ask, server.url, server.probe)
        socket.create_connection(("127.0.0.1", server.port), timeout=SOON).close()
        with pytest.raises(TimeoutError):
            answer.result(0.3)
        server.thaw()
        assert answer.result(SOON) == reply


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_a_fresh_database_is_empty_and_separate(name: str, request: pytest.FixtureRequest) -> None:
    """It shows nothing of the one before nor of one beside it, and is gone in the end."""
    server: Server = request.getfixturevalue(name)
    began = time.monotonic()
    for _ in range(2):
        with fresh_database(server.url) as url, fresh_database(server.url) as other:
            ask(url, WRITE)
            assert ask(url, READ) == "41\n42"
            with pytest.raises(ServerError, match="kept"):
                ask(other, READ)
        for dropped in (url, other):
            with pytest.raises(ServerError, match=r"does not exist|Unknown database"):
                ask(dropped, READ)
    assert time.monotonic() - began < SOON


def test_a_fresh_redis_is_empty(redis_server: Redis) -> None:
    """What a test leaves in it is gone before the next; what isn't a test's is never flushed."""
    for _ in range(2):
        with fresh_database(redis_server.url) as url:
            assert ask(url, "DBSIZE") == "0"
            ask(url, "SET key value")
    ask(redis_server.url, "SET foreign value")
    with pytest.raises(pytest.fail.Exception, match="isn't empty"):
        fresh_database(redis_server.url).__enter__()
    assert ask(redis_server.url, "GETDEL foreign") == "value"


def test_fixtures_give_urls_that_work(
    postgresql_url: str, mariadb_url: str, redis_url: str
) -> None:
    """The users of a test's URLs may make tables, or keys, in their databases."""
    ask(postgresql_url, WRITE)
    ask(mariadb_url, WRITE)
    assert ask(postgresql_url, READ) == ask(mariadb_url, READ) == "41\n42"
    assert ask(redis_url, "SET key value") == "OK"


def test_the_user_is_no_superuser(postgresql: PostgreSQL, mariadb: MariaDB) -> None:
    """Tests run with the rights of an application; `ask()` of the server has all."""
    with pytest.raises(ServerError, match="permission denied"):
        ask(postgresql.url, "CREATE ROLE other")
    with pytest.raises(ServerError, match="ERROR 1227"):
        ask(mariadb.url, "CREATE USER other")
    assert postgresql.ask("SELECT rolname FROM pg_roles WHERE rolcanlogin AND NOT rolsuper") == USER
    assert mariadb.ask("SELECT current_user()") == "root@127.0.0.1"


@pytest.mark.parametrize("name", ["postgresql", "mariadb", "redis_server"])
def test_a_wrong_password_is_refused(name: str, request: pytest.FixtureRequest) -> None:
    """The server asks for the password that stands, quoted, in its URL."""
    server: Server = request.getfixturevalue(name)
    wrong = server.url.replace("s3cret", "secret")
    with pytest.raises(ServerError, match=r"authentication failed|Access denied|NOAUTH"):
        ask(wrong, server.probe)


def test_the_servers_own_settings() -> None:
    """Settings reach the server, and those of the tests come before ours."""
    with PostgreSQL(fsync=False, max_connections=7, timezone="UTC") as server:
        assert server.ask("SHOW max_connections; SHOW timezone") == "7\nUTC"


def test_the_version_that_is_asked_for() -> None:
    """PostgreSQL 18 comes from its wheel, where Debian has another."""
    with PostgreSQL(version=18, fsync=False) as server:
        assert server.ask("SHOW server_version").startswith("18.")


def secure_postgresql(host: str, server: Server, ca: Path) -> None:
    url = server.url.replace("127.0.0.1", host)
    ask(f"{url}?sslmode=verify-full&sslrootcert={ca}", "SELECT 1")


def secure_mariadb(host: str, server: Server, ca: Path) -> None:
    result = subprocess.run(
        [
            *("mariadb", f"--ssl-ca={ca}", "--ssl-verify-server-cert", "--execute=SELECT 1"),
            *(f"--host={host}", f"--port={server.port}", f"--user={USER}"),
        ],
        capture_output=True,
        check=False,
        env=os.environ | {"MYSQL_PWD": PASSWORD},
        text=True,
    )
    if result.returncode:
        raise ServerError(result.stderr)


def secure_redis(host: str, server: Server, ca: Path) -> None:
    context = ssl.create_default_context(cafile=ca)
    with socket.create_connection((host, server.port), timeout=1) as plain:
        context.wrap_socket(plain, server_hostname=host).close()


@pytest.mark.parametrize(
    ("kind", "without", "connect"),
    [
        (PostgreSQL, "postgresql", secure_postgresql),
        (MariaDB, "mariadb", secure_mariadb),
        (Redis, "redis_server", secure_redis),
    ],
    ids=["PostgreSQL", "MariaDB", "Redis"],
)
def test_tls_is_offered_when_it_is_asked_for(
    kind: type[Server],
    without: str,
    connect: Callable[[str, Server, Path], None],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """The CA vouches for the server, at its host only; without, there is no TLS at all."""
    other_ca = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other_ca))
    with kind(fsync=False, tls="localhost") as server:
        connect("localhost", server, server.ca)
        for host, refusing, ca, reason in [
            ("127.0.0.1", server, server.ca, r"(?i)match|validation"),
            ("localhost", server, other_ca, "verify failed|local issuer"),
            ("localhost", request.getfixturevalue(without), server.ca, "support|timed out"),
        ]:
            with pytest.raises((ServerError, OSError), match=reason):
                connect(host, refusing, ca)


def test_a_server_that_does_not_start_says_why() -> None:
    """The error holds the server's log, and nothing stays of it."""
    server = PostgreSQL(fsync=False, nonsense=1)
    with (
        pytest.raises(ServerError, match='unrecognized configuration parameter "nonsense"'),
        server,
    ):
        pass
    assert not server.directory.exists()


@pytest.mark.parametrize("kind", [PostgreSQL, MariaDB, Redis])
def test_nothing_is_left_of_a_server(kind: type[Server]) -> None:
    """Neither process nor file, port nor shared memory, and root ran none of it."""
    with kind(fsync=False) as server:
        pid, members = server.pid, family(server)
        assert Path(f"/proc/{pid}").stat().st_uid != 0
        assert server.directory.exists()
    assert alive(members) == []
    assert not server.directory.exists()
    assert shared_memory(pid) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0


INTERRUPTED = """
import json, pathlib, time
from processes import freeze, thaw
pytest_plugins = ["servers"]

def test_interrupted(postgresql, redis_server):
    servers = [postgresql, redis_server]
    report = [(freeze(server.pid), str(server.directory)) for server in servers]
    thaw(report[1][0])
    pathlib.Path("part").write_text(json.dumps(report))
    pathlib.Path("part").rename("report")
    time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_a_run_that_is_ended(end: signal.Signals, tmp_path: Path) -> None:
    """The servers of a run, frozen ones too, end and leave no file when it is killed or stopped."""
    (tmp_path / "test_interrupted.py").write_text(INTERRUPTED)
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull),
            *("-o", f"pythonpath={Path(__file__).parent}"),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as run:
        wait_until((tmp_path / "report").exists)
        run.send_signal(end)
    report = json.loads((tmp_path / "report").read_text())
    pids = [pid for members, _ in report for pid in members]
    assert len(pids) > 5
    wait_until(lambda: alive(pids) == [] and not any(Path(at).exists() for _, at in report))
    wait_until(lambda: not shared_memory(report[0][0][0]))


def test_a_server_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tests are skipped, or fail where servers are required, with the way to get it."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("AGENTSTORE_REQUIRE_SERVERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install redis-server"):
        Redis()
    with pytest.raises(pytest.skip.Exception, match="PostgreSQL 3 .* pip install"):
        PostgreSQL(version=3)
    monkeypatch.setenv("AGENTSTORE_REQUIRE_SERVERS", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install redis-server"):
        Redis()


def test_a_server_that_the_environment_names(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Fresh databases are made there, and what would kill a server is skipped."""
    named = postgresql.url.replace("127.0.0.1", "localhost")
    monkeypatch.setenv("AGENTSTORE_TEST_POSTGRESQL_URL", named)
    monkeypatch.delenv("AGENTSTORE_REQUIRE_SERVERS", raising=False)
    url: str = request.getfixturevalue("postgresql_url")
    assert "@localhost:" in url
    assert ask(url, "SELECT 1") == "1"
    with pytest.raises(pytest.skip.Exception, match="AGENTSTORE_TEST_POSTGRESQL_URL names"):
        PostgreSQL()
