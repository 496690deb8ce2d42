"""What the tests of SQLite share: a fresh file, a store on it, and a witness of what is in it."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio

from agentstore import Database, connect
from agentstore.url import URL
from agentstore_sql import SQLiteDriver

# For `sqlite_workers`, which the processes that the tests start import by its name, and for
# what the tests of a server share.
sys.path.insert(0, str(Path(__file__).parent))

from mysql_fixtures import (
    asyncmy_url,
    mysql_database,
    mysql_url,
)
from postgresql_fixtures import (
    postgresql_empty_url,
    postgresql_server,
    postgresql_template,
    postgresql_url,
)

from servers import mariadb, mariadb_url

__all__ = [
    "asyncmy_url",
    "mariadb",
    "mariadb_url",
    "mysql_database",
    "mysql_url",
    "postgresql_empty_url",
    "postgresql_server",
    "postgresql_template",
    "postgresql_url",
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database file is, once it is made."""
    return tmp_path / "agents.db"


@pytest.fixture
def url(path: Path) -> str:
    """The URL of the database file."""
    return f"sqlite:///{path}"


@pytest_asyncio.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """The store as an application opens it."""
    async with connect(url) as database:
        yield database


@pytest_asyncio.fixture
async def driver(url: str) -> AsyncIterator[SQLiteDriver]:
    """The driver alone: without checks, deadline and names in front."""
    driver = SQLiteDriver(URL.parse(url))
    await driver.open()
    yield driver
    await driver.close()


@pytest.fixture
def witness(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of SQLite's own to the file, which knows nothing of the store."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection
