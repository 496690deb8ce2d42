"""How the tables are made, and known again."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from textwrap import dedent

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine
from sqlite_workers import FORKS, open_store, open_until_killed

from agentstore import ConfigurationError, Database, connect
from agentstore_sql import Tables

HELLO = [{"role": "user", "content": "hello"}]


async def use(url: str) -> int:
    """Open the store, append a message, and tell how many there are."""
    async with connect(url) as database:
        await database.conversations.append("s", HELLO)
        return len(await database.conversations.read("s"))


@contextmanager
def looked_at(path: Path) -> Iterator[Connection]:
    """A connection of SQLAlchemy to the file, as an application would make it."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def schema(path: Path) -> dict[str, str]:
    """What SQLite itself keeps of the tables and the indexes: the statements that made them."""
    with closing(sqlite3.connect(path)) as witness:
        rows = witness.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {name: " ".join(sql.split()) for name, sql in rows}


def versions(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as witness:
        return [version for (version,) in witness.execute("SELECT * FROM agentstore_version")]


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as witness:
        return list(witness.iterdump())


@pytest.fixture
def intended(tmp_path: Path) -> dict[str, str]:
    """The schema as `Tables` has it, made without any migration."""
    path = tmp_path / "intended.db"
    with looked_at(path) as connection:
        Tables().metadata.create_all(connection)
        connection.commit()
    return schema(path)


def test_migrations_make_what_the_code_expects(url: str, path: Path) -> None:
    """Alembic finds no difference between the migrated file and `Tables`."""
    asyncio.run(use(url))
    tables = Tables()
    with looked_at(path) as connection:
        options = {"version_table": tables.version, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, tables.metadata) == []


def test_migrations_make_it_to_the_letter(url: str, path: Path, intended: dict[str, str]) -> None:
    """What Alembic doesn't compare is equal as well: keys, order within indexes, references."""
    asyncio.run(use(url))
    made = schema(path)
    assert "agentstore_version" in made
    del made["agentstore_version"]
    assert made == intended


def test_a_current_file_is_left_as_it_is(url: str, path: Path) -> None:
    """Opening again changes nothing, and keeps what is stored."""
    asyncio.run(use(url))
    before = schema(path)
    assert asyncio.run(use(url)) == 2
    assert schema(path) == before
    assert len(versions(path)) == 1


def test_many_processes_make_the_tables_once(url: str, path: Path) -> None:
    """20 processes that open the same new file at once all succeed, and one makes the tables."""
    start = FORKS.Barrier(20)
    processes = [FORKS.Process(target=open_store, args=(url, start)) for _ in range(20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(40)
    try:
        assert [process.exitcode for process in processes] == [0] * 20
    finally:
        for process in processes:
            process.kill()
    assert len(versions(path)) == 1
    assert asyncio.run(use(url)) == 21


def check_whole_or_empty(url: str, path: Path, intended: dict[str, str]) -> bool:
    """Check that a file has all the tables or none, and can be opened; tell which."""
    made = schema(path) if path.exists() else {}
    assert made.keys() in ({}.keys(), intended.keys() | {"agentstore_version"})
    assert asyncio.run(use(url)) == 1
    with closing(sqlite3.connect(path)) as witness:
        assert witness.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert len(versions(path)) == 1
    return bool(made)


def test_killed_at_every_statement(tmp_path: Path, intended: dict[str, str]) -> None:
    """A process that dies at any statement of making the tables leaves none, or all of them."""
    for statement in range(100):
        path = tmp_path / f"{statement}.db"
        url = f"sqlite:///{path}"
        process = FORKS.Process(target=open_until_killed, args=(url, statement))
        process.start()
        process.join(20)
        assert process.exitcode == -9
        if check_whole_or_empty(url, path, intended):
            break  # it had come behind the last of them
    assert statement >= 15


def test_killed_at_any_moment(tmp_path: Path, intended: dict[str, str]) -> None:
    """The same for 20 processes that are killed from outside while they open a new file."""
    chance = random.Random(20)
    for number in range(20):
        path = tmp_path / f"{number}.db"
        url = f"sqlite:///{path}"
        process = FORKS.Process(target=open_until_killed, args=(url, 10**6))
        process.start()
        time.sleep(chance.random() * 0.15)
        process.kill()
        process.join(10)
        if process.exitcode == -9:
            with closing(sqlite3.connect(path)) as witness:
                count = "SELECT count(*) FROM sqlite_master WHERE name = 'agentstore_messages'"
                made = witness.execute(count).fetchone() == (1,)
            if made and asyncio.run(use(url)) == 2:
                continue  # it had come as far as its message
        check_whole_or_empty(url, path, intended)


@pytest.mark.asyncio
async def test_a_newer_schema_is_refused(url: str, path: Path) -> None:
    """A file of a later version of the code is refused by name, and not touched."""
    await use(url)
    with closing(sqlite3.connect(path)) as witness:
        witness.execute("UPDATE agentstore_version SET version_num = '9999'")
        witness.commit()
    before = dump(path)
    with pytest.raises(ConfigurationError, match=r"version 9999, .* newer .*: upgrade it"):
        await use(url)
    assert dump(path) == before


@pytest.mark.asyncio
async def test_an_application_keeps_its_tables(url: str, path: Path) -> None:
    """In the file of an application with migrations of its own, both have their versions."""
    with closing(sqlite3.connect(path)) as application:
        application.executescript("""
            CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL);
            INSERT INTO alembic_version VALUES ('a1b2c3');
            CREATE TABLE sessions (id INTEGER PRIMARY KEY, note TEXT);
            INSERT INTO sessions (note) VALUES ('theirs');
        """)
    async with connect(url) as database:
        await database.conversations.append("s", HELLO)
        with closing(sqlite3.connect(path)) as application:
            application.execute("UPDATE alembic_version SET version_num = 'd4e5f6'")
            application.execute("INSERT INTO sessions (note) VALUES ('and more')")
            application.commit()
        await database.conversations.append("s", HELLO)
    assert await use(url) == 3
    with looked_at(path) as connection:
        assert MigrationContext.configure(connection).get_current_revision() == "d4e5f6"
        notes = connection.exec_driver_sql("SELECT note FROM sessions ORDER BY id").scalars()
        assert list(notes) == ["theirs", "and more"]


def test_a_current_file_is_opened_without_alembic(url: str) -> None:
    """Alembic is imported to make the tables, and not to find them there."""
    program = """
        import asyncio, json, sys
        from agentstore import connect

        async def main():
            async with connect(sys.argv[1]) as database:
                await database.conversations.append("s", [{"role": "user", "content": "x"}])

        asyncio.run(main())
        print(json.dumps("alembic" in sys.modules))
    """
    imported = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", dedent(program), url],
                stdout=subprocess.PIPE,
                check=True,
                timeout=30,
            ).stdout
        )
        for _ in range(2)
    ]
    assert imported == [True, False]


@pytest.mark.asyncio
async def test_foreign_keys_hold(database: Database, path: Path) -> None:
    """Where a session goes, none of its messages stays behind."""
    await database.conversations.append("s", HELLO * 3)
    assert await database.conversations.delete("s") is True
    with closing(sqlite3.connect(path)) as witness:
        assert witness.execute("SELECT count(*) FROM agentstore_messages").fetchone() == (0,)
        assert witness.execute("PRAGMA foreign_key_check").fetchall() == []
