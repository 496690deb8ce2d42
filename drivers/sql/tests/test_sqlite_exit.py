"""How programs end that use SQLite, closed or not, forked or not."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import pytest

from agentstore import ConfigurationError, connect

PROMPT = 20.0  # seconds: ample to start and to exit on a busy machine; a hang takes for ever

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def run(program: str, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program that ends by itself; it finds the URL in its arguments."""
    return subprocess.run(
        [sys.executable, *options, "-c", dedent(program), url],
        capture_output=True,
        text=True,
        timeout=PROMPT,
        check=False,
    )


def stored(path: Path) -> list[str]:
    """The texts that the file holds, read by SQLite alone; the file is sound."""
    with closing(sqlite3.connect(path)) as witness:
        assert witness.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = witness.execute(
            "SELECT json_extract(body, '$.content') FROM agentstore_messages ORDER BY rowid"
        )
        return [text for (text,) in rows]


CHAT = """
    import sys
    from agentstore import Agent, db

    agent = Agent(name="A", llm="offline", db=db(database_url=sys.argv[1]), session_id="s")
    agent.chat("Hello!")
    agent.chat("And again!")
"""


def test_a_program_that_never_closes_ends_by_itself(url: str, path: Path) -> None:
    """A synchronous script exits with 0, says nothing, and has lost nothing."""
    for turns in (2, 4):
        ended = run(CHAT, url)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        texts = stored(path)
        assert texts[0::2] == ["Hello!", "And again!"] * (turns // 2)
        assert len(texts) == 2 * turns
        assert [file.name for file in path.parent.iterdir()] == ["agents.db"]


@pytest.mark.parametrize(
    ("end", "status"),
    [("sys.exit(3)", 3), ("raise LookupError('theirs')", 1), ("os._exit(4)", 4)],
)
def test_however_it_ends_nothing_is_lost(url: str, path: Path, end: str, status: int) -> None:
    """A script that exits, breaks or is gone at once keeps its status and what was answered."""
    ended = run(dedent(CHAT) + f"import os\n{end}\n", url)
    assert ended.returncode == status
    assert ended.stderr.count("Traceback") == end.count("raise")
    assert stored(path)[0::2] == ["Hello!", "And again!"]


CRASH = """
    import asyncio, sys
    from agentstore import connect

    async def main():
        {opening}
        await database.conversations.append("s", [{{"role": "user", "content": "one"}}])
        asyncio.create_task(
            database.conversations.append("s", [{{"role": "user", "content": "perhaps"}}])
        )
        await asyncio.sleep(0)
        raise LookupError("theirs")

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    "opening",
    [
        "opened = connect(sys.argv[1]); database = await opened.__aenter__()",
        # Nobody keeps the context manager, so that Python closes it, and is cut off.
        "database = await connect(sys.argv[1]).__aenter__()",
    ],
)
def test_a_crashed_loop_ends_too(url: str, path: Path, opening: str) -> None:
    """A loop that ends with the store open shows the program's own error, and no other."""
    ended = run(CRASH.format(opening=opening), url)
    assert ended.returncode == 1
    assert ended.stderr.endswith("LookupError: theirs\n")
    assert ended.stderr.count("Traceback") == 1
    assert stored(path) in (["one"], ["one", "perhaps"])


CLOSED = """
    import asyncio, gc, sys, threading
    from agentstore import connect, db

    async def main():
        async with connect(sys.argv[1]) as database:
            await database.conversations.append("s", [{"role": "user", "content": "one"}])
            await database.conversations.read("s")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    gc.collect()
    assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
    database = db(sys.argv[1])
    database.sync.conversations.append("s", [{"role": "user", "content": "two"}])
    database.sync.close()
    gc.collect()
    assert {thread.name for thread in threading.enumerate()} == {"MainThread", "agentstore"}
"""


def test_closed_properly_nothing_is_left(url: str, path: Path) -> None:
    """With every warning an error, no connection, task or thread of a closed store remains."""
    ended = run(CLOSED, url, "-W", "error")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert stored(path) == ["one", "two"]


def test_a_failed_opening_leaves_no_thread(tmp_path: Path) -> None:
    """Where the file can't be opened, the thread has ended when the error comes."""
    path = tmp_path / "diary.txt"
    path.write_text("Dear diary, this is no database.\n" * 50)

    async def fail() -> None:
        with pytest.raises(ConfigurationError, match="not a SQLite database"):
            async with connect(f"sqlite:///{path}"):
                pass

    before = threading.active_count()
    for _ in range(10):
        asyncio.run(fail())
    for thread in threading.enumerate()[before:]:
        thread.join(1)
    assert threading.active_count() == before


FORK = """
    import os, sys
    from agentstore import db

    database = db(sys.argv[1])
    conversations = database.sync.conversations

    def say(text):
        conversations.append("s", [{"role": "user", "content": text}])

    say("parent")
    to_parent, from_child = os.pipe()
    to_child, from_parent = os.pipe()
    child = os.fork()
    if child == 0:
        say("child, beside its parent")
        os.write(from_child, b".")
        os.read(to_child, 1)
        say("child, alone")
        os._exit(0)  # not closed: what was acknowledged has to be there
    os.read(to_parent, 1)
    say("parent, beside its child")
    database.sync.close()
    os.write(from_parent, b".")
    _, status = os.waitpid(child, 0)
    sys.exit(status)
"""


@forks
def test_parent_and_child_both_go_on(url: str, path: Path) -> None:
    """After a fork both use the same `db()`, and the child's messages outlive its parent's file."""
    ended = run(FORK, url, "-W", "ignore::DeprecationWarning")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert stored(path) == [
        "parent",
        "child, beside its parent",
        "parent, beside its child",
        "child, alone",
    ]


BUSY = """
    import os, sys, threading, time
    from agentstore import db

    database = db(sys.argv[1])
    conversations = database.sync.conversations
    stop = threading.Event()
    counts = [0] * 4

    def say(session):
        conversations.append(session, [{"role": "user", "content": session}])

    def work(number):
        while not stop.is_set():
            say(f"thread {number}")
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    failed = 0
    for number in range(20):
        time.sleep(0.01)
        child = os.fork()
        if child == 0:
            say("child")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        failed += status != 0
    stop.set()
    for thread in threads:
        thread.join()
    database.sync.close()
    print(failed, *counts)
"""


@forks
def test_a_busy_program_forks_safely(url: str, path: Path) -> None:
    """Whatever its threads are writing, a process can fork: no child hangs, nothing is lost."""
    ended = run(BUSY, url, "-W", "ignore::DeprecationWarning")
    assert (ended.returncode, ended.stderr) == (0, "")
    failed, *counts = map(int, ended.stdout.split())
    assert failed == 0
    assert min(counts) > 0
    texts = stored(path)
    assert [texts.count(f"thread {number}") for number in range(4)] == counts
    assert texts.count("child") == 20
