"""Opening and closing: what is kept, and what a closed store says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from ...database import Database, connect
from ...errors import ClosedError, ConfigurationError
from ._base import Suite, contract, require, say, taken, texts, written

__all__ = ["LifecycleTests"]

_LASTING = ("strong", "weak")


class LifecycleTests(Suite):
    """Rules 12 and 13, and what outlives a handle."""

    @contract
    async def test_data_outlives_the_handle(self, database_url: str) -> None:
        """What was acknowledged is there when the store is opened again."""
        messages = [say("a", metadata={"k": 1.0}), say("b\0")]
        async with connect(database_url) as database:
            require(database, durability=_LASTING)
            first = await database.conversations.append("s", messages, user_id="u", agent="bot")
            await database.conversations.update("s", title="T")
            await database.conversations.append("gone", [say("x"), say("y")])
            await database.conversations.delete("gone")
            session = await database.conversations.get("s")
            put = await database.state.user("u").put("k", [1])
        async with connect(database_url) as database:
            stored = await database.conversations.read("s")
            assert [written(message) for message in stored] == [written(m) for m in messages]
            assert await database.conversations.get("s") == session
            assert await database.state.user("u").get("k") == put
            again = await database.conversations.append("s", messages)
            assert (again.seqs, again.created) == (first.seqs, (False, False))
            assert await database.conversations.get("gone") is None
            anew = await database.conversations.append("gone", [say("x")])
            assert (anew.seqs[0] or 0) > 2

    async def test_versions_outlive_the_handle(self, database_url: str) -> None:
        """No version of state comes again after the store was closed."""
        versions: list[int] = []
        for _ in range(3):
            async with connect(database_url) as database:
                require(database, durability=_LASTING)
                state = database.state.app()
                versions += [(await state.put("k", 1)).version, (await state.put("k", 2)).version]
                await state.delete("k")
        assert len(set(versions)) == 6

    async def test_closed_store_says_so(self, database_url: str) -> None:
        """After `close` every method raises `ClosedError`, and closing again does nothing."""
        async with connect(database_url) as database:
            await database.conversations.append("s", [say("a")])
        conversations, state = database.conversations, database.state.app()
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "append": partial(conversations.append, "s", [say("b")]),
            "read": partial(conversations.read, "s"),
            "get": partial(conversations.get, "s"),
            "update": partial(conversations.update, "s", title="T"),
            "sessions": conversations.sessions,
            "replace": partial(conversations.replace, "s", "m", content="x"),
            "rewind": partial(conversations.rewind, "s", to=0),
            "fork": partial(conversations.fork, "s", "t"),
            "delete": partial(conversations.delete, "s"),
            "purge_expired": conversations.purge_expired,
            "state.get": partial(state.get, "k"),
            "state.put": partial(state.put, "k", 1),
            "state.delete": partial(state.delete, "k"),
            "state.items": state.items,
        }
        assert await taken(calls, ClosedError) == []
        assert (await database.health()).ok is False
        await database.close()

    async def test_health(self, database: Database) -> None:
        """An open store answers a ping."""
        health = await database.health()
        assert health.ok is True
        assert [engine.error for engine in health.engines] == [None]

    async def test_another_loop_is_refused(self, database: Database) -> None:
        """A call from another event loop is refused, in a sentence about event loops."""

        def elsewhere() -> None:
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                runner.run(database.conversations.append("s", [say("a")]))

        with pytest.raises(ConfigurationError, match="event loop"):
            await asyncio.to_thread(elsewhere)
        assert await database.conversations.get("s") is None

    async def test_two_handles_see_the_same(self, database_url: str) -> None:
        """Two handles on a shared store see each other's writes at once."""
        async with connect(database_url) as one, connect(database_url) as other:
            require(one, shared=True)
            for place in range(3):
                await one.conversations.append("s", [say(f"one {place}")])
                await other.conversations.append("s", [say(f"other {place}")])
                put = await one.state.app().put("k", place)
                assert await other.state.app().get("k") == put
            expected = [f"{who} {place}" for place in range(3) for who in ("one", "other")]
            assert texts(await one.conversations.read("s")) == expected
            assert texts(await other.conversations.read("s")) == expected
            await one.conversations.delete("s")
            assert await other.conversations.get("s") is None

    async def test_closing_one_handle_leaves_the_other(self, database_url: str) -> None:
        """A handle goes on when another one on the same store is closed."""
        async with connect(database_url) as one:
            require(one, shared=True)
            async with connect(database_url) as other:
                await other.conversations.append("s", [say("a")])
            await one.conversations.append("s", [say("b")])
            assert texts(await one.conversations.read("s")) == ["a", "b"]

    async def test_closing_waits_for_writes(self, database_url: str) -> None:
        """Whatever was acknowledged before `close` returned is kept, and nothing by halves."""
        acked: list[str] = []

        async def write(database: Database, name: str) -> None:
            await database.conversations.append("s", [say(name), say(f"{name} again")])
            acked.append(name)

        async with connect(database_url) as database:
            require(database, durability=_LASTING, atomic_batch=True)
            writes = [asyncio.create_task(write(database, str(place))) for place in range(20)]
            await asyncio.sleep(0.002)
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(one) for one in outcomes} <= {type(None), ClosedError}
        async with connect(database_url) as database:
            stored = texts(await database.conversations.read("s"))
        assert set(acked) <= set(stored)
        assert stored[1::2] == [f"{name} again" for name in stored[::2]]
