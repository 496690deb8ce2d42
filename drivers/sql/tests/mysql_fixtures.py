"""Fixtures of MariaDB: a database with the tables, which is emptied after each test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from agentstore import connect
from servers import MariaDB, ask, fresh_database

__all__ = ["asyncmy_url", "mysql_database", "mysql_url"]

_TABLES = ("messages", "sessions", "state", "versions")


@pytest.fixture(scope="session")
def mysql_database(mariadb: MariaDB) -> Iterator[str]:
    """A database with the tables: they take a second to make."""

    async def make(url: str) -> None:
        async with connect(url, connect_timeout=30):
            pass

    with fresh_database(mariadb.url) as url:
        asyncio.run(make(url))
        yield url


@pytest.fixture
def mysql_url(mysql_database: str) -> Iterator[str]:
    """The database with the tables, which are empty."""
    yield mysql_database
    ask(mysql_database, ";".join(f"DELETE FROM agentstore_{table}" for table in _TABLES))  # noqa: S608


@pytest.fixture
def asyncmy_url(mysql_url: str) -> str:
    """The same for the other client."""
    return mysql_url.replace("mysql://", "mysql+asyncmy://")
