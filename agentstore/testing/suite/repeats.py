"""Lost answers: a call that is made again has one effect, and the answer of the first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from ...database import Database
from ...errors import ConflictError
from ...wrappers import Bound, Operation
from ..twice import Twice
from ._base import Suite, contract, driver_for, require, say, texts

__all__ = ["RepeatTests"]


class RepeatTests(Suite):
    """Rules 1 and 6: every attempt at a call has the same operation id, and knows its own write."""

    @pytest.fixture
    def lossy(self, database_url: str) -> Twice:
        """The driver, losing the first answer to every call."""
        return Twice(driver_for(database_url))

    @pytest_asyncio.fixture(loop_scope="function")
    async def repeating(self, lossy: Twice) -> AsyncIterator[Database]:
        """A database that makes every call twice."""
        database = Database(Bound(lossy))
        await database.open()
        yield database
        await database.close()

    @contract
    async def test_append_again(self, repeating: Database) -> None:
        """An append whose answer was lost stores its messages once, and tells their `seq`."""
        conversations = repeating.conversations
        first = await conversations.append("s", [say("a"), say("b")], user_id="u")
        second = await conversations.append("s", [say("c")], user_id="u")
        stored = await conversations.read("s")
        assert texts(stored) == ["a", "b", "c"]
        assert tuple(message.seq for message in stored) == first.seqs + second.seqs
        session = await conversations.get("s")
        assert session is not None
        assert session.message_count == 3

    async def test_append_expecting_again(self, repeating: Database) -> None:
        """Nor is it a conflict with itself where it expects a `seq`."""
        require(repeating, conflict_detection=True)
        conversations = repeating.conversations
        last = 0
        for text in "abc":
            result = await conversations.append("s", [say(text)], expect_seq=last)
            last = result.seqs[0] or 0
        assert texts(await conversations.read("s")) == ["a", "b", "c"]
        with pytest.raises(ConflictError):
            await conversations.append("s", [say("d")], expect_seq=1)

    @contract
    async def test_put_again(self, repeating: Database) -> None:
        """A `put` whose answer was lost is no conflict with itself, and has one version."""
        state = repeating.state.app()
        put = await state.put("k", 1)
        assert await state.get("k") == put
        require(repeating, compare_and_set=True)
        first = await state.put("new", 1, expect=0)
        second = await state.put("new", 2, expect=first.version)
        assert await state.get("new") == second
        with pytest.raises(ConflictError):
            await state.put("new", 3, expect=first.version)

    @contract
    async def test_fork_again(self, repeating: Database) -> None:
        """A fork whose answer was lost finds the session that it made itself."""
        conversations = repeating.conversations
        seqs = (await conversations.append("s", [say("a"), say("b")])).seqs
        forked = await conversations.fork("s", "t", upto=seqs[0])
        assert forked == await conversations.get("t")
        assert (forked.session_id, forked.message_count) == ("t", 1)
        with pytest.raises(ConflictError):
            await conversations.fork("s", "t")

    @contract
    async def test_rewind_again(self, repeating: Database) -> None:
        """A rewind whose answer was lost tells what the first attempt dropped."""
        conversations = repeating.conversations
        seqs = (await conversations.append("s", [say(str(i)) for i in range(5)])).seqs
        assert await conversations.rewind("s", to=seqs[2] or 0) == 2
        assert await conversations.rewind("s", to=seqs[2] or 0) == 0
        assert await conversations.rewind("s", to=seqs[0] or 0) == 2
        assert texts(await conversations.read("s")) == ["0"]

    @contract
    async def test_delete_again(self, repeating: Database) -> None:
        """A delete whose answer was lost says that there was a session."""
        conversations = repeating.conversations
        await conversations.append("s", [say("a")])
        assert await conversations.delete("s") is True
        assert await conversations.delete("s") is False
        await conversations.append("s", [say("b")])
        assert await conversations.delete("s") is True

    async def test_update_and_replace_again(self, repeating: Database) -> None:
        """An update and a replacement are the same once or twice."""
        conversations = repeating.conversations
        message = say("a")
        await conversations.append("s", [message])
        session = await conversations.update("s", title="T", metadata={"k": 1})
        assert session == await conversations.get("s")
        assert await conversations.replace("s", message.id, content="b") is True
        assert texts(await conversations.read("s")) == ["b"]

    async def test_rewind_spares_what_came_since(self, lossy: Twice, repeating: Database) -> None:
        """A second attempt at a rewind doesn't drop what was appended after the first one."""
        conversations = repeating.conversations
        seqs = (await conversations.append("s", [say("a"), say("b")])).seqs
        lossy.between = _appending(lossy, "rewind")
        assert await conversations.rewind("s", to=seqs[0] or 0) == 1
        assert texts(await conversations.read("s")) == ["a", "since"]

    async def test_delete_spares_what_came_since(self, lossy: Twice, repeating: Database) -> None:
        """A second attempt at a delete doesn't touch the session that began after the first."""
        conversations = repeating.conversations
        await conversations.append("s", [say("a")])
        lossy.between = _appending(lossy, "delete")
        assert await conversations.delete("s") is True
        assert texts(await conversations.read("s")) == ["since"]

    async def test_append_knows_itself_behind_others(
        self, lossy: Twice, repeating: Database
    ) -> None:
        """A second attempt at an append finds its messages, though others came behind them."""
        conversations = repeating.conversations
        await conversations.append("s", [say("a")])
        lossy.between = _appending(lossy, "append")
        result = await conversations.append("s", [say("b")])
        stored = await conversations.read("s")
        assert texts(stored) == ["a", "b", "since"]
        assert result.seqs == (stored[1].seq,)


def _appending(lossy: Twice, name: str) -> Callable[[Operation], Awaitable[object]]:
    """Append a message, past the wrapper, between the attempts at the operation of this name."""

    async def between(operation: Operation) -> None:
        if operation.name == name:
            database = Database(lossy._inner)
            await database.conversations.append("s", [say("since")])

    return between
