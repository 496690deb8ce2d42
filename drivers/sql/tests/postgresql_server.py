"""A private PostgreSQL server for the tests, on a free port, and what they do to it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from uuid import uuid4

import asyncpg

PASSWORD = "sentinel-p@ss/word"  # noqa: S105 - nobody's
_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
_SETTINGS = {
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "log_min_messages": "warning",
    "shared_preload_libraries": "pg_stat_statements",
}


def missing() -> str | None:
    """Say how to get a server, where there is none."""
    return None if _BINARIES else "PostgreSQL is not installed: apt-get install postgresql"


class PostgreSQLServer:
    """A server that is ours: it may be killed, stopped and filled."""

    def __init__(self, directory: Path) -> None:
        self.host = "127.0.0.1"
        self.port = _free_port()
        self._directory = directory
        self._data = directory / "data"
        self._as_user: list[str] = []
        if os.getuid() == 0:
            # The server refuses to run as root.
            shutil.chown(directory, "postgres")
            self._as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        password_file = directory / "password"
        password_file.write_text(PASSWORD)
        if self._as_user:
            shutil.chown(password_file, "postgres")
        self._run(
            "initdb",
            *("--auth=scram-sha-256", "--username=tester", f"--pwfile={password_file}"),
            *("--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--pgdata", str(self._data)),
        )
        self.start()

    def _run(self, name: str, *arguments: str) -> None:
        command = [*self._as_user, str(_BINARIES[-1] / name), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=60, cwd="/")

    def start(self, **settings: str) -> None:
        """Start the server, and wait until it answers."""
        options = [f"-c{name}={value}" for name, value in (_SETTINGS | settings).items()]
        command = [str(_BINARIES[-1] / "postgres"), "-D", str(self._data), f"-p{self.port}"]
        with (self._directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._as_user, *command, *options], stdout=log, stderr=log, cwd="/"
            )
        ready = [str(_BINARIES[-1] / "pg_isready"), "-h", self.host, "-p", str(self.port)]
        deadline = time.monotonic() + 30
        while subprocess.run(ready, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, "the server doesn't start"
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server at once."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    def url(self, database: str, *, user: str = "tester", port: int | None = None) -> str:
        """Give the URL of a database, as a driver takes it."""
        return f"postgresql://{user}:{ESCAPED}@{self.host}:{port or self.port}/{database}"

    async def connect(self, database: str = "postgres") -> asyncpg.Connection:
        """Connect as a witness, who knows nothing of the store."""
        return await asyncpg.connect(
            host=self.host,
            port=self.port,
            user="tester",
            password=PASSWORD,
            database=database,
            ssl=False,
        )

    async def execute(self, *statements: str, database: str = "postgres") -> None:
        """Run statements as the server's owner."""
        connection = await self.connect(database)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    async def create(self, template: str = "template1") -> str:
        """Make a database, and give its name."""
        name = f"t{uuid4().hex}"
        await self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name


ESCAPED = PASSWORD.replace("@", "%40").replace("/", "%2F")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
