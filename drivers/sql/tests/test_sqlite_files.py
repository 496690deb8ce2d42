"""Which file a URL names, how it is opened, and what a wrong one gets."""
# ruff: noqa: ASYNC240 - these files are small, and the loops wait for nothing else

from __future__ import annotations

import asyncio
import os
import re
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import pytest
from sqlalchemy import Connection, create_engine, inspect

from agentstore import ConfigurationError, Database, connect
from agentstore.errors import UnavailableError
from agentstore.types import Durability
from agentstore.url import URL
from agentstore_sql import SQLiteDriver

HELLO = [{"role": "user", "content": "hello"}]

PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": 2,  # FULL
    "foreign_keys": 1,
    "secure_delete": 1,
    "busy_timeout": 10_000,
}


@pytest.fixture
def no_umask() -> Iterator[None]:
    """Nothing takes permissions away from new files but who makes them."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that every user reaches; those of pytest are its user's alone."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def pragmas(connection: Connection) -> dict[str, object]:
    return {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in PRAGMAS}


def modes(directory: Path) -> dict[str, str]:
    return {file.name: oct(stat.S_IMODE(file.stat().st_mode)) for file in directory.iterdir()}


@pytest.mark.asyncio
@pytest.mark.usefixtures("no_umask")
async def test_files_are_their_owners_alone(url: str, path: Path) -> None:
    """The database, its log and its index are made 0600, whatever the umask."""
    async with connect(url) as database:
        await database.conversations.append("s", HELLO)
        assert modes(path.parent) == dict.fromkeys(
            ["agents.db", "agents.db-wal", "agents.db-shm"], "0o600"
        )


@pytest.mark.asyncio
async def test_an_existing_file_keeps_its_mode(url: str, path: Path) -> None:
    """A file that somebody else made is left as open as it is, and its log is no more open."""
    path.touch()
    path.chmod(0o640)
    async with connect(url) as database:
        await database.conversations.append("s", HELLO)
        assert set(modes(path.parent).values()) == {"0o640"}


@pytest.mark.asyncio
async def test_every_connection_is_set_up(driver: SQLiteDriver) -> None:
    """WAL, FULL, foreign keys and secure delete hold on the writer and on every reader."""
    found = [await driver.write(pragmas), *[await driver.read(pragmas) for _ in range(8)]]
    assert found == [PRAGMAS] * 9


@pytest.mark.asyncio
async def test_normal_is_an_option_that_says_so(url: str) -> None:
    """`synchronous=normal` fsyncs less, and declares it."""
    driver = SQLiteDriver(URL.parse(f"{url}?synchronous=NORMAL&timeout=2.5"))
    await driver.open()
    assert await driver.write(pragmas) == PRAGMAS | {"synchronous": 1, "busy_timeout": 2_500}
    assert driver.capabilities.durability == "weak"
    await driver.close()


def test_durability_is_declared(url: str) -> None:
    """A file is strong by default, a database in memory is gone with the process."""
    assert SQLiteDriver(URL.parse(url)).capabilities.durability == "strong"
    assert SQLiteDriver(URL.parse("sqlite://")).capabilities.durability == "none"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///agents.db", "agents.db"),
        ("sqlite+aiosqlite:///agents.db", "agents.db"),
        ("SQLite:///agents.db", "agents.db"),
        ("sqlite:///./sub/../agents.db", "agents.db"),
        ("sqlite:///a%20b%3Fc%23.db", "a b?c#.db"),
        ("sqlite:///é.db", "é.db"),
        ("sqlite:///%C3%A9.db", "é.db"),
        ("sqlite:///file:agents.db", "file:agents.db"),
        ("sqlite:////{cwd}/agents.db", "agents.db"),
        ("sqlite:////{cwd}/sub/agents.db?timeout=3", "sub/agents.db"),
    ],
)
async def test_paths_are_read_as_sqlalchemy_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, file: str
) -> None:
    """Three slashes and a relative path, four and an absolute one, with percent escapes."""
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    url = url.replace("{cwd}", str(tmp_path).lstrip("/"))
    async with connect(url) as database:
        await database.conversations.append("s", HELLO)
    assert [f.relative_to(tmp_path) for f in tmp_path.rglob("*.db")] == [Path(file)]
    engine = create_engine(url.lower().replace("+aiosqlite", "").partition("?")[0])
    with engine.connect() as connection:
        assert "agentstore_sessions" in inspect(connection).get_table_names()
    engine.dispose()


@pytest.mark.asyncio
async def test_a_relative_path_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that changes its directory doesn't change its database."""
    monkeypatch.chdir(tmp_path)
    driver = SQLiteDriver(URL.parse("sqlite:///agents.db"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    await driver.open()
    await driver.close()
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["agents.db"]


@pytest.mark.asyncio
@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
async def test_memory_serves_concurrent_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """In memory, 50 tasks that write and read at once see one database, and nobody else's."""
    monkeypatch.chdir(tmp_path)

    async def converse(database: Database, n: int) -> None:
        for _ in range(4):
            result = await database.conversations.append("shared", HELLO)
            assert result.durability is Durability.BUFFERED
            await database.conversations.append(f"s{n}", HELLO)
            own = await database.conversations.read(f"s{n}")
            assert own[-1].text == "hello"

    async with connect(url) as database, connect(url) as other:
        await asyncio.gather(*(converse(database, n) for n in range(50)))
        assert len(await database.conversations.read("shared")) == 200
        for n in range(50):
            assert len(await database.conversations.read(f"s{n}")) == 4
        assert await other.conversations.get("shared") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://agents.db", r"sqlite://agents\.db names a host: a path takes three slashes"),
        ("sqlite://:memory:", r"names a host"),
        ("sqlite://localhost:port/agents.db", r"names a host"),
        (
            "sqlite://user:secret@host/agents.db",
            r"sqlite://user:\*\*\*@host/agents.db names",
        ),
        ("sqlite:agents.db", r"is not a URL: expected scheme://…"),
        ("sqlite:///agents.db?timout=3", r"no option 'timout'; did you mean timeout\?"),
        ("sqlite:///agents.db?mode=ro", r"no option 'mode'; known are synchronous, timeout"),
        ("sqlite:///agents.db?timeout=3&timeout=4", r"an option is given twice"),
        ("sqlite:///agents.db?timeout=soon", r"timeout is 'soon': give it in seconds"),
        ("sqlite:///agents.db?timeout=-1", r"timeout is '-1': 0 to 3600 seconds"),
        ("sqlite:///agents.db?timeout=nan", r"timeout is 'nan': 0 to 3600 seconds"),
        ("sqlite:///agents.db?timeout=", r"timeout is '': give it in seconds"),
        ("sqlite:///agents.db?synchronous=off", r"synchronous is 'off': full or normal"),
        ("sqlite:///missing/agents.db", r"directory \S+/missing of the database is missing"),
        ("sqlite:///file/agents.db", r"file \S+/file/agents\.db can't be opened .*: Not a dir"),
        ("sqlite:///sub", r"the database file \S+/sub can't be opened .*: Is a directory"),
        ("sqlite:///socket", r"the database file \S+/socket can't be opened .*: No such device"),
        ("sqlite:///a%00b.db", r"the path of the database has a NUL character"),
        (f"sqlite:///{'x' * 300}", r"can't be opened for writing: File name too long"),
        ("sqlite:///file", r"the file is not a SQLite database \[SQLITE_NOTADB\]"),
    ],
)
async def test_a_wrong_url_says_what_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    """Each mistake is a `ConfigurationError` with its own sentence, and makes no file."""
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("file").write_text("Dear diary, this is no database.\n" * 50)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        before = {file: file.stat().st_size for file in tmp_path.rglob("*")}
        with pytest.raises(ConfigurationError, match=message):
            async with connect(url):
                pass
    assert {file: file.stat().st_size for file in tmp_path.rglob("*")} == before


@pytest.mark.asyncio
async def test_options_can_be_arguments(url: str) -> None:
    """An option of `connect` goes before the one in the URL, and is checked as well."""
    with pytest.raises(ConfigurationError, match="synchronous is 'extra': full or normal"):
        async with connect(f"{url}?synchronous=full", synchronous="extra"):
            pass


UNPRIVILEGED = """
    import asyncio, os, sys
    from agentstore import connect
    from agentstore_sql import SQLiteDriver  # while its files can be read

    if os.geteuid() == 0:  # permissions bind everybody else
        os.setuid(65534)

    async def main():
        async with connect(sys.argv[1]) as database:
            await database.conversations.append("s", [{"role": "user", "content": "x"}])

    try:
        asyncio.run(main())
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("file_mode", "directory_mode", "message"),
    [
        (0o444, 0o777, r"ConfigurationError the database file \S+ can't be .*: Permission denied"),
        (0o666, 0o555, r"ConfigurationError the database file can't be opened: is its directory"),
        (0o666, 0o000, r"ConfigurationError the database file \S+ can't be .*: Permission denied"),
        (0o666, 0o777, r""),
    ],
)
def test_missing_permissions_are_told(
    public_directory: Path, file_mode: int, directory_mode: int, message: str
) -> None:
    """A read-only file, one in a read-only directory and one out of reach are refused as such."""
    directory = public_directory / "sub"
    directory.mkdir()
    path = directory / "agents.db"

    async def make() -> None:
        async with connect(f"sqlite:///{path}") as database:
            await database.conversations.append("s", HELLO)

    asyncio.run(make())
    path.chmod(file_mode)
    directory.chmod(directory_mode)
    try:
        run = subprocess.run(
            [sys.executable, "-c", dedent(UNPRIVILEGED), f"sqlite:///{path}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    finally:
        directory.chmod(0o755)
    assert re.match(message, run.stdout)
    assert bool(run.stdout) == bool(message)
    with closing(sqlite3.connect(path)) as witness:
        stored = witness.execute("SELECT count(*) FROM agentstore_messages").fetchone()
    assert stored == (1 if message else 2,)


@pytest.mark.asyncio
@pytest.mark.parametrize("what", ["removed", "replaced"])
async def test_a_file_that_went_away_is_noticed(
    database: Database, path: Path, tmp_path: Path, what: str
) -> None:
    """What can't be found any more is not acknowledged, and not read as if it were there."""
    await database.conversations.append("s", HELLO)
    aside = tmp_path / "aside.db"
    path.rename(aside)
    if what == "replaced":
        path.write_bytes(aside.read_bytes())
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: database.conversations.append("s", HELLO),
        lambda: database.conversations.read("s"),
        lambda: database.state.app().put("key", 1),
    ]
    for call in calls:
        with pytest.raises(UnavailableError, match="removed or replaced while it was open") as e:
            await call()
        assert e.value.outcome_unknown is False
    assert (await database.health()).ok is False
    aside.rename(path)
    result = await database.conversations.append("s", HELLO)
    assert result.seqs == (2,)
    assert (await database.health()).ok is True
