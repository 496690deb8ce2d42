"""`db()`: one object for every loop, thread and process, opened and closed at the right time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from agentstore import Agent, ConfigurationError, Database, db
from agentstore._portal import portal
from agentstore.errors import ClosedError, ConflictError, StoreError, UnavailableError
from agentstore.hosted import Hosted
from agentstore.memory import MemoryDriver
from agentstore.url import URL

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class Slow(MemoryDriver):
    """Takes its time to open and to close, may fail to open, and counts what happens to it."""

    opened: ClassVar = 0
    closed: ClassVar = 0
    delay: ClassVar = 0.0
    failures: ClassVar[list[Exception]] = []
    alive: ClassVar[weakref.WeakSet[Slow]] = weakref.WeakSet()

    def __init__(self) -> None:
        super().__init__(URL.parse("memory://"))
        Slow.alive.add(self)
        self.closes = 0

    async def open(self) -> None:
        Slow.opened += 1
        await asyncio.sleep(Slow.delay)
        if Slow.failures:
            raise Slow.failures.pop()
        await super().open()

    async def close(self) -> None:
        self.closes += 1
        assert self.closes == 1
        await asyncio.sleep(Slow.delay)
        Slow.closed += 1
        await super().close()


@pytest.fixture
def slow() -> Iterator[Database]:
    """A database whose driver takes 50 ms to open and to close."""
    Slow.opened, Slow.closed, Slow.delay, Slow.failures = 0, 0, 0.05, []
    database = Database(Hosted(Slow), blocking=True)
    yield database
    with contextlib.suppress(StoreError):
        database.sync.close()


def in_threads(count: int, work: Callable[[int], object]) -> list[object]:
    """Run `work` in so many threads at once, and give what each returned or raised."""
    outcomes: list[object] = [None] * count
    together = threading.Barrier(count)

    def run(number: int) -> None:
        together.wait(30)
        try:
            outcomes[number] = work(number)
        except Exception as error:  # noqa: BLE001 - it is the outcome
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


# --- opening


def test_nothing_is_opened_before_the_first_use(slow: Database) -> None:
    """Making a database opens nothing, and its capabilities are known."""
    assert slow.capabilities.embedded is True
    assert Slow.opened == 0
    slow.sync.open()
    slow.sync.open()
    assert Slow.opened == 1


def test_sixteen_threads_at_once(slow: Database) -> None:
    """The first use from sixteen threads at once is one opening, and loses nothing."""
    in_threads(16, lambda number: slow.sync.conversations.append("s", say(str(number))))
    texts = [message.text for message in slow.sync.conversations.read("s")]
    assert sorted(texts, key=int) == [str(number) for number in range(16)]
    assert Slow.opened == 1


def test_eight_loops_at_once(slow: Database) -> None:
    """So is the first use from eight `asyncio.run()` at once."""

    async def write(number: int) -> None:
        await asyncio.gather(
            *(slow.conversations.append("s", say(f"{number} {one}")) for one in range(5))
        )

    outcomes = in_threads(8, lambda number: asyncio.run(write(number)))
    assert outcomes == [None] * 8
    assert len(slow.sync.conversations.read("s")) == 40
    assert Slow.opened == 1


def test_opening_that_fails_is_tried_again(slow: Database) -> None:
    """Everyone who waits for an opening gets its error; the next call opens anew."""
    Slow.failures = [UnavailableError("not yet")]
    outcomes = in_threads(8, lambda _: slow.sync.conversations.get("s"))
    assert {type(outcome) for outcome in outcomes} <= {UnavailableError, type(None)}
    assert UnavailableError in {type(outcome) for outcome in outcomes}
    assert slow.sync.conversations.get("s") is None
    assert slow.sync.conversations.get("s") is None
    assert Slow.opened == 2


@pytest.mark.asyncio
async def test_cancelled_while_it_opens(slow: Database) -> None:
    """The opening goes on for the others, and for the next."""
    first = asyncio.create_task(slow.conversations.get("s"))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(slow.conversations.get("s"))
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second is None
    assert Slow.opened == 1


@pytest.mark.asyncio
async def test_cancelled_while_an_opening_fails(
    slow: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """An opening that fails when nobody waits for it any more is tried again by the next call."""
    Slow.failures = [UnavailableError("not yet")]
    first = asyncio.create_task(slow.conversations.get("s"))
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.sleep(0.1)
    gc.collect()
    assert await slow.conversations.get("s") is None
    assert Slow.opened == 2
    assert caplog.records == []


def test_failed_openings_leave_nothing(slow: Database) -> None:
    """A store that can't be opened a hundred times leaves neither drivers nor closers behind."""
    Slow.delay = 0.0
    closers = len(portal()._closers)
    Slow.failures = [UnavailableError("not yet") for _ in range(100)]
    for _ in range(100):
        with pytest.raises(UnavailableError):
            slow.sync.conversations.get("s")
    assert len(portal()._closers) == closers
    gc.collect()
    assert len(Slow.alive) <= 2


def test_error_is_not_kept_alive(slow: Database) -> None:
    """An error goes when its caller drops it, and each time it is as long as before."""
    slow.sync.state.app().put("k", 1)
    errors: list[weakref.ref[ConflictError]] = []
    depths: set[int] = set()
    gc.disable()
    try:
        for _ in range(5):
            try:
                slow.sync.state.app().put("k", 2, expect=0)
            except ConflictError as error:
                errors.append(weakref.ref(error))
                depths.add(len(traceback.extract_tb(error.__traceback__)))
        for _ in range(200):  # the loop's thread lets go a moment later
            if not any(error() for error in errors):
                break
            time.sleep(0.01)
        assert [error() for error in errors] == [None] * 5
        assert len(depths) == 1
    finally:
        gc.enable()


# --- closing


def test_close(slow: Database) -> None:
    """Closing happens once, and every use behind it is a `ClosedError`."""
    slow.sync.conversations.append("s", say("hi"))
    slow.sync.close()
    slow.sync.close()
    assert (Slow.opened, Slow.closed) == (1, 1)
    for use in (slow.sync.open, lambda: slow.sync.conversations.read("s")):
        with pytest.raises(ClosedError, match="the database is closed"):
            use()
    assert slow.sync.health().ok is False


def test_close_unopened(slow: Database) -> None:
    """What was never opened is closed all the same, and stays so."""
    slow.sync.close()
    with pytest.raises(ClosedError):
        slow.sync.conversations.read("s")
    assert (Slow.opened, Slow.closed) == (0, 0)


def test_close_from_many_threads(slow: Database) -> None:
    """Eight who close at once all wait for the one closing."""
    slow.sync.open()
    closed: list[int] = []

    def close(_: int) -> None:
        slow.sync.close()
        closed.append(Slow.closed)

    assert in_threads(8, close) == [None] * 8
    assert closed == [1] * 8


def test_close_while_it_opens(slow: Database) -> None:
    """A close in the middle of the opening leaves nothing open."""
    thread = threading.Thread(target=in_threads, args=(1, lambda _: slow.sync.open()))
    thread.start()
    while not Slow.opened:
        time.sleep(0.001)
    slow.sync.close()
    thread.join()
    assert (Slow.opened, Slow.closed) == (1, 1)


@pytest.mark.asyncio
async def test_cancelled_close(slow: Database) -> None:
    """A close that is cancelled goes on by itself, and can be waited for again."""
    await slow.open()
    closing = asyncio.create_task(slow.close())
    await asyncio.sleep(0.01)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert Slow.closed == 0
    await slow.close()
    assert Slow.closed == 1


def test_close_during_use(tmp_path: Path) -> None:
    """An append that a close meets is stored or refused; none that was acknowledged is lost."""
    database = db(f"sqlite:///{tmp_path}/a.db")
    acknowledged: list[str] = []
    refused: list[str] = []
    begun = threading.Event()

    def write(number: int) -> None:
        for place in range(1_000):
            text = f"{number} {place}"
            try:
                database.sync.conversations.append("s", say(text))
            except ClosedError:
                refused.append(text)
                return
            acknowledged.append(text)
            if place == 5:
                begun.set()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    begun.wait(30)
    database.sync.close()
    for thread in threads:
        thread.join()
    assert len(refused) == 4
    again = db(f"sqlite:///{tmp_path}/a.db")
    stored = [message.text for message in again.sync.conversations.read("s")]
    assert len(stored) == len(set(stored))
    assert set(acknowledged) <= set(stored) <= set(acknowledged) | set(refused)
    again.sync.close()


def test_dropped(slow: Database) -> None:
    """A database that nobody has any more is closed, without being asked."""
    slow.sync.open()
    dropped = Database(Hosted(Slow), blocking=True)
    dropped.sync.open()
    assert Slow.opened == 2
    closers = len(portal()._closers)
    del dropped
    gc.collect()
    for _ in range(200):
        if Slow.closed:
            break
        time.sleep(0.01)
    assert Slow.closed == 1
    assert slow.sync.conversations.get("s") is None
    time.sleep(0.01)
    assert len(portal()._closers) == closers - 1


def test_agents_without_a_database_leave_nothing() -> None:
    """A hundred agents that keep their conversation in memory give it back when they go."""
    for _ in range(5):  # what is made once for all
        Agent(llm="offline").chat("hello")
    gc.collect()
    portal().run(asyncio.sleep, 0.05)
    closers = len(portal()._closers)
    for _ in range(100):
        Agent(llm="offline").chat("hello")
    gc.collect()
    for _ in range(200):
        if len(portal()._closers) <= closers:
            break
        time.sleep(0.01)
    assert len(portal()._closers) <= closers


def open_files() -> int:
    """Count the process's open files, where the system tells them."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) if Path("/proc").is_dir() else 0


def test_files_and_threads_of_dropped_databases(tmp_path: Path) -> None:
    """Databases that are made, used and dropped in a row don't run out of threads or files."""

    def use() -> None:
        db(f"sqlite:///{tmp_path}/a.db").sync.conversations.append("s", say("hi"))

    def settled(most: int) -> bool:
        for _ in range(300):
            gc.collect()
            if threading.active_count() <= most:
                return True
            time.sleep(0.01)
        return False

    use()
    gc.collect()
    time.sleep(0.2)
    threads = threading.active_count()
    files = open_files()
    for _ in range(10):
        use()
    assert settled(threads)
    assert open_files() <= files


# --- views, loops, errors


def test_views_of_tenants(slow: Database) -> None:
    """Views share one store and one close, and see nothing of each other."""
    views = [slow.for_tenant(f"t{number}") for number in range(4)]
    in_threads(4, lambda number: views[number].sync.conversations.append("s", say(str(number))))
    assert Slow.opened == 1
    for number, view in enumerate(views):
        (message,) = view.sync.conversations.read("s")
        assert message.text == str(number)
    assert len(slow.sync.conversations.read("s")) == 0
    views[0].sync.close()
    with pytest.raises(ClosedError):
        views[1].sync.conversations.read("s")


@pytest.mark.asyncio
async def test_in_a_notebook(slow: Database) -> None:
    """A blocking call in a thread whose own loop runs works, as it does in a notebook."""
    slow.sync.conversations.append("s", say("hi"))
    assert len(await slow.conversations.read("s")) == 1
    assert Agent(llm="offline", db=slow, session_id="s").chat("hello").startswith("This is the")


def test_blocking_call_on_the_facades_own_loop(slow: Database) -> None:
    """There, a blocking call would wait for itself, and says so."""

    async def tool() -> None:
        slow.sync.conversations.read("s")

    with pytest.raises(ConfigurationError, match="await the async method"):
        portal().run(tool)


def test_awaiting_on_the_facades_own_loop(slow: Database) -> None:
    """What runs there awaits the database like anybody else."""

    async def tool() -> int:
        await slow.conversations.append("s", say("hi"))
        return len(await slow.conversations.read("s"))

    assert portal().run(tool) == 1


def test_cancelled_calls_leave_the_store_usable(tmp_path: Path) -> None:
    """Appends that are cancelled at any moment are stored whole or not at all."""
    database = db(f"sqlite:///{tmp_path}/a.db?synchronous=normal")

    async def main() -> set[str]:
        done = set[str]()
        for number in range(150):
            text = f"{number}"
            task = asyncio.create_task(database.conversations.append("s", say(text) + say(text)))
            await asyncio.sleep(number % 30 / 10_000)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
                done.add(text)
        return done

    done = asyncio.run(main())
    stored = [message.text for message in database.sync.conversations.read("s")]
    assert stored[::2] == stored[1::2]
    assert done <= set(stored)
    assert len(set(stored)) * 2 == len(stored)
    database.sync.close()


# --- processes


def script(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    begin = f"""
        import asyncio, gc, os, sys, threading, time
        from agentstore import Agent, db
        URL = "sqlite:///{tmp_path}/a.db"
        def say(text):
            return [{{"role": "user", "content": text}}]
        def write(database, name, count):
            for number in range(count):
                database.sync.conversations.append("s", say(f"{{name}} {{number}}"))
    """
    return subprocess.run(
        # From 3.12 on Python warns of every fork in a process that has threads.
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore:This process",
            "-c",
            textwrap.dedent(begin + text),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def check_stored(tmp_path: Path, names: dict[str, int]) -> None:
    """Each writer's messages are there once, in its order."""
    database = db(f"sqlite:///{tmp_path}/a.db")
    stored = [message.text for message in database.sync.conversations.read("s")]
    database.sync.close()
    for name, count in names.items():
        mine = [text for text in stored if text.startswith(f"{name} ")]
        assert mine == [f"{name} {number}" for number in range(count)]
    assert len(stored) == sum(names.values())


@forks
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "database.sync.close()"])
def test_fork(tmp_path: Path, end: str) -> None:
    """A child that was forked off an open database goes on beside its parent."""
    ended = script(
        tmp_path,
        f"""
        database = db(URL)
        write(database, "before", 5)
        child = os.fork()
        if child == 0:
            write(database, "child", 20)
            gc.collect()
            {end}
        else:
            write(database, "parent", 20)
            assert os.waitpid(child, 0)[1] == 0
            write(database, "after", 5)
        """,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    check_stored(tmp_path, {"before": 5, "child": 20, "parent": 20, "after": 5})


@forks
def test_fork_and_drop(tmp_path: Path) -> None:
    """A child that has no use for its parent's database doesn't close it by throwing it away."""
    ended = script(
        tmp_path,
        """
        database = db(URL)
        write(database, "before", 5)
        child = os.fork()
        if child == 0:
            del database
            gc.collect()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        write(database, "after", 5)
        """,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    check_stored(tmp_path, {"before": 5, "after": 5})


@forks
def test_fork_in_the_middle_of_writing(tmp_path: Path) -> None:
    """So do children that are forked off while other threads write."""
    ended = script(
        tmp_path,
        """
        database = db(URL)
        threads = [threading.Thread(target=write, args=(database, f"t{n}", 60)) for n in range(2)]
        for thread in threads:
            thread.start()
        children = []
        for number in range(4):
            time.sleep(0.02)
            child = os.fork()
            if child == 0:
                write(database, f"c{number}", 10)
                os._exit(0)
            children.append(child)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        for thread in threads:
            thread.join()
        """,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    check_stored(tmp_path, {"t0": 60, "t1": 60, **{f"c{number}": 10 for number in range(4)}})


@forks
def test_pool_of_forked_processes(tmp_path: Path) -> None:
    """A pool of four forked processes writes through the object of its parent."""
    ended = script(
        tmp_path,
        """
        import multiprocessing
        database = db(URL)
        write(database, "before", 3)
        def work(number):
            write(database, f"p{number}", 10)
            agent = Agent(llm="offline", db=database, session_id=f"agent {number}")
            return len(agent.chat("hello")) > 0
        with multiprocessing.get_context("fork").Pool(4) as pool:
            assert pool.map(work, range(8)) == [True] * 8
            pool.close()
            pool.join()
        write(database, "after", 3)
        """,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    check_stored(tmp_path, {"before": 3, "after": 3, **{f"p{n}": 10 for n in range(8)}})


@pytest.mark.parametrize("where", ["module", "function", "thread", "asyncio"])
def test_exit_without_close(tmp_path: Path, where: str) -> None:
    """A program that closes nothing ends by itself, soon, without a warning, and loses nothing."""
    ended = script(
        tmp_path,
        f"""
        def use():
            database = db(URL)
            write(database, "one", 10)
            return database
        async def main():
            database = db(URL)
            for number in range(10):
                await database.conversations.append("s", say(f"one {{number}}"))
        where = "{where}"
        if where == "module":
            database = use()
        elif where == "function":
            use()
        elif where == "thread":
            threading.Thread(target=use).start()
        else:
            asyncio.run(main())
        """,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    check_stored(tmp_path, {"one": 10})


def test_exit_is_prompt(tmp_path: Path) -> None:
    """From the last line of a program to its end it doesn't take long, busy machine or not."""
    ended = script(
        tmp_path,
        """
        database = db(URL)
        write(database, "one", 3)
        print(time.time(), flush=True)
        """,
    )
    took = time.time() - float(ended.stdout)
    assert ended.stderr == ""
    assert took < 5.0
