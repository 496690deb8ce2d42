"""Cancellation: at whatever await it strikes, a call is done or not, and the store goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from ...conversations import Conversations
from ...database import Database
from ._base import SOON, Suite, contract, eventually, require, say, texts

__all__ = ["CancellationTests"]

_Pause = Callable[[], Awaitable[None]]


class CancellationTests(Suite):
    """Rule 8: each call is cancelled again and again, a little later every time."""

    @contract
    async def test_cancelled_append(self, database: Database) -> None:
        """A cancelled append is stored whole or not at all, and can be sent again."""
        require(database, atomic_batch=True)
        conversations = database.conversations
        expected: list[str] = []
        for moment, pause in (await _moments(conversations)).items():
            batch = [say(f"{part} {moment}") for part in "abc"]
            await _cancel(conversations.append("s", batch), pause)
            stored = texts(await conversations.read("s"))
            assert stored in (expected, expected + texts(batch)), moment
            await conversations.append("s", batch)
            expected += texts(batch)
            assert texts(await conversations.read("s")) == expected, moment

    async def test_cancelled_first_append(self, database: Database) -> None:
        """A cancelled first append leaves no session without its messages."""
        require(database, atomic_batch=True)
        conversations = database.conversations
        for moment, pause in (await _moments(conversations)).items():
            batch = [say("a"), say("b")]
            await _cancel(conversations.append(moment, batch, user_id="u"), pause)
            session = await conversations.get(moment)
            assert session is None or (session.user_id, session.message_count) == ("u", 2)
            await conversations.append(moment, batch, user_id="u")
            assert texts(await conversations.read(moment)) == ["a", "b"], moment
            session = await conversations.get(moment)
            assert session is not None
            assert session.message_count == 2

    @contract
    async def test_cancelled_neighbour(self, conversations: Conversations) -> None:
        """A cancelled append cancels none of those that are under way beside it."""
        for moment, pause in (await _moments(conversations)).items():
            before = [_appending(conversations, moment, place) for place in range(4)]
            cancelled = asyncio.create_task(_cancel(_append(conversations, moment), pause))
            after = [_appending(conversations, moment, place) for place in range(4, 8)]
            async with asyncio.timeout(SOON):
                await asyncio.gather(*before, cancelled, *after)
            stored = set(texts(await conversations.read(moment)))
            assert stored - {"x"} == {str(place) for place in range(8)}, moment

    async def test_cancelled_read(self, conversations: Conversations) -> None:
        """A cancelled read leaves no answer behind that another call could take for its own."""
        for name in ("a", "b"):
            await conversations.append(name, [say(f"{name}{place}") for place in range(50)])
        for moment, pause in (await _moments(conversations)).items():
            await _cancel(conversations.read("a"), pause)
            assert texts(await conversations.read("b", first=1)) == ["b0"], moment
            assert len(await conversations.read("a")) == 50, moment

    async def test_cancelled_put(self, database: Database) -> None:
        """A cancelled `put` wrote its value, under a new version, or nothing."""
        state = database.state.app()
        for moment, pause in (await _moments(database.conversations)).items():
            before = await state.put(moment, "before")
            await _cancel(state.put(moment, "after"), pause)
            stored = await state.get(moment)
            assert stored is not None
            assert stored.value in ("before", "after"), moment
            assert (stored.value == "before") is (stored.version == before.version), moment

    async def test_cancelled_rewind_and_delete(self, conversations: Conversations) -> None:
        """A cancelled rewind or delete did all or nothing, and can be made again."""
        for moment, pause in (await _moments(conversations)).items():
            seqs = (await conversations.append(moment, [say("a"), say("b"), say("c")])).seqs
            await _cancel(conversations.rewind(moment, to=seqs[0] or 0), pause)
            assert len(await conversations.read(moment)) in (1, 3), moment
            await conversations.rewind(moment, to=seqs[0] or 0)
            assert texts(await conversations.read(moment)) == ["a"], moment
            await _cancel(conversations.delete(moment), pause)
            assert len(await conversations.read(moment)) in (0, 1), moment
            await conversations.delete(moment)
            assert await conversations.get(moment) is None, moment

    async def test_many_cancelled_at_once(self, conversations: Conversations) -> None:
        """A store whose callers all go away at once answers the next one."""
        for pause in (partial(_turns, 0), partial(_turns, 3), partial(asyncio.sleep, 0.004)):
            async with asyncio.timeout(SOON):
                await asyncio.gather(
                    *(_cancel(_append(conversations, "s"), pause) for _ in range(40))
                )
                result = await conversations.append("after", [say("y")])
            assert result.created == (True,)

        async def is_whole() -> bool:
            before = await conversations.get("s")
            stored = await conversations.read("s")
            return (before.message_count if before else 0) == len(stored)

        await eventually(is_whole, "the count is that of the messages")


async def _append(conversations: Conversations, session_id: str) -> None:
    await conversations.append(session_id, [say("x")])


def _appending(conversations: Conversations, session_id: str, place: int) -> asyncio.Task[object]:
    return asyncio.create_task(conversations.append(session_id, [say(str(place))]))


async def _moments(conversations: Conversations) -> dict[str, _Pause]:
    """List when to cancel: after each of some turns of the loop, and in between."""
    began = time.monotonic()
    for _ in range(4):
        await _append(conversations, "timed")
    length = (time.monotonic() - began) / 4
    turns: dict[str, _Pause] = {
        f"after {count} turns": partial(_turns, count) for count in range(10)
    }
    return turns | {
        f"at {part}/8 of a call": partial(_spin, length * part / 8) for part in range(1, 11)
    }


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _spin(seconds: float) -> None:
    # Not sleep(), which is a millisecond too long for a call that takes less.
    until = time.monotonic() + seconds
    while time.monotonic() < until:  # noqa: ASYNC110 - turns of the loop are what is counted
        await asyncio.sleep(0)


async def _cancel(call: Coroutine[Any, Any, object], pause: _Pause) -> None:
    """Begin a call and cancel it after `pause`; whatever else it raises is a failure."""
    task = asyncio.create_task(call)
    await pause()
    task.cancel()
    await asyncio.wait([task], timeout=SOON)
    assert task.done(), f"a cancelled call goes on for more than {SOON:g} s"
    if not task.cancelled():
        task.result()
