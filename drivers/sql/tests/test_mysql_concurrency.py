"""Appends to MySQL: one round trip, in order, whoever is cancelled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from agentstore import Agent, Message, connect
from agentstore.errors import ConflictError, StoreError
from agentstore.testing.history import Recorder, check
from agentstore.testing.proxy import FaultProxy
from agentstore.types import Scope
from agentstore.url import URL
from agentstore_sql import MySQLDriver
from agentstore_sql._mysql_statements import Trip
from servers import MariaDB

pytestmark = pytest.mark.asyncio


@pytest.fixture(params=["mysql", "mysql+asyncmy"])
def url(request: pytest.FixtureRequest, mysql_url: str) -> str:
    """The database, over each client."""
    return urlsplit(mysql_url)._replace(scheme=request.param).geturl()


def say(text: str) -> Message:
    return Message(role="user", content=text)


def turn() -> list[Message]:
    return [say("question"), Message(role="assistant", content="answer")]


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[MySQLDriver]:
    driver = MySQLDriver(URL.parse(url), **options)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()


async def test_one_round_trip(url: str, mariadb: MariaDB) -> None:
    """An append, a read, a page and each call of state are one request to the server."""
    split = urlsplit(url)
    with FaultProxy("127.0.0.1", mariadb.port) as proxy:
        through = split._replace(netloc=f"{split.netloc.rpartition(':')[0]}:{proxy.port}").geturl()
        async with opened(through, pool_size=1) as driver:
            conversations, state = driver.conversations(""), driver.state("", Scope("app"))
            await state.put("k", 0)
            for name in ("s", "e"):
                await conversations.append(name, [say("x")])
            calls = {
                "append": lambda _: conversations.append("s", turn(), ttl=60),
                "append expecting": lambda place: conversations.append(
                    "e", [say("x")], expect_seq=place
                ),
                "read": lambda _: conversations.read("s", last=50),
                "read of a user": lambda _: conversations.read("s", user_id="u", first=5),
                "get": lambda _: conversations.get("s"),
                "sessions": lambda _: conversations.sessions(),
                "state.get": lambda _: state.get("k"),
                "state.put": lambda place: state.put("k", place),
                "state.put where nothing is": lambda place: state.put(f"n{place}", 1, expect=0),
                "state.items": lambda _: state.items(),
                "ping": lambda _: driver.ping(),
            }
            for name, call in calls.items():
                before = proxy.requests
                for place in (1, 2, 3):
                    await call(place)
                assert proxy.requests - before == 3, name
            version = (await state.put("k", "v")).version
            before = proxy.requests
            replaced = await state.put("k", "w", expect=version)
            assert proxy.requests - before == 1
            assert replaced.version > version
            # The first append finds no session, undoes that, and makes one.
            before = proxy.requests
            await conversations.append("new", turn())
            assert proxy.requests - before == 3


async def test_appends_that_wait_go_together(url: str) -> None:
    """Concurrent appends to one session are few round trips; on many they go in parallel."""
    async with opened(url) as driver:
        sent: list[int] = []
        travel = driver.travel

        async def counted(trip: Trip, arguments: Sequence[object]) -> list[Any]:
            sent.append(len(arguments))
            return await travel(trip, arguments)

        driver.travel = counted  # type: ignore[method-assign]  # a counter, and the real thing
        conversations = driver.conversations("")
        await conversations.append("s", turn())
        sent.clear()
        results = await asyncio.gather(*(conversations.append("s", turn()) for _ in range(50)))
        assert len(sent) == 2
        assert sorted(seq for one in results for seq in one.seqs) == list(range(3, 103))


async def test_conflict_spares_its_neighbours(url: str) -> None:
    """One append in conflict fails alone, and those beside it keep their order."""
    async with opened(url) as driver:
        conversations = driver.conversations("")
        old = say("old")
        await conversations.append("s", [old], user_id="u")
        appends = [
            conversations.append("s", [say("0")]),
            conversations.append("s", [say("1")]),
            conversations.append("s", [Message(role="user", content="other", id=old.id)]),
            conversations.append("s", [say("2")], user_id="stranger"),
            conversations.append("s", [say("3")], expect_seq=77),
            conversations.append("s", [old]),
            conversations.append("s", [say("4")]),
        ]
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        refused = [n for n, one in enumerate(outcomes) if isinstance(one, ConflictError)]
        assert refused == [2, 3, 4]
        assert [one.text for one in await conversations.read("s")] == ["old", "0", "1", "4"]


@pytest.mark.parametrize("sessions", [1, 200])
async def test_writers_and_readers(url: str, sessions: int) -> None:
    """32 writers in two pools, and readers that page by `seq`: none missed, doubled, reordered."""
    recorder = Recorder()
    names = [f"s{place}" for place in range(sessions)]
    async with opened(url) as one, opened(url) as other:
        done = asyncio.Event()

        async def write(place: int) -> None:
            conversations = (one, other)[place % 2].conversations("")
            for step in range(12):
                name = names[(place * 12 + step) % sessions]
                message = say("x")
                with recorder.append(f"w{place}", message.id, session=name) as call:
                    await conversations.append(name, [message])
                    call.committed = True

        async def follow(place: int) -> None:
            conversations = (one, other)[place % 2].conversations("")
            name, ids, behind = names[place % sessions], list[str](), 0
            while not done.is_set():
                with recorder.read(f"r{place}", session=name) as call:
                    while page := await conversations.read(name, first=7, after=behind):
                        ids += [message.id for message in page]
                        behind = page[-1].seq or 0
                    call.ids = list(ids)

        readers = [asyncio.create_task(follow(place)) for place in range(4)]
        await asyncio.gather(*(write(place) for place in range(32)))
        done.set()
        await asyncio.gather(*readers)
        total = 0
        for name in names:
            stored = [message.id for message in await one.conversations("").read(name)]
            recorder.final(stored, session=name)
            total += len(stored)
    assert [str(anomaly) for anomaly in check(recorder)] == []
    assert total == 32 * 12


async def test_versions_of_many_writers(url: str) -> None:
    """32 writers of state in two pools draw no version twice, and of a race one wins."""
    async with opened(url) as one, opened(url) as other:
        states = [driver.state("", Scope("app")) for driver in (one, other)]

        async def write(place: int) -> list[int]:
            return [
                (await states[place % 2].put(f"k{place % 5}", step)).version for step in range(8)
            ]

        drawn = await asyncio.gather(*(write(place) for place in range(32)))
        versions = [version for of_one in drawn for version in of_one]
        assert len(set(versions)) == 32 * 8
        start = (await states[0].put("race", 0)).version
        races = [states[place % 2].put("race", place, expect=start) for place in range(20)]
        outcomes = await asyncio.gather(*races, return_exceptions=True)
        assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 19
        beginnings = [states[place % 2].put("new", place, expect=0) for place in range(20)]
        outcomes = await asyncio.gather(*beginnings, return_exceptions=True)
        assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 19


async def test_twenty_turns_on_a_pool_of_five(url: str) -> None:
    """Twenty agents at once on five connections: all wait, none fails, all is stored."""
    async with connect(url, pool_size=5, max_overflow=0) as database:

        async def chat(place: int) -> None:
            agent = Agent(name="A", llm=lambda _: "fine", db=database, session_id=f"s{place}")
            reply = await agent.achat("hello")
            assert reply.durability.name == "COMMITTED"

        await asyncio.gather(*(chat(place) for place in range(20)))
        for place in range(20):
            stored = await database.conversations.read(f"s{place}")
            assert [message.text for message in stored] == ["hello", "fine"]


async def test_storm_of_cancellations(url: str, mariadb: MariaDB) -> None:
    """Calls cancelled at any moment leave no connection taken, and nothing by halves."""
    random.seed(7)
    async with opened(url, pool_size=4, max_overflow=0) as driver:
        conversations, state = driver.conversations(""), driver.state("", Scope("app"))
        for _ in range(30):
            calls = [
                conversations.append("s", turn()),
                conversations.append("t", turn()),
                conversations.read("s", last=5),
                conversations.update("s", title="T"),
                conversations.rewind("t", to=3),
                state.put("k", 1),
            ]
            tasks = [asyncio.create_task(call) for call in calls]
            await asyncio.sleep(random.random() / 200)
            for task in random.sample(tasks, 4):
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert not [one for one in outcomes if isinstance(one, StoreError)]
        # What was under way goes on without its caller.
        await asyncio.wait_for(_until_free(driver), 5)
        stored = [message.text for message in await conversations.read("s")]
        assert stored == ["question", "answer"] * (len(stored) // 2)
        session = await conversations.get("s")
        assert session is not None
        assert session.message_count == len(stored)
        assert mariadb.ask("SELECT COUNT(*) FROM information_schema.innodb_trx") == "0"


async def _until_free(driver: MySQLDriver) -> None:
    pool: Any = driver._pool
    while pool.engine.pool.checkedout():  # noqa: ASYNC110 - the pool sets no event
        await asyncio.sleep(0.01)


async def test_largest_batch(url: str) -> None:
    """A batch larger than one statement may be is stored all the same."""
    async with connect(url, attempt_timeout=30, operation_timeout=30) as database:
        body = '"' * 500_000  # each of which is escaped twice
        await database.conversations.append("s", [say(body) for _ in range(30)])
        session = await database.conversations.get("s")
        assert session is not None
        assert session.message_count == 30
        (last,) = await database.conversations.read("s", last=1)
        assert (last.seq, last.text) == (30, body)
