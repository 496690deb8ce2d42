"""Fixtures of PostgreSQL: one private server, and a database with the tables for each test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from agentstore import connect
from servers import PostgreSQL

__all__ = ["postgresql_empty_url", "postgresql_server", "postgresql_template", "postgresql_url"]


async def asked(url: str, *statements: str) -> list[list[tuple[object, ...]]]:
    """Run statements as a witness who knows nothing of the store, and give their rows."""
    witness = await asyncpg.connect(url, ssl=False, statement_cache_size=0)
    try:
        return [[tuple(row) for row in await witness.fetch(one)] for one in statements]
    finally:
        await witness.close()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """The server that the tests share; it syncs, as one in earnest does."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: PostgreSQL) -> str:
    """A database with the tables, which is copied for each test."""

    async def make() -> str:
        await asked(postgresql_server.url, "CREATE DATABASE template_with_tables")
        url = urlsplit(postgresql_server.url)._replace(path="/template_with_tables").geturl()
        async with connect(url, connect_timeout=30):
            return "template_with_tables"

    return asyncio.run(make())


@pytest.fixture
def postgresql_url(postgresql_server: PostgreSQL, postgresql_template: str) -> Iterator[str]:
    """A database of the test's own, with the tables."""
    yield from _database(postgresql_server.url, f" TEMPLATE {postgresql_template}")


@pytest.fixture
def postgresql_empty_url(postgresql_server: PostgreSQL) -> Iterator[str]:
    """A database of the test's own, without tables."""
    yield from _database(postgresql_server.url, "")


def _database(url: str, template: str) -> Iterator[str]:
    name = f"t{uuid4().hex}"
    asyncio.run(asked(url, f"CREATE DATABASE {name}{template}"))
    yield urlsplit(url)._replace(path=f"/{name}").geturl()
    asyncio.run(asked(url, f"DROP DATABASE {name} WITH (FORCE)"))
