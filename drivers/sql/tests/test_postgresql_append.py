"""Appends to PostgreSQL: one statement, one round trip, in order, whoever is cancelled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from postgresql_fixtures import asked

from agentstore import Agent, Message, connect
from agentstore.conversations import Conversations
from agentstore.errors import ConflictError, StoreError
from agentstore.testing.history import Recorder, check
from agentstore.testing.proxy import FaultProxy
from agentstore.types import Scope
from agentstore.url import URL
from agentstore_sql import PostgreSQLDriver
from agentstore_sql._pooled import Phase
from servers import PostgreSQL

pytestmark = pytest.mark.asyncio


def say(text: str) -> Message:
    return Message(role="user", content=text)


def turn() -> list[Message]:
    return [say("question"), Message(role="assistant", content="answer")]


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[PostgreSQLDriver]:
    driver = PostgreSQLDriver(URL.parse(url), **options)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()


def checked_out(driver: PostgreSQLDriver) -> int:
    pool: Any = driver._pool
    count: int = pool.engine.pool.checkedout()
    return count


async def test_one_round_trip(postgresql_url: str, postgresql_server: PostgreSQL) -> None:
    """An append, a read, a page and each call of state are one request to the server."""
    split = urlsplit(postgresql_url)
    with FaultProxy("127.0.0.1", postgresql_server.port) as proxy:
        through = split._replace(netloc=f"{split.netloc.rpartition(':')[0]}:{proxy.port}").geturl()
        async with opened(through, pool_size=1) as driver:
            conversations, state = driver.conversations(""), driver.state("", Scope("app"))
            put = await state.put("k", 0)
            calls = {
                "first append": lambda place: conversations.append(f"s{place}", turn()),
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
                await call(0)  # the statement is prepared
                before = proxy.requests
                for place in (1, 2, 3):
                    await call(place)
                assert proxy.requests - before == 3, name
            version = (await state.put("k", "v", expect=(await state.get("k")).version)).version
            before = proxy.requests
            await state.put("k", "w", expect=version)
            assert proxy.requests - before == 1
            assert put.version < version


async def test_appends_that_wait_go_together(postgresql_url: str) -> None:
    """Concurrent appends to one session are few statements; on many they go in parallel."""
    async with opened(postgresql_url) as driver:
        sent: list[int] = []
        fetch = driver.fetch

        async def counted(text: str, arguments: Sequence[object], phase: Phase) -> list[Any]:
            sent.append(len(arguments))
            return await fetch(text, arguments, phase)

        driver.fetch = counted  # type: ignore[method-assign]  # a counter, and the real thing
        conversations = driver.conversations("")
        results = await asyncio.gather(*(conversations.append("s", turn()) for _ in range(50)))
        assert len(sent) == 2
        assert sorted(seq for one in results for seq in one.seqs) == list(range(1, 101))
        sent.clear()
        await asyncio.gather(*(conversations.append(f"s{n}", turn()) for n in range(10)))
        assert len(sent) == 10


async def test_conflict_spares_its_neighbours(postgresql_url: str) -> None:
    """One append in conflict fails alone, and those beside it keep their order."""
    async with opened(postgresql_url) as driver:
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
async def test_writers_and_readers(postgresql_url: str, sessions: int) -> None:
    """32 writers in two pools, and readers that page by `seq`: none missed, doubled, reordered."""
    recorder = Recorder()
    names = [f"s{place}" for place in range(sessions)]
    async with opened(postgresql_url) as one, opened(postgresql_url) as other:
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


async def test_twenty_turns_on_a_pool_of_five(postgresql_url: str) -> None:
    """Twenty agents at once on five connections: all wait, none fails, all is stored."""
    async with connect(postgresql_url, pool_size=5, max_overflow=0) as database:

        async def chat(place: int) -> None:
            agent = Agent(name="A", llm=lambda _: "fine", db=database, session_id=f"s{place}")
            reply = await agent.achat("hello")
            assert reply.durability.name == "COMMITTED"

        await asyncio.gather(*(chat(place) for place in range(20)))
        for place in range(20):
            stored = await database.conversations.read(f"s{place}")
            assert [message.text for message in stored] == ["hello", "fine"]


async def test_storm_of_cancellations(postgresql_url: str) -> None:
    """Calls cancelled at any moment leave no connection taken, and nothing by halves."""
    random.seed(7)
    async with opened(postgresql_url, pool_size=4, max_overflow=0) as driver:
        conversations, state = driver.conversations(""), driver.state("", Scope("app"))
        for _ in range(40):
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
    query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
    assert await asked(postgresql_url, query) == [[(0,)]]


async def _until_free(driver: PostgreSQLDriver) -> None:
    while checked_out(driver):  # noqa: ASYNC110 - the pool sets no event
        await asyncio.sleep(0.01)


async def test_cancelled_caller_cancels_no_neighbour(postgresql_url: str) -> None:
    """Of appends in one statement, those whose callers went away are stored with the others."""
    async with opened(postgresql_url) as driver:
        conversations = driver.conversations("")
        tasks = [
            asyncio.create_task(conversations.append("s", [say(str(place))])) for place in range(10)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(one, asyncio.CancelledError) for one in outcomes[::2]] == [True] * 5
        assert [one.created for one in outcomes[1::2]] == [(True,)] * 5  # type: ignore[union-attr]
        stored = [message.text for message in await conversations.read("s")]
        assert [text for text in stored if int(text) % 2] == ["1", "3", "5", "7", "9"]


async def test_largest_batch(postgresql_url: str) -> None:
    """A batch larger than one statement holds is stored all the same."""
    async with connect(postgresql_url, attempt_timeout=30, operation_timeout=30) as database:
        conversations: Conversations = database.conversations
        body = "x" * 1_000_000
        await conversations.append("s", [say(body) for _ in range(70)])
        session = await conversations.get("s")
        assert session is not None
        assert session.message_count == 70
        (last,) = await conversations.read("s", last=1)
        assert (last.seq, last.text) == (70, body)
