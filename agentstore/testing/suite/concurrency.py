"""Many tasks at once: nothing is lost, doubled, reordered or half done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from msgspec.structs import replace

from ...conversations import Conversations
from ...database import Database
from ...errors import ConflictError
from ...state import State
from ...types import Durability, Versioned
from ..history import Recorder, check
from ._base import Suite, contract, require, say, texts

__all__ = ["ConcurrencyTests"]

T = TypeVar("T")

_TASKS = 32


class ConcurrencyTests(Suite):
    """Rules 2, 3, 6 and 8, within one process."""

    @contract
    async def test_one_session(self, database: Database) -> None:
        """32 writers and 2 readers on one session: one order explains all that they saw."""
        require(database, order="commit")
        conversations = database.conversations
        recorder = Recorder()
        done = asyncio.Event()

        async def write(writer: str) -> None:
            for _ in range(4):
                batch = [say(writer), say(writer)]
                with recorder.append(writer, *(message.id for message in batch)) as call:
                    result = await conversations.append("s", batch)
                    # A store that keeps nothing has put it where all of its readers look.
                    call.committed = result.durability is not Durability.JOURNALED

        async def follow(reader: str) -> None:
            while not done.is_set():
                with recorder.read(reader) as call:
                    call.ids = [message.id for message in await conversations.read("s")]
                await asyncio.sleep(0.001)

        readers = [asyncio.create_task(follow(f"reader {place}")) for place in range(2)]
        await asyncio.gather(*(write(f"writer {place}") for place in range(_TASKS)))
        done.set()
        await asyncio.gather(*readers)
        stored = await conversations.read("s")
        recorder.final([message.id for message in stored])
        assert [str(anomaly) for anomaly in check(recorder)] == []
        assert len(stored) == _TASKS * 8
        # A batch stays together: nobody's message comes between the two.
        assert texts(stored)[::2] == texts(stored)[1::2]

    async def test_many_sessions(self, conversations: Conversations) -> None:
        """32 tasks on a session each don't mix, and every session counts its own."""

        async def write(name: str) -> list[str]:
            for turn in range(3):
                await conversations.append(name, [say(f"{name} {turn}")], user_id=name)
            return texts(await conversations.read(name, user_id=name))

        names = [str(place) for place in range(_TASKS)]
        stored = await asyncio.gather(*map(write, names))
        assert stored == [[f"{name} {turn}" for turn in range(3)] for name in names]
        sessions = await asyncio.gather(*map(conversations.get, names))
        assert [session and session.message_count for session in sessions] == [3] * _TASKS

    @contract
    async def test_one_message_many_times(self, conversations: Conversations) -> None:
        """One message sent by many at once is stored once, and one of them made it."""
        message = say("x")
        results = await asyncio.gather(*(conversations.append("s", [message]) for _ in range(16)))
        assert sum(result.created[0] for result in results) == 1
        assert len({result.seqs for result in results}) == 1
        assert texts(await conversations.read("s")) == ["x"]

    async def test_one_id_many_bodies(self, database: Database) -> None:
        """Of many bodies sent at once under one id exactly one is stored."""
        require(database, conflict_detection=True)
        message = say("0")
        won, lost = await _contend(
            [
                database.conversations.append("s", [replace(message, content=str(place))])
                for place in range(16)
            ]
        )
        assert (len(won), len(lost)) == (1, 15)
        (text,) = texts(await database.conversations.read("s"))
        assert won[0][0] == int(text)

    async def test_one_append_expecting_wins(self, database: Database) -> None:
        """Of many appends that expect the same `seq` exactly one is stored."""
        require(database, conflict_detection=True)
        won, lost = await _contend(
            [
                database.conversations.append("s", [say(str(place))], expect_seq=0)
                for place in range(16)
            ]
        )
        assert (len(won), len(lost)) == (1, 15)
        assert texts(await database.conversations.read("s")) == [str(won[0][0])]

    async def test_one_owner(self, conversations: Conversations) -> None:
        """Of many users who begin a session at once one owns it, and nobody else got in."""
        won, _ = await _contend(
            [
                conversations.append("s", [say(str(place))], user_id=str(place))
                for place in range(16)
            ]
        )
        assert len(won) == 1
        session = await conversations.get("s")
        assert session is not None
        assert session.user_id == str(won[0][0])
        assert texts(await conversations.read("s")) == [session.user_id]

    async def test_one_fork_wins(self, conversations: Conversations) -> None:
        """Of many forks onto one new id exactly one is made."""
        for place in range(8):
            await conversations.append(f"s{place}", [say(str(place)), say("x")])
        won, lost = await _contend([conversations.fork(f"s{place}", "t") for place in range(8)])
        assert (len(won), len(lost)) == (1, 7)
        assert texts(await conversations.read("t")) == [str(won[0][0]), "x"]

    @contract
    async def test_one_put_wins(self, database: Database) -> None:
        """Of many `put(expect=)` of one version exactly one wins, and its value is stored."""
        require(database, compare_and_set=True)
        state = database.state.app()
        version = 0
        for _ in range(3):
            won, lost = await _contend(
                [state.put("k", place, expect=version) for place in range(16)]
            )
            assert (len(won), len(lost)) == (1, 15)
            place, put = won[0]
            assert (
                await state.get("k") == put == Versioned(key="k", value=place, version=put.version)
            )
            version = put.version

    async def test_increments_add_up(self, database: Database) -> None:
        """Increments by compare-and-set from many tasks add up exactly."""
        require(database, compare_and_set=True)
        state = database.state.app()

        async def count() -> None:
            for _ in range(5):
                while not await _increment(state):
                    pass

        await asyncio.gather(*(count() for _ in range(6)))
        total = await state.get("n")
        assert total is not None
        assert total.value == 30

    async def test_one_delete_wins(self, conversations: Conversations) -> None:
        """Of many deletes of one session exactly one says that it was there."""
        await conversations.append("s", [say("x")])
        assert sorted(await asyncio.gather(*(conversations.delete("s") for _ in range(8)))) == [
            *([False] * 7),
            True,
        ]

    @contract
    async def test_bad_append_spares_its_neighbours(self, database: Database) -> None:
        """An append in conflict fails alone, whatever is written together with it."""
        require(database, conflict_detection=True)
        conversations = database.conversations
        old = say("old")
        await conversations.append("s", [old])
        batches = [[say(str(place))] for place in range(20)]
        for place in (3, 11, 19):
            batches[place].append(replace(old, content="other"))
        won, lost = await _contend([conversations.append("s", batch) for batch in batches])
        assert [place for place, _ in lost] == [3, 11, 19]
        expected = [str(place) for place in range(20) if place not in (3, 11, 19)]
        assert sorted(texts(await conversations.read("s"))[1:]) == sorted(expected)
        assert len(won) == 17

    async def test_rewinds_among_appends(self, conversations: Conversations) -> None:
        """Rewinding while others append leaves the count right, and no `seq` used twice."""
        given: list[int] = []

        async def write() -> None:
            for _ in range(6):
                result = await conversations.append("s", [say("x"), say("y")])
                given.extend(seq for seq in result.seqs if seq is not None)

        async def cut() -> int:
            dropped = 0
            for _ in range(6):
                history = await conversations.read("s", last=3)
                if history:
                    dropped += await conversations.rewind("s", to=history[0].seq or 0)
                await asyncio.sleep(0.001)
            return dropped

        cutting = asyncio.create_task(cut())
        await asyncio.gather(*(write() for _ in range(4)))
        dropped = await cutting
        assert len(set(given)) == len(given) == 48
        session = await conversations.get("s")
        assert session is not None
        assert session.message_count == len(await conversations.read("s")) == 48 - dropped

    async def test_deletes_among_appends(self, conversations: Conversations) -> None:
        """Deleting while others append never leaves half a batch, and no `seq` comes again."""
        given: list[int] = []

        async def write() -> None:
            for _ in range(6):
                result = await conversations.append("s", [say("x"), say("y")])
                given.extend(seq for seq in result.seqs if seq is not None)

        async def clear() -> None:
            for _ in range(6):
                await conversations.delete("s")
                await asyncio.sleep(0.001)

        await asyncio.gather(clear(), *(write() for _ in range(4)))
        assert len(set(given)) == len(given) == 48
        stored = await conversations.read("s")
        assert texts(stored) == ["x", "y"] * (len(stored) // 2)
        session = await conversations.get("s")
        assert (session.message_count if session else 0) == len(stored)


async def _contend(
    calls: Sequence[Awaitable[T]],
) -> tuple[list[tuple[int, T]], list[tuple[int, ConflictError]]]:
    """Make calls at once; tell which ones won, and which ones met a conflict."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    won: list[tuple[int, T]] = []
    lost: list[tuple[int, ConflictError]] = []
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, ConflictError):
            lost.append((place, outcome))
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            won.append((place, outcome))
    return won, lost


async def _increment(state: State) -> bool:
    stored = await state.get("n")
    value, version = (stored.value, stored.version) if stored else (0, 0)
    try:
        await state.put("n", value + 1, expect=version)
    except ConflictError:
        return False
    return True
