"""Several processes on one store, some of which are killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from agentstore import Database, Session, connect
from agentstore.errors import OverloadedError

WRITER = Path(__file__).with_name("json_writer.py")
KILLED_AT_ONCE = 2


@contextmanager
def writer(task: str, url: str, name: str, count: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Start a process that writes; it is gone at the end of the block."""
    command = [sys.executable, str(WRITER), task, url, name, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def run(script: str, *arguments: str) -> str:
    """Run a script to its own end, and give what it printed."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def write_all(task: str, url: str, count: int, *, processes: int) -> None:
    with ExitStack() as stack:
        started = [
            stack.enter_context(writer(task, url, f"writer {n}", count)) for n in range(processes)
        ]
        assert [process.wait() for process in started] == [0] * processes


def read(url: str, *session_ids: str) -> list[list[str]]:
    """Read sessions: the texts of each."""

    async def main() -> list[list[str]]:
        async with connect(url) as database:
            histories = [await database.conversations.read(each) for each in session_ids]
        return [[message.text for message in history] for history in histories]

    return asyncio.run(main())


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(60, marks=[pytest.mark.timeout(120)]),
        pytest.param(600, marks=[pytest.mark.timeout(1200), pytest.mark.nightly]),
    ],
)
def test_killed_writers(url: str, kills: int) -> None:
    """Whenever writers are killed: nothing acknowledged is lost, nothing is there twice or torn."""
    acknowledged: list[str] = []
    for round_ in range(kills // KILLED_AT_ONCE):
        with ExitStack() as stack:
            names = [f"{round_}-{n}" for n in range(KILLED_AT_ONCE)]
            started = [stack.enter_context(writer("endless", url, name)) for name in names]
            for process in started:
                assert process.stdout is not None
                acknowledged.append(process.stdout.readline())
                assert acknowledged[-1], "the writer ended by itself"
            time.sleep(random.uniform(0, 0.05))
            for process in started:
                process.send_signal(signal.SIGKILL)
            for process in started:
                assert process.stdout is not None
                # The last line may be torn itself.
                acknowledged += [line for line in process.stdout if line.endswith("\n")]
    seen: dict[str, list[tuple[str, int]]] = {}
    for line in acknowledged:
        kind, name, number = line.split()
        seen.setdefault(kind, []).append((name, int(number)))
    assert len(seen["shared"]) >= kills
    asyncio.run(check_after_kills(url, seen))


async def check_after_kills(url: str, seen: dict[str, list[tuple[str, int]]]) -> None:
    async with connect(url) as database:
        history = await database.conversations.read("shared")
        seqs = [message.seq or 0 for message in history]
        assert seqs == sorted(set(seqs))
        ids = [message.id for message in history]
        assert max(Counter(ids).values()) == 1
        # A pair is one append: neither half is there alone, and nothing between the halves.
        pairs = [one.rpartition("/")[0] for one in ids]
        assert pairs[::2] == pairs[1::2]
        stored: dict[str, list[int]] = {}
        for each in pairs[::2]:
            name, _, number = each.partition("/")
            stored.setdefault(name, []).append(int(number))
        # In each writer's order, without a gap: only what was under way may be there or not.
        assert all(numbers == list(range(len(numbers))) for numbers in stored.values())
        assert all(number < len(stored[name]) for name, number in seen["shared"])

        listed = [session.session_id async for session in all_sessions(database)]
        assert max(Counter(listed).values()) == 1
        assert {f"{name}/{number}" for name, number in seen["own"]} <= {*listed}
        redacted = {*seen.get("redacted", [])}
        for session_id in listed:
            if session_id == "shared":
                continue
            name, _, number = session_id.partition("/")
            texts = [m.text for m in await database.conversations.read(session_id)]
            assert texts[1:] == [f"{name} {number}"]
            assert texts[0] in ("redacted", texts[1])
            assert texts[0] == "redacted" or (name, int(number)) not in redacted
        for key, least in seen.get("state", []):
            value = await database.state.app().get(key)
            assert value is not None
            assert value.value >= least


async def all_sessions(database: Database) -> AsyncIterator[Session]:
    cursor: str | None = None
    while True:
        page = await database.conversations.sessions(prefix="", limit=500, cursor=cursor)
        for session in page:
            yield session
        if (cursor := page.cursor) is None:
            return


def test_two_processes_one_session(url: str) -> None:
    """Two processes append 300 times each to one session: all is stored once, in their orders."""
    write_all("one_session", url, 300, processes=2)
    (texts,) = read(url, "shared")
    assert len(texts) == 600
    for n in range(2):
        mine = [text for text in texts if text.startswith(f"writer {n} ")]
        assert mine == [f"writer {n} {number}" for number in range(300)]


def test_sixteen_processes(url: str) -> None:
    """16 processes append 200 times each to ten sessions: all is stored once, in their orders."""
    write_all("spread", url, 200, processes=16)
    sessions = read(url, *(f"session {n}" for n in range(10)))
    for session, texts in enumerate(sessions):
        for n in range(16):
            mine = [text for text in texts if text.startswith(f"writer {n} ")]
            assert mine == [f"writer {n} {number}" for number in range(session, 200, 10)]
        assert len(texts) == 16 * 20


def test_exit_without_close(url: str) -> None:
    """A script that never closes the store exits by itself, and what was acknowledged is there."""
    script = """
import asyncio, sys
from agentstore.database import Database
from agentstore.url import URL
from agentstore.wrappers import Bound
from agentstore_json import JSONDriver

async def main():
    database = Database(Bound(JSONDriver(URL.parse(sys.argv[1]))))
    await database.open()
    for n in range(20):
        await database.conversations.append("s", [{"role": "user", "content": str(n)}])
    append = database.conversations.append("s", [{"role": "user", "content": "20"}])
    asyncio.create_task(append)
    await asyncio.sleep(0)

asyncio.run(main())
"""
    run(script, url)
    (texts,) = read(url, "s")
    assert texts[:20] == [str(n) for n in range(20)]
    assert texts[20:] in ([], ["20"])


def test_exit_of_a_blocking_script(url: str) -> None:
    """The blocking face needs no closing either."""
    script = """
import sys
from agentstore import db

database = db(sys.argv[1])
for n in range(20):
    database.sync.conversations.append("s", [{"role": "user", "content": str(n)}])
"""
    run(script, url)
    assert read(url, "s") == [[str(n) for n in range(20)]]


def test_lock_of_another_process(url: str, base: Path, file_of: Callable[..., Path]) -> None:
    """A session that another process holds for too long is `OverloadedError`; others are free."""
    read(url, "s")
    script = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print(flush=True)
    sys.stdin.read()
"""
    lock = base / "locks" / file_of("s").name[:2]
    command = [sys.executable, "-c", script, str(lock)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as holder:  # type: ignore[call-overload]
        holder.stdout.readline()
        started = time.monotonic()
        with pytest.raises(OverloadedError, match="locked .* for 0.3 s: `timeout` says"):
            read(f"{url}?timeout=0.3", "s")
        assert 0.3 <= time.monotonic() - started < 2
        assert read(f"{url}?timeout=0.3", "another") == [[]]
        holder.stdin.close()
    assert read(f"{url}?timeout=0.3", "s") == [[]]


def test_locks_of_the_dead(url: str, base: Path) -> None:
    """What a killed process held is free at once."""
    script = """
import fcntl, os, signal, sys
files = [open(f"{sys.argv[1]}/{n:02x}", "w") for n in range(256)]
for file in files:
    fcntl.flock(file, fcntl.LOCK_EX)
os.kill(os.getpid(), signal.SIGKILL)
"""
    read(url, "s")
    subprocess.run([sys.executable, "-c", script, str(base / "locks")], check=False)
    write_all("one_session", f"{url}?timeout=0.1", 1, processes=1)
    assert read(url, "shared") == [["writer 0 0"]]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
@pytest.mark.parametrize("state", ["made", "to be made"])
def test_read_only_directory(state: str) -> None:
    """A directory that can't be written is refused when the store is opened."""
    script = """
import asyncio, os, sys
import agentstore.database, agentstore_json

async def main():
    try:
        async with agentstore.connect(sys.argv[1]):
            pass
    except agentstore.ConfigurationError as error:
        print(error)

os.setuid(65534)
asyncio.run(main())
"""
    with tempfile.TemporaryDirectory() as parent:
        url = f"json:///{parent}/store"
        if state == "made":
            read(url)
        for path in (Path(parent), *Path(parent).rglob("*")):
            path.chmod(0o755)
        assert "can't be opened for writing" in run(script, url)


def test_system_without_fcntl(url: str) -> None:
    """Where there is no `fcntl`, as on Windows, the reason and the remedy are told."""
    script = """
import asyncio, sys
import agentstore.database

async def main():
    try:
        async with agentstore.connect(sys.argv[1]):
            pass
    except agentstore.ConfigurationError as error:
        print(error)

sys.modules["fcntl"] = None
asyncio.run(main())
"""
    assert run(script, url).endswith("which Windows doesn't have: use sqlite:// there\n")


def test_full_disk(url: str) -> None:
    """A disk that is full is `CapacityError`: what is there stays, is read, and all goes on later.

    Here it is a limit to the size of files, which is met in the middle of a line.
    """
    script = """
import asyncio, resource, sys
from agentstore import connect
from agentstore.errors import CapacityError

def said(text):
    return [{"role": "user", "content": text}]

async def main():
    async with connect(sys.argv[1]) as database:
        conversations = database.conversations
        stored = 0
        try:
            while True:
                await conversations.append("s", said(f"{stored} " + "x" * 1000))
                stored += 1
        except CapacityError as error:
            assert not error.outcome_unknown
            print(error)
        print(stored, len(await conversations.read("s")))
        for call in (
            conversations.append("s", said("y" * 30_000)),
            conversations.append("new", said("y" * 30_000)),
            database.state.app().put("key", "y" * 30_000),
        ):
            try:
                await call
            except CapacityError:
                pass
            else:
                raise AssertionError
        await conversations.append("another", said("fits"))
        print(len(await conversations.sessions()))

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
asyncio.run(main())
"""
    error, counts, sessions = run(script, url).splitlines()
    assert error.endswith("the disk is full; nothing was written [EFBIG]")
    stored, shown = map(int, counts.split())
    assert stored == shown > 10
    assert sessions == "2"
    texts, new, another = read(url, "s", "new", "another")
    assert [text.split()[0] for text in texts] == [str(n) for n in range(stored)]
    assert (new, another) == ([], ["fits"])
    write_all("one_session", url, 1, processes=1)
