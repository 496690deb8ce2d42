"""What is particular to LMDB: files, sizes, processes and handles."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from agentstore import ConfigurationError, Database, Message, StoreError, connect
from agentstore.errors import CapacityError, ConflictError

pytestmark = pytest.mark.asyncio

# Holds LMDB's lock for writers until its input ends.
HOLDER = """
import sys, lmdb
transaction = lmdb.open(sys.argv[1], map_size=2**36).begin(write=True)
print("held", flush=True)
sys.stdin.read()
"""

# Appends until it is killed, and tells what was acknowledged.
WRITER = """
import asyncio, sys
from agentstore import Message, connect

async def main(url, name, count):
    async with connect(url) as database:
        for number in range(int(count)):
            message = Message(role="user", content="x" * 2000, id=f"{name}-{number}")
            await database.conversations.append("s", [message])
            print(message.id, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def python(script: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(script: str, *arguments: object) -> list[str]:
    with python(script, *arguments) as process:
        told, failed = process.communicate(timeout=30)
    assert process.returncode == 0, failed
    assert "Traceback" not in failed
    return told.splitlines()


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Another process is in a transaction that writes."""
    with python(HOLDER, directory) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate()


async def say(database: Database, *texts: str, session: str = "s") -> None:
    for text in texts:
        await database.conversations.append(session, [Message(role="user", content=text)])


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.rglob("*")}


async def said(database: Database, session: str = "s") -> list[object]:
    return [message.content for message in await database.conversations.read(session)]


async def test_everything_is_there_again(tmp_path: Path) -> None:
    url = f"lmdb:///{tmp_path}/agents"
    async with connect(url) as database:
        await say(database, "one", "two")
        await database.state.user("ada").put("colour", "green")
    async with connect(url) as database:
        assert await said(database) == ["one", "two"]
        value = await database.state.user("ada").get("colour")
        assert value
        assert value.value == "green"


async def test_only_the_owner_reads_the_files(tmp_path: Path) -> None:
    async with connect(f"lmdb:///{tmp_path}/agents"):
        assert modes(tmp_path) == {"agents": 0o700, "data.mdb": 0o600, "lock.mdb": 0o600}


async def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with connect("lmdb:///agents"):
        assert (tmp_path / "agents" / "data.mdb").exists()


async def test_two_processes(tmp_path: Path) -> None:
    url = f"lmdb:///{tmp_path}/agents"
    async with connect(url) as database:
        with python(WRITER, url, "theirs", 50) as process:
            while process.poll() is None:
                await say(database, "ours", session="t")
                await asyncio.sleep(0.01)
        assert process.returncode == 0
        assert len(await said(database)) == 50
        assert set(await said(database, "t")) == {"ours"}


async def test_killed_writer_loses_nothing(tmp_path: Path) -> None:
    url = f"lmdb:///{tmp_path}/agents"
    acknowledged = []
    async with connect(url) as database:
        for run in range(20):
            with python(WRITER, url, run, 10**6) as process:
                assert process.stdout
                process.stdout.readline()
                acknowledged.append(f"{run}-0")
                await asyncio.sleep(run / 200)
                process.kill()
                acknowledged += process.stdout.read().split("\n")[:-1]
            await say(database, "beside", session="t")
        stored = set[str]()
        after = None
        while page := await database.conversations.read("s", first=500, after=after):
            stored.update(message.id for message in page)
            after = page[-1].seq
    assert len(acknowledged) > 20
    assert stored >= set(acknowledged)


async def test_reads_go_on_when_it_is_full(tmp_path: Path) -> None:
    url = f"lmdb:///{tmp_path}/agents"
    async with connect(url, map_size=200_000) as database:
        with pytest.raises(CapacityError) as caught:
            await say(database, *(str(number) * 1000 for number in range(1000)))
        assert caught.value.code == "MapFullError"
        stored = await said(database)
        assert stored
    async with connect(url, map_size=2**30) as database:
        await say(database, "more")
        assert await said(database) == [*stored, "more"]


async def test_another_process_has_a_larger_map(tmp_path: Path) -> None:
    url = f"lmdb:///{tmp_path}/agents"
    async with connect(f"{url}?map_size=200000") as database:
        await say(database, "before")
        output(WRITER, f"{url}?map_size=2000000", "theirs", 200)
        assert len(await said(database)) == 201
        await say(database, "after")


@pytest.mark.parametrize(
    "options", ["map_size=", "map_size=0", "map_size=-1", "map_size=2e9", "x=1"]
)
async def test_bad_options(tmp_path: Path, options: str) -> None:
    with pytest.raises(ConfigurationError):
        async with connect(f"lmdb:///{tmp_path}/agents?{options}"):
            pass
    assert not modes(tmp_path)


@pytest.mark.parametrize("url", ["lmdb:///", "lmdb://agents", "lmdb://agents/x", "lmdb:///a%00b"])
async def test_no_directory(url: str) -> None:
    with pytest.raises(ConfigurationError, match="names no directory"):
        async with connect(url):
            pass


async def test_path_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "agents").write_text("mine")
    with pytest.raises(ConfigurationError, match="ENOTDIR"):
        async with connect(f"lmdb:///{tmp_path}/agents"):
            pass
    assert (tmp_path / "agents").read_text() == "mine"


async def test_parent_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ENOENT"):
        async with connect(f"lmdb:///{tmp_path}/not/there"):
            pass


async def test_file_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"something else" * 1000)
    with pytest.raises(ConfigurationError, match="InvalidError"):
        async with connect(f"lmdb:///{tmp_path}"):
            pass


async def test_two_databases_of_one_process(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "link").symlink_to("agents")
    async with connect(f"lmdb:///{tmp_path}/agents") as one:
        async with connect(f"lmdb:///{tmp_path}/link") as other:
            await asyncio.gather(*(say(each, "hello") for each in (one, other) for _ in range(20)))
        await say(one, "hello")
        assert await said(one) == ["hello"] * 41


async def test_close_lets_go(tmp_path: Path) -> None:
    url = f"lmdb:///{tmp_path}/agents"
    message = Message(role="user", content="one")
    async with connect(url) as database:
        await database.conversations.append("s", [message])
        with pytest.raises(ConflictError) as kept:
            await database.conversations.append(
                "s", [Message(role="user", content="two", id=message.id)]
            )
    lmdb.open(f"{tmp_path}/agents").close()  # which LMDB refuses while a handle is open
    assert kept.type is ConflictError


async def test_opened_and_closed_all_the_time(tmp_path: Path) -> None:
    """An opening beside the last close finds the old handle or none."""

    async def use() -> None:
        for number in range(30):
            async with connect(f"lmdb:///{tmp_path}/agents") as database:
                await say(database, str(number))

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, use()) for _ in range(4)))


async def test_another_process_holds_the_lock(tmp_path: Path) -> None:
    """A write ends with its timeout; reads and a close don't wait, and the write may follow."""
    url = f"lmdb:///{tmp_path}/agents"
    async with connect(url, operation_timeout=1) as database:
        await say(database, "one")
        with held(tmp_path / "agents"):
            with pytest.raises(StoreError) as caught:
                await say(database, "two")
            assert caught.value.retryable
            assert await said(database) == ["one"]
            async with asyncio.timeout(1), connect(url) as other:
                assert await said(other) == ["one"]
        await say(database, "three")
        assert await said(database) in (["one", "three"], ["one", "two", "three"])


async def test_script_that_never_closes(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from agentstore import Message, connect

async def main():
    database = await manager.__aenter__()
    await database.conversations.append("s", [Message(role="user", content="one")])
    print("kept")

manager = connect(sys.argv[1])
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
"""
    url = f"lmdb:///{tmp_path}/agents"
    assert output(script, url) == ["kept"]
    async with connect(url) as database:
        assert await said(database) == ["one"]


async def test_exit_closes(tmp_path: Path) -> None:
    script = """
import sys
from agentstore import Message, db

database = db(sys.argv[1])
database.sync.conversations.append("s", [Message(role="user", content="one")])
"""
    assert not output(script, f"lmdb:///{tmp_path}/agents")


async def test_exit_does_not_wait_for_the_lock(tmp_path: Path) -> None:
    script = """
import sys
from agentstore import Message, db

database = db(sys.argv[1], operation_timeout=1)
try:
    database.sync.conversations.append("s", [Message(role="user", content="one")])
except Exception as failure:
    print(type(failure).__name__)
"""
    async with connect(f"lmdb:///{tmp_path}/agents"):
        pass
    with held(tmp_path / "agents"):
        assert output(script, f"lmdb:///{tmp_path}/agents") == ["DeadlineError"]


async def test_forked_child(tmp_path: Path) -> None:
    """Parent and child go on with one database of `db()`, on handles of their own."""
    script = """
import os, sys
from agentstore import Message, db

def say(text):
    database.sync.conversations.append("s", [Message(role="user", content=text)])

database = db(sys.argv[1])
say("before")
for _ in range(5):
    child = os.fork()
    if not child:
        say("child")
        os._exit(0)
    say("parent")
    assert os.waitpid(child, 0)[1] == 0
print(*sorted(message.content for message in database.sync.conversations.read("s")))
"""
    expected = " ".join(["before", *["child"] * 5, *["parent"] * 5])
    assert output(script, f"lmdb:///{tmp_path}/agents") == [expected]
