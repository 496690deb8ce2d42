"""Appending: whole or not at all, once however often it is sent, in the order of `seq`."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from ...conversations import Conversations
from ...database import Database
from ...errors import ConflictError
from ...types import Durability, Message
from ._base import Suite, contract, require, say, taken, texts, written

__all__ = ["AppendTests"]

_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_FULL = Message(
    role="assistant",
    content="text",
    name="bob",
    tool_calls=[_CALL],
    tool_call_id="c0",
    metadata={"a": 1, "b": [1.0, None]},
    extra={"refusal": None, "audio": {"id": "x"}},
)
_OTHER_BODIES: dict[str, dict[str, Any]] = {
    "role": {"role": "user"},
    "content": {"content": "text "},
    "content as parts": {"content": [{"type": "text", "text": "text"}]},
    "content null": {"content": None},
    "name": {"name": "Bob"},
    "name null": {"name": None},
    "tool_calls": {"tool_calls": [_CALL, _CALL]},
    "tool_calls empty": {"tool_calls": []},
    "tool_call_id": {"tool_call_id": "c1"},
    "metadata": {"metadata": {"a": 2, "b": [1.0, None]}},
    "an integer for a float": {"metadata": {"a": 1, "b": [1, None]}},
    "true for one": {"metadata": {"a": True, "b": [1.0, None]}},
    "extra": {"extra": {"audio": {"id": "x"}}},
}


class AppendTests(Suite):
    """Rules 1 to 3: ids, order, and whole batches."""

    @contract
    async def test_append_then_read(self, conversations: Conversations) -> None:
        """What is appended is read, in the order of the batch, each with the `seq` it got."""
        messages = [say("one"), say("two"), say("three")]
        result = await conversations.append("s", messages)
        stored = await conversations.read("s")
        assert [written(message) for message in stored] == [written(m) for m in messages]
        assert tuple(message.seq for message in stored) == result.seqs
        assert result.created == (True, True, True)

    async def test_seq_rises(self, conversations: Conversations) -> None:
        """`seq` starts above 0 and rises with every message of a session."""
        seqs: list[int] = []
        for size in (1, 3, 2):
            result = await conversations.append("s", [say("x") for _ in range(size)])
            seqs += [seq for seq in result.seqs if seq is not None]
        assert len(seqs) == 6
        assert seqs[0] > 0
        assert all(earlier < later for earlier, later in pairwise(seqs))

    @contract
    async def test_durability_is_told(self, database: Database) -> None:
        """An append says `COMMITTED`, or `BUFFERED` where nothing outlives the process."""
        result = await database.conversations.append("s", [say("x")])
        kept = database.capabilities.durability != "none"
        assert result.durability is (Durability.COMMITTED if kept else Durability.BUFFERED)

    @contract
    async def test_first_append_makes_the_session(self, conversations: Conversations) -> None:
        """A session begins with its first messages, and has its owner and agent from then."""
        assert await conversations.get("s") is None
        await conversations.append("s", [say("x"), say("y")], user_id="u", agent="a")
        session = await conversations.get("s")
        assert session is not None
        assert (session.session_id, session.tenant) == ("s", "")
        assert (session.user_id, session.agent, session.title) == ("u", "a", None)
        assert (session.metadata, session.expires_at, session.message_count) == ({}, None, 2)

    async def test_agent_is_kept_from_the_first_append(self, conversations: Conversations) -> None:
        """Later appends change neither the agent nor the owner of a session."""
        await conversations.append("s", [say("x")], user_id="u", agent="first")
        await conversations.append("s", [say("y")], user_id="u", agent="second")
        await conversations.append("s", [say("z")])
        session = await conversations.get("s")
        assert session is not None
        assert (session.user_id, session.agent, session.message_count) == ("u", "first", 3)

    @contract
    async def test_repeat_changes_nothing(self, conversations: Conversations) -> None:
        """The same messages sent again are answered with their `seq`, and stored once."""
        messages = [say("one"), say("two")]
        first = await conversations.append("s", messages)
        await conversations.append("s", [say("three")])
        again = await conversations.append("s", messages)
        assert again.seqs == first.seqs
        assert again.created == (False, False)
        assert texts(await conversations.read("s")) == ["one", "two", "three"]

    async def test_repeats_and_new_ones_mix(self, conversations: Conversations) -> None:
        """A batch may hold stored and new messages: only the new ones are added, at the end."""
        one, two, three = say("one"), say("two"), say("three")
        first = await conversations.append("s", [one, two])
        mixed = await conversations.append("s", [two, three, one])
        assert mixed.created == (False, True, False)
        assert (mixed.seqs[0], mixed.seqs[2]) == (first.seqs[1], first.seqs[0])
        stored = await conversations.read("s")
        assert texts(stored) == ["one", "two", "three"]
        assert stored[2].seq == mixed.seqs[1]

    async def test_repeat_within_a_batch(self, conversations: Conversations) -> None:
        """A message that comes twice in one batch is stored once, where it came first."""
        one, two = say("one"), say("two")
        result = await conversations.append("s", [one, two, one])
        assert result.created == (True, True, False)
        assert result.seqs[2] == result.seqs[0]
        assert texts(await conversations.read("s")) == ["one", "two"]

    async def test_repeat_keeps_the_stored_row(self, conversations: Conversations) -> None:
        """Time and cost are no part of the body: the same message with others is a repeat."""
        message = say("x", tokens=5)
        await conversations.append("s", [message])
        later = replace(message, tokens=7, created_at=say("").created_at)
        result = await conversations.append("s", [later])
        assert result.created == (False,)
        assert [written(m) for m in await conversations.read("s")] == [written(message)]

    async def test_order_of_keys_is_no_difference(self, conversations: Conversations) -> None:
        """A body whose keys come in another order is the same body."""
        one = say("x", metadata={"a": 1, "b": {"c": 2, "d": 3}})
        other = replace(one, metadata={"b": {"d": 3, "c": 2}, "a": 1})
        await conversations.append("s", [one])
        assert (await conversations.append("s", [other])).created == (False,)

    @contract
    async def test_other_body_is_a_conflict(self, database: Database) -> None:
        """An id that comes with another body is refused, and the stored one stays."""
        require(database, conflict_detection=True)
        conversations = database.conversations
        message = say("one")
        await conversations.append("s", [message])
        with pytest.raises(ConflictError) as caught:
            await conversations.append("s", [replace(message, content="another")])
        assert caught.value.retryable is False
        assert texts(await conversations.read("s")) == ["one"]

    async def test_every_field_of_the_body_counts(self, database: Database) -> None:
        """A difference in any field of the body is a conflict."""
        require(database, conflict_detection=True)
        await database.conversations.append("s", [_FULL])
        others = {
            name: partial(database.conversations.append, "s", [replace(_FULL, **change)])
            for name, change in _OTHER_BODIES.items()
        }
        assert await taken(others, ConflictError) == []
        assert [written(m) for m in await database.conversations.read("s")] == [written(_FULL)]

    @contract
    async def test_conflict_writes_nothing_of_the_batch(self, database: Database) -> None:
        """One message in conflict keeps the whole batch out, what stands before it too."""
        require(database, conflict_detection=True, atomic_batch=True)
        conversations = database.conversations
        old = say("old")
        await conversations.append("s", [old])
        with pytest.raises(ConflictError):
            await conversations.append("s", [say("a"), replace(old, content="new"), say("b")])
        assert texts(await conversations.read("s")) == ["old"]
        session = await conversations.get("s")
        assert session is not None
        assert session.message_count == 1

    async def test_conflict_within_a_batch_makes_no_session(self, database: Database) -> None:
        """A batch that contradicts itself is refused, and doesn't begin a session."""
        require(database, conflict_detection=True, atomic_batch=True)
        one = say("one")
        with pytest.raises(ConflictError):
            await database.conversations.append("s", [one, replace(one, content="other")])
        assert await database.conversations.get("s") is None
        assert list(await database.conversations.read("s")) == []

    async def test_conflict_shows_no_text(self, database: Database) -> None:
        """An error, its causes included, holds nothing of what the messages say."""
        require(database, conflict_detection=True)
        message = say("Tr0ub4dor")
        await database.conversations.append("s", [message])
        with pytest.raises(ConflictError) as caught:
            await database.conversations.append("s", [replace(message, content="c0rrectH0rse")])
        error: BaseException | None = caught.value
        while error is not None:
            shown = f"{error} {error!r} {error.args}"
            assert "Tr0ub4dor" not in shown
            assert "c0rrectH0rse" not in shown
            error = error.__cause__ or error.__context__

    async def test_ids_belong_to_a_session(self, conversations: Conversations) -> None:
        """The same message may stand in several sessions."""
        message = say("x")
        for session_id in ("a", "b"):
            assert (await conversations.append(session_id, [message])).created == (True,)
        assert await conversations.replace("b", message.id, content="y") is True
        assert texts(await conversations.read("a")) == ["x"]
        assert texts(await conversations.read("b")) == ["y"]

    @contract
    async def test_expect_seq(self, database: Database) -> None:
        """`expect_seq` is the last `seq` known, 0 for none: another one is a conflict."""
        require(database, conflict_detection=True)
        conversations = database.conversations
        for wrong in (1, 7):
            with pytest.raises(ConflictError):
                await conversations.append("s", [say("no")], expect_seq=wrong)
        assert await conversations.get("s") is None
        one = (await conversations.append("s", [say("one")], expect_seq=0)).seqs[0]
        assert one is not None
        for wrong in (0, one + 1):
            with pytest.raises(ConflictError):
                await conversations.append("s", [say("no")], expect_seq=wrong)
        await conversations.append("s", [say("two")], expect_seq=one)
        assert texts(await conversations.read("s")) == ["one", "two"]

    async def test_expect_seq_lets_a_repeat_through(self, database: Database) -> None:
        """An append that is sent again is no conflict, though the session has moved on."""
        require(database, conflict_detection=True)
        conversations = database.conversations
        one = say("one")
        first = await conversations.append("s", [one], expect_seq=0)
        await conversations.append("s", [say("two")])
        again = await conversations.append("s", [one], expect_seq=0)
        assert (again.seqs, again.created) == (first.seqs, (False,))

    async def test_expect_seq_after_rewind(self, database: Database) -> None:
        """After a rewind, the last `seq` is that of the last message which is still there."""
        require(database, conflict_detection=True)
        conversations = database.conversations
        one, two = (await conversations.append("s", [say("one"), say("two")])).seqs
        assert one is not None
        await conversations.rewind("s", to=one)
        with pytest.raises(ConflictError):
            await conversations.append("s", [say("no")], expect_seq=two)
        await conversations.append("s", [say("new")], expect_seq=one)
        await conversations.rewind("s", to=0)
        await conversations.append("s", [say("first")], expect_seq=0)
        assert texts(await conversations.read("s")) == ["first"]

    async def test_count_is_exact(self, conversations: Conversations) -> None:
        """`message_count` counts what is stored: repeats, conflicts and rewinds included."""
        messages = [say(str(i)) for i in range(7)]
        result = await conversations.append("s", messages)
        await conversations.append("s", messages[:3])
        await conversations.rewind("s", to=result.seqs[4] or 0)
        await conversations.append("s", [messages[6], say("new")])
        session = await conversations.get("s")
        assert session is not None
        assert session.message_count == 7 == len(await conversations.read("s"))
