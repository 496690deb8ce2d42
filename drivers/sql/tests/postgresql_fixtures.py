"""Fixtures of PostgreSQL: one private server, and a database with the tables for each test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from agentstore import connect
from postgresql_server import PostgreSQLServer, missing

__all__ = ["postgresql", "postgresql_server", "postgresql_template", "postgresql_url"]


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQLServer]:
    """The server that the tests share."""
    if reason := missing():
        if os.environ.get("AGENTSTORE_REQUIRE_SERVERS"):
            pytest.fail(reason)
        pytest.skip(reason)
    # Not pytest's own: those belong to root, and another run may clear them away.
    with TemporaryDirectory(prefix="agentstore-") as directory:
        server = PostgreSQLServer(Path(directory))
        yield server
        server.stop()


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: PostgreSQLServer) -> str:
    """A database with the tables, which is copied for each test."""

    async def make() -> str:
        name = await postgresql_server.create()
        async with connect(postgresql_server.url(name), connect_timeout=30):
            return name

    return asyncio.run(make())


@pytest.fixture
def postgresql(postgresql_server: PostgreSQLServer, postgresql_template: str) -> Iterator[str]:
    """A database of the test's own, with the tables: its name."""
    name = asyncio.run(postgresql_server.create(postgresql_template))
    yield name
    drop = f'DROP DATABASE "{name}" WITH (FORCE)'
    asyncio.run(postgresql_server.execute(drop))


@pytest.fixture
def postgresql_url(postgresql_server: PostgreSQLServer, postgresql: str) -> str:
    """The URL of the test's own database."""
    return postgresql_server.url(postgresql)
