"""Changing what is there: replace, rewind, fork, delete."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from ...conversations import Conversations
from ...database import Database
from ...errors import ConflictError
from ...types import Message
from ._base import Suite, contract, require, say, texts, written

__all__ = ["EditingTests"]


class EditingTests(Suite):
    """The methods that change or remove messages; `seq` never comes again after any of them."""

    @contract
    async def test_replace_content(self, conversations: Conversations) -> None:
        """`replace` changes the content of one message, and leaves the rest as it was."""
        messages = [say("a"), say("b", name="n", metadata={"k": 1}, extra={"e": 2}), say("c")]
        seqs = (await conversations.append("s", messages)).seqs
        assert await conversations.replace("s", messages[1].id, content="[redacted]") is True
        stored = await conversations.read("s")
        assert texts(stored) == ["a", "[redacted]", "c"]
        assert tuple(message.seq for message in stored) == seqs
        changed = stored[1]
        assert (changed.id, changed.role, changed.name) == (messages[1].id, "user", "n")
        assert (changed.metadata, changed.extra) == ({"k": 1}, {"e": 2})
        assert changed.created_at == messages[1].created_at

    async def test_replace_with_any_content(self, conversations: Conversations) -> None:
        """The new content may be null, empty, or in parts."""
        message = say("a")
        await conversations.append("s", [message])
        contents: list[Any] = [None, "", [], [{"type": "text", "text": "a\0b"}]]
        for content in contents:
            assert await conversations.replace("s", message.id, content=content) is True
            assert (await conversations.read("s"))[0].to_openai()["content"] == content

    async def test_replace_metadata(self, conversations: Conversations) -> None:
        """Metadata is replaced where it is given, and not merged."""
        message = say("a", metadata={"old": 1})
        await conversations.append("s", [message])
        await conversations.replace("s", message.id, content="a", metadata={"new": [1.0]})
        assert (await conversations.read("s"))[0].metadata == {"new": [1.0]}
        await conversations.replace("s", message.id, content="b", metadata={})
        assert (await conversations.read("s"))[0].metadata == {}

    async def test_replace_what_is_not_there(self, conversations: Conversations) -> None:
        """`replace` is false for an unknown message, and one that was dropped or deleted."""
        message = say("a")
        assert await conversations.replace("s", message.id, content="x") is False
        assert await conversations.get("s") is None
        await conversations.append("s", [message])
        assert await conversations.replace("s", "unknown", content="x") is False
        await conversations.append("other", [say("b")])
        assert await conversations.replace("other", message.id, content="x") is False
        await conversations.rewind("s", to=0)
        assert await conversations.replace("s", message.id, content="x") is False
        await conversations.delete("other")
        assert await conversations.replace("other", message.id, content="x") is False

    async def test_replaced_body_is_gone(self, database: Database) -> None:
        """After `replace` the old body is another one, and the new body is the stored one."""
        require(database, conflict_detection=True)
        conversations = database.conversations
        message = say("secret", metadata={"k": 1})
        await conversations.append("s", [message])
        await conversations.replace("s", message.id, content="[redacted]")
        with pytest.raises(ConflictError):
            await conversations.append("s", [message])
        again = await conversations.append("s", [replace(message, content="[redacted]")])
        assert again.created == (False,)
        assert texts(await conversations.read("s")) == ["[redacted]"]

    async def test_rewind_drops_what_lies_behind(self, conversations: Conversations) -> None:
        """`rewind` drops the messages behind `to`, tells how many, and keeps `to` itself."""
        seqs = (await conversations.append("s", [say(str(i)) for i in range(5)])).seqs
        assert await conversations.rewind("s", to=seqs[2] or 0) == 2
        assert texts(await conversations.read("s")) == ["0", "1", "2"]
        assert await conversations.rewind("s", to=seqs[2] or 0) == 0
        assert await conversations.rewind("s", to=seqs[4] or 0) == 0
        session = await conversations.get("s")
        assert session is not None
        assert session.message_count == 3

    async def test_rewind_to_the_beginning(self, conversations: Conversations) -> None:
        """A session that is rewound to 0 is empty, and still there."""
        await conversations.append("s", [say("a"), say("b")], user_id="u")
        assert await conversations.rewind("s", to=0) == 2
        assert list(await conversations.read("s")) == []
        session = await conversations.get("s")
        assert session is not None
        assert (session.user_id, session.message_count) == ("u", 0)
        assert await conversations.rewind("s", to=0) == 0
        assert await conversations.rewind("unknown", to=0) == 0

    @contract
    async def test_seq_never_comes_again(self, conversations: Conversations) -> None:
        """Rewound, deleted, or both: no `seq` of a session is ever given to another message."""
        seen: set[int] = set()

        async def append() -> int:
            result = await conversations.append("s", [say("a"), say("b"), say("c")])
            fresh = {seq for seq in result.seqs if seq is not None}
            assert len(fresh) == 3
            assert not fresh & seen
            assert min(fresh) > max(seen, default=0)
            seen.update(fresh)
            return min(fresh)

        await conversations.rewind("s", to=await append())
        await append()
        await conversations.rewind("s", to=0)
        await append()
        await conversations.delete("s")
        await append()
        await conversations.rewind("s", to=0)
        await conversations.delete("s")
        await append()

    async def test_dropped_message_is_new_again(self, conversations: Conversations) -> None:
        """A message that was dropped may be appended again, with another body too."""
        one, two = say("one"), say("two")
        seqs = (await conversations.append("s", [one, two])).seqs
        await conversations.rewind("s", to=seqs[0] or 0)
        result = await conversations.append("s", [one, replace(two, content="other")])
        assert result.created == (False, True)
        assert (result.seqs[1] or 0) > (seqs[1] or 0)
        assert texts(await conversations.read("s")) == ["one", "other"]

    @contract
    async def test_fork_copies(self, conversations: Conversations) -> None:
        """A fork has the messages of the session, their ids and `seq`, and what is known of it."""
        await conversations.append("s", [say("x")], user_id="u", agent="bot")
        await conversations.append("s", [say(str(i), metadata={"i": i}) for i in range(3)])
        await conversations.update("s", title="T", metadata={"k": 1})
        before = await conversations.read("s")
        forked = await conversations.fork("s", "copy")
        assert (forked.session_id, forked.user_id, forked.agent) == ("copy", "u", "bot")
        assert (forked.title, forked.metadata, forked.message_count) == ("T", {"k": 1}, 4)
        assert await conversations.get("copy") == forked
        copies = await conversations.read("copy")
        assert list(map(written, copies)) == list(map(written, before))
        assert [copy.seq for copy in copies] == [message.seq for message in before]
        assert list(await conversations.read("s")) == list(before)

    async def test_fork_upto(self, conversations: Conversations) -> None:
        """`upto` ends the copy with the message of that `seq`."""
        seqs = (await conversations.append("s", [say(str(i)) for i in range(4)])).seqs
        forked = await conversations.fork("s", "two", upto=seqs[1])
        assert forked.message_count == 2
        assert texts(await conversations.read("two")) == ["0", "1"]
        assert (await conversations.fork("s", "none", upto=0)).message_count == 0
        assert list(await conversations.read("none")) == []
        assert (await conversations.fork("s", "all", upto=(seqs[3] or 0) + 9)).message_count == 4

    async def test_forks_go_their_own_way(self, conversations: Conversations) -> None:
        """What is done to a fork doesn't reach the session, nor the other way."""
        messages = [say("0"), say("1"), say("2")]
        seqs = (await conversations.append("s", messages)).seqs
        await conversations.fork("s", "f", upto=seqs[1])
        added = await conversations.append("f", [say("f")])
        assert (added.seqs[0] or 0) > (seqs[1] or 0)
        assert (await conversations.append("f", messages[:2])).created == (False, False)
        await conversations.replace("f", messages[0].id, content="changed")
        await conversations.update("f", title="F")
        await conversations.rewind("s", to=seqs[0] or 0)
        assert texts(await conversations.read("f")) == ["changed", "1", "f"]
        assert texts(await conversations.read("s")) == ["0"]
        await conversations.delete("s")
        assert texts(await conversations.read("f")) == ["changed", "1", "f"]

    async def test_fork_refuses(self, conversations: Conversations) -> None:
        """A fork of nothing, or onto a session that is there, is a conflict and changes nothing."""
        await conversations.append("a", [say("a")])
        await conversations.append("b", [say("b")])
        for source, target in (("unknown", "c"), ("a", "b"), ("a", "a"), ("unknown", "b")):
            with pytest.raises(ConflictError):
                await conversations.fork(source, target)
        assert await conversations.get("c") is None
        assert texts(await conversations.read("a")) == ["a"]
        assert texts(await conversations.read("b")) == ["b"]

    async def test_fork_onto_a_deleted_session(self, conversations: Conversations) -> None:
        """A fork may take the id of a deleted session, whose later `seq` still never come again."""
        old = (await conversations.append("target", [say(str(i)) for i in range(9)])).seqs
        await conversations.delete("target")
        await conversations.append("s", [say("a"), say("b")])
        await conversations.fork("s", "target")
        assert texts(await conversations.read("target")) == ["a", "b"]
        new = (await conversations.append("target", [say("c")])).seqs
        assert (new[0] or 0) > (old[-1] or 0)
        assert texts(await conversations.read("target", after=old[-1])) == ["c"]

    async def test_deleted_is_as_if_never_there(self, conversations: Conversations) -> None:
        """After `delete` every method answers as for a session that nobody began."""
        message = say("a")
        await conversations.append("s", [message], user_id="u", agent="bot")
        await conversations.update("s", title="T", metadata={"k": 1})
        assert await conversations.delete("s") is True
        assert await conversations.delete("s") is False
        assert await conversations.get("s") is None
        assert await conversations.update("s", title="U") is None
        assert list(await conversations.read("s")) == []
        assert list(await conversations.read("s", last=1)) == []
        assert await conversations.rewind("s", to=0) == 0
        assert await conversations.replace("s", message.id, content="x") is False
        with pytest.raises(ConflictError):
            await conversations.fork("s", "t")

    @contract
    async def test_deleted_session_begins_anew(self, conversations: Conversations) -> None:
        """An append after `delete` makes a new session: owner, agent, title and all."""
        message = say("a")
        await conversations.append("s", [message], user_id="u", agent="bot")
        await conversations.update("s", title="T", metadata={"k": 1})
        await conversations.delete("s")
        result = await conversations.append("s", [replace(message, content="b")], user_id="v")
        assert result.created == (True,)
        session = await conversations.get("s")
        assert session is not None
        assert (session.user_id, session.agent, session.title) == ("v", None, None)
        assert (session.metadata, session.message_count) == ({}, 1)
        assert texts(await conversations.read("s")) == ["b"]

    async def test_messages_are_copies(self, conversations: Conversations) -> None:
        """What the caller does with a message afterwards doesn't reach the store."""
        parts = [{"type": "text", "text": "a"}]
        await conversations.append("s", [Message(role="user", content=parts)])
        parts[0]["text"] = "b"
        stored = (await conversations.read("s"))[0]
        assert stored.text == "a"
        assert isinstance(stored.content, list)
        stored.content[0]["text"] = "c"
        stored.metadata["k"] = 1
        again = (await conversations.read("s"))[0]
        assert (again.text, again.metadata) == ("a", {})
