"""Group commit: what waits at the same time shares a commit, and nothing else."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, text

from agentstore import Message
from agentstore.errors import ClosedError, ConflictError, DriverError
from agentstore.types import AppendResult, Durability
from agentstore.url import URL
from agentstore_sql import SQLiteDriver

pytestmark = pytest.mark.asyncio

SOON = 5.0


def say(content: str, **fields: Any) -> Message:
    return Message(role="user", content=content, **fields)


def raw(connection: Connection) -> sqlite3.Connection:
    """The connection of Python's own module, on whose thread a job runs."""
    found = connection.connection.driver_connection
    assert isinstance(found, sqlite3.Connection)
    return found


async def append(driver: SQLiteDriver, session_id: str, *messages: Message) -> AppendResult:
    return await driver.conversations("").append(session_id, messages)


async def stored(driver: SQLiteDriver, session_id: str) -> list[str]:
    return [message.text for message in await driver.conversations("").read(session_id)]


def mark(name: str) -> Callable[[Connection], None]:
    """A job that leaves a mark."""

    def job(connection: Connection) -> None:
        raw(connection).execute(
            "INSERT INTO agentstore_counters (name, value) VALUES (?, 1)", [name]
        )

    return job


async def marks(driver: SQLiteDriver) -> set[str]:
    """Every mark that jobs have left."""
    select = "SELECT name FROM agentstore_counters WHERE name <> 'state'"
    return {name for (name,) in await driver.read(lambda c: raw(c).execute(select).fetchall())}


async def commits(driver: SQLiteDriver) -> list[str]:
    """Write down the commits of the writer from now on."""
    seen: list[str] = []

    def trace(statement: str) -> None:
        if statement == "COMMIT":
            seen.append(statement)

    await driver.write(lambda connection: raw(connection).set_trace_callback(trace))
    seen.clear()  # the one of setting this up
    return seen


@asynccontextmanager
async def held(driver: SQLiteDriver) -> AsyncIterator[None]:
    """Keep the writer busy within the block, so that what is handed in waits."""
    begun, release = threading.Event(), threading.Event()

    def job(_: Connection) -> None:
        begun.set()
        assert release.wait(SOON)

    holding = asyncio.create_task(driver.write(job))
    try:
        assert await asyncio.to_thread(begun.wait, SOON)
        yield
        await asyncio.sleep(0)  # what the block began to hand in is in the queue now
    finally:
        release.set()
        await holding


async def test_concurrent_appends_share_a_commit(driver: SQLiteDriver) -> None:
    """64 appends at once are one transaction, or two where one of them was quicker."""
    seen = await commits(driver)
    await asyncio.gather(*(append(driver, f"s{n}", say("x")) for n in range(64)))
    assert 1 <= len(seen) <= 2


async def test_a_lone_append_is_one_transaction(driver: SQLiteDriver) -> None:
    """Appends that follow one another are committed one by one, each before its answer."""
    seen = await commits(driver)
    for n in range(3):
        await append(driver, "s", say("x"), say("y"))
        assert len(seen) == n + 1


async def test_a_group_has_its_bounds(driver: SQLiteDriver) -> None:
    """A thousand appends at once are several groups, so that the first need not wait for all."""
    seen = await commits(driver)
    async with held(driver):
        seen.clear()
        waiting = [asyncio.create_task(append(driver, "s", say(f"{n}"))) for n in range(1000)]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert len(seen) == 1 + 4  # 256 is the most
    assert await stored(driver, "s") == [f"{n}" for n in range(1000)]


async def test_order_of_handing_in_is_the_order_stored(driver: SQLiteDriver) -> None:
    """Messages handed in one after the other stand so, each with a greater `seq`."""
    results = await asyncio.gather(*(append(driver, "s", say(f"{n}")) for n in range(50)))
    seqs = [result.seqs[0] for result in results]
    assert seqs == sorted(set(seqs), key=lambda seq: seq or 0)
    assert await stored(driver, "s") == [f"{n}" for n in range(50)]


async def test_a_conflict_fails_alone(driver: SQLiteDriver) -> None:
    """Of 20 appends in one group the one that the rules refuse fails, and leaves nothing."""
    await append(driver, "s7", say("first", id="taken"))
    async with held(driver):
        appends = [
            asyncio.create_task(
                append(driver, f"s{n}", say("new"), say("other", id="taken" if n == 7 else f"{n}"))
            )
            for n in range(20)
        ]
        await asyncio.sleep(0)
    results = await asyncio.gather(*appends, return_exceptions=True)
    refused = [n for n, result in enumerate(results) if isinstance(result, ConflictError)]
    assert refused == [7]
    for n, result in enumerate(results):
        if n != 7:
            assert isinstance(result, AppendResult)
            assert result.durability is Durability.COMMITTED
        assert await stored(driver, f"s{n}") == (["first"] if n == 7 else ["new", "other"])


@pytest.mark.parametrize("through", ["sqlite3", "sqlalchemy"])
async def test_an_engine_error_fails_alone(driver: SQLiteDriver, through: str) -> None:
    """A job that violates a constraint fails with all that it wrote; its neighbours don't."""
    statement = "INSERT INTO agentstore_counters (name, value) VALUES ('half', NULL)"

    def violate(connection: Connection) -> None:
        mark("half of it")(connection)
        if through == "sqlite3":
            raw(connection).execute(statement)
        else:
            connection.execute(text(statement))

    async with held(driver):
        jobs = [
            asyncio.create_task(driver.write(violate if n == 3 else mark(f"{n}"))) for n in range(6)
        ]
        await asyncio.sleep(0)
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(result) for n, result in enumerate(results) if n != 3] == [type(None)] * 5
    assert isinstance(results[3], DriverError)
    assert results[3].code == "SQLITE_CONSTRAINT_NOTNULL"
    assert await marks(driver) == {"0", "1", "2", "4", "5"}


async def test_a_lost_transaction_is_made_again_without_whom_it_broke(driver: SQLiteDriver) -> None:
    """Where SQLite throws the whole transaction away, the neighbours still go through."""

    def lose(connection: Connection) -> None:
        # A full disk does this too: https://sqlite.org/lang_transaction.html, "rolled back
        # automatically".
        raw(connection).execute(
            "INSERT OR ROLLBACK INTO agentstore_counters (name, value) VALUES ('state', 1)"
        )

    async with held(driver):
        jobs = [
            asyncio.create_task(driver.write(lose if n == 3 else mark(f"{n}"))) for n in range(6)
        ]
        await asyncio.sleep(0)
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert [n for n, result in enumerate(results) if result is not None] == [3]
    assert await marks(driver) == {"0", "1", "2", "4", "5"}


@pytest.mark.parametrize(
    ("bug", "raised"),
    [
        (LookupError("x"), LookupError),
        (MemoryError(), MemoryError),  # SQLite's own lack of memory comes as this
        (StopIteration(), RuntimeError),  # a coroutine can't raise it
        (asyncio.CancelledError(), asyncio.CancelledError),
    ],
    ids=repr,
)
async def test_whatever_a_job_raises_reaches_its_caller_alone(
    driver: SQLiteDriver, bug: BaseException, raised: type[BaseException]
) -> None:
    """An error of any class is the caller's, undoes what its job wrote, and stops nobody."""

    def fail(connection: Connection) -> None:
        mark("half of it")(connection)
        raise bug

    async with held(driver):
        jobs = [
            asyncio.create_task(driver.write(fail if n == 1 else mark(f"{n}"))) for n in range(3)
        ]
        await asyncio.sleep(0)
    async with asyncio.timeout(SOON):
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert (results[0], results[2]) == (None, None)
        assert type(results[1]) is raised
        await driver.write(mark("afterwards"))
    assert await marks(driver) == {"0", "2", "afterwards"}


async def test_a_read_that_lost_its_transaction_says_why(driver: SQLiteDriver) -> None:
    """Where SQLite has ended a read's transaction, its error comes, not one of ending it again."""

    def broken(connection: Connection) -> None:
        raw(connection).execute("ROLLBACK")
        raise LookupError("why")

    with pytest.raises(LookupError, match="why"):
        await driver.read(broken)
    assert await driver.read(lambda _: "next") == "next"


async def test_a_cancelled_append_leaves_its_neighbours(driver: SQLiteDriver) -> None:
    """A call that is cancelled while it waits is not carried out; those beside it are."""
    async with held(driver):
        appends = [asyncio.create_task(append(driver, "s", say(f"{n}"))) for n in range(20)]
        await asyncio.sleep(0)
        appends[7].cancel()
    results = await asyncio.gather(*appends, return_exceptions=True)
    assert [n for n, r in enumerate(results) if isinstance(r, asyncio.CancelledError)] == [7]
    assert await stored(driver, "s") == [f"{n}" for n in range(20) if n != 7]


async def test_a_job_that_was_begun_is_carried_out(driver: SQLiteDriver) -> None:
    """A cancellation in the middle of a job leaves it whole, and the connection usable."""
    begun, release = threading.Event(), threading.Event()

    def job(connection: Connection) -> None:
        mark("one")(connection)
        begun.set()
        assert release.wait(SOON)
        mark("two")(connection)

    caller = asyncio.create_task(driver.write(job))
    assert await asyncio.to_thread(begun.wait, SOON)
    caller.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await driver.write(mark("afterwards"))
    assert await marks(driver) == {"one", "two", "afterwards"}


async def test_cancel_storm(driver: SQLiteDriver) -> None:
    """Calls cancelled at any moment are stored whole or not, the others are all stored."""
    chance = random.Random(20)
    kept: list[asyncio.Task[AppendResult]] = []
    cancelled: list[asyncio.Task[AppendResult]] = []
    for n in range(400):
        messages = say(f"{n} a", id=f"{n} a"), say(f"{n} b", id=f"{n} b")
        call = asyncio.create_task(append(driver, "s", *messages))
        if chance.random() < 0.5:
            cancelled.append(call)
            asyncio.get_running_loop().call_later(chance.random() * 0.02, call.cancel)
        else:
            kept.append(call)
        if n % 7 == 0:
            await asyncio.sleep(chance.random() * 0.002)
    async with asyncio.timeout(SOON):
        results = await asyncio.gather(*kept)
        await asyncio.gather(*cancelled, return_exceptions=True)
        messages_stored = await driver.conversations("").read("s")
    ids = [message.id for message in messages_stored]
    assert [message_id.split()[1] for message_id in ids] == ["a", "b"] * (len(ids) // 2)
    assert len(ids) == len(set(ids))
    places = {message.seq for message in messages_stored}
    assert {seq for result in results for seq in result.seqs} <= places
    answered = [call.result() for call in cancelled if not call.cancelled()]
    assert {seq for result in answered for seq in result.seqs} <= places


async def test_a_program_that_cancels_every_task_can_go_on(driver: SQLiteDriver) -> None:
    """No task of the store's own has to live between calls, so that none can be missed."""
    await append(driver, "s", say("before"))
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
    async with asyncio.timeout(SOON):
        await append(driver, "s", say("after"))
    assert await stored(driver, "s") == ["before", "after"]


async def test_close_carries_out_what_was_handed_in(url: str) -> None:
    """Appends that wait when the store is closed are committed and answered."""
    driver = SQLiteDriver(URL.parse(url))
    await driver.open()
    async with held(driver):
        appends = [asyncio.create_task(append(driver, "s", say(f"{n}"))) for n in range(5)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(driver.close())
        await asyncio.sleep(0)
        with pytest.raises(ClosedError, match="the store is closed"):
            await append(driver, "s", say("too late"))
    results = await asyncio.gather(*appends)
    await closing
    assert [result.durability for result in results] == [Durability.COMMITTED] * 5
    await driver.open()
    assert await stored(driver, "s") == ["0", "1", "2", "3", "4"]
    await driver.close()


async def test_a_cancelled_close_cancels_nobody(url: str) -> None:
    """Whoever gives up on closing takes no append with him."""
    driver = SQLiteDriver(URL.parse(url))
    await driver.open()
    async with held(driver):
        call = asyncio.create_task(append(driver, "s", say("x")))
        await asyncio.sleep(0)
        closing = asyncio.create_task(driver.close())
        await asyncio.sleep(0)
        closing.cancel()
    async with asyncio.timeout(SOON):
        assert (await call).created == (True,)
        with pytest.raises(asyncio.CancelledError):
            await closing
    await driver.close()


async def test_a_closed_store_says_so(driver: SQLiteDriver) -> None:
    """Before it is opened and after it is closed, every call is a `ClosedError`."""
    await driver.close()
    for call in (driver.ping, lambda: append(driver, "s", say("x")), lambda: stored(driver, "s")):
        with pytest.raises(ClosedError, match="the store is closed"):
            await call()
    await driver.close()
