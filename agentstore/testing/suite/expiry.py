"""Expiry: what is past its time is absent from every method."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from ...conversations import Conversations
from ...database import Database
from ...errors import ConflictError
from ...types import Session
from ._base import Suite, contract, eventually, require, say, texts

__all__ = ["ExpiryTests"]

_BRIEF = 0.2
_HOUR = 3600.0


class ExpiryTests(Suite):
    """Rule 11."""

    @contract
    async def test_expired_session_is_absent(self, database: Database) -> None:
        """A session past its time is as if it had never been, to every method."""
        require(database, ttl=True)
        conversations = database.conversations
        message = say("x")
        await conversations.append("s", [message], user_id="u", ttl=_BRIEF)
        await _expired(conversations, "s")
        assert await conversations.get("s", user_id="u") is None
        assert list(await conversations.read("s")) == []
        assert list(await conversations.read("s", last=1)) == []
        assert list(await conversations.read("s", max_tokens=5)) == []
        assert list(await conversations.read("s", first=1, after=0)) == []
        for which in _LISTINGS:
            assert list(await conversations.sessions(**which)) == []
        assert await conversations.update("s", title="T", ttl=None) is None
        assert await conversations.replace("s", message.id, content="y") is False
        assert await conversations.rewind("s", to=0) == 0
        assert await conversations.delete("s") is False
        with pytest.raises(ConflictError):
            await conversations.fork("s", "t")
        assert await conversations.get("s") is None

    @contract
    async def test_expired_session_begins_anew(self, database: Database) -> None:
        """An append to an expired session makes a new one, with a higher `seq`."""
        require(database, ttl=True)
        conversations = database.conversations
        messages = [say("a"), say("b")]
        old = await conversations.append("s", messages, user_id="u", agent="bot", ttl=_BRIEF)
        await conversations.update("s", title="T", metadata={"k": 1})
        await _expired(conversations, "s")
        new = await conversations.append("s", [replace(messages[1], content="c")], user_id="v")
        assert new.created == (True,)
        assert (new.seqs[0] or 0) > (old.seqs[1] or 0)
        session = await conversations.get("s")
        assert session is not None
        assert (session.user_id, session.agent, session.title) == ("v", None, None)
        assert (session.metadata, session.message_count, session.expires_at) == ({}, 1, None)
        assert texts(await conversations.read("s")) == ["c"]

    async def test_expect_seq_on_an_expired_session(self, database: Database) -> None:
        """An expired session is an empty one to `expect_seq`."""
        require(database, ttl=True, conflict_detection=True)
        conversations = database.conversations
        old = (await conversations.append("s", [say("a")], ttl=_BRIEF)).seqs[0]
        await _expired(conversations, "s")
        with pytest.raises(ConflictError):
            await conversations.append("s", [say("b")], expect_seq=old)
        assert (await conversations.append("s", [say("b")], expect_seq=0)).created == (True,)

    async def test_fork_onto_an_expired_session(self, database: Database) -> None:
        """An expired session doesn't stand in the way of a fork."""
        require(database, ttl=True)
        conversations = database.conversations
        await conversations.append("s", [say("a")])
        await conversations.append("t", [say("b")], ttl=_BRIEF)
        await _expired(conversations, "t")
        assert (await conversations.fork("s", "t")).expires_at is None
        assert texts(await conversations.read("t")) == ["a"]

    async def test_append_slides_the_expiry(self, database: Database) -> None:
        """`append(ttl=)` counts from now on; without `ttl` the expiry stays."""
        require(database, ttl=True)
        conversations = database.conversations
        message = say("a")
        await conversations.append("s", [message], ttl=_HOUR)
        first = await _expiry(conversations)
        await conversations.append("s", [say("b")])
        assert await _expiry(conversations) == first
        await conversations.append("s", [say("c")], ttl=3 * _HOUR)
        _is_about(await _expiry(conversations) - first, 2 * _HOUR)
        await conversations.append("s", [message], ttl=2 * _HOUR)
        _is_about(await _expiry(conversations) - first, _HOUR)

    async def test_update_changes_the_expiry(self, database: Database) -> None:
        """`update(ttl=)` sets the expiry, `ttl=None` takes it away, and omitted it stays."""
        require(database, ttl=True)
        conversations = database.conversations
        await conversations.append("s", [say("a")])
        first = await conversations.update("s", ttl=_HOUR)
        assert first is not None
        _is_about(_end(first) - first.updated_at, _HOUR)
        titled = await conversations.update("s", title="T")
        assert titled is not None
        assert titled.expires_at == first.expires_at == await _expiry(conversations)
        endless = await conversations.update("s", ttl=None)
        assert endless is not None
        assert endless.expires_at is None
        await conversations.update("s", ttl=_BRIEF)
        await _expired(conversations, "s")

    async def test_fork_expires_with_its_source(self, database: Database) -> None:
        """A fork doesn't outlive what it is a copy of."""
        require(database, ttl=True)
        conversations = database.conversations
        await conversations.append("s", [say("a")], ttl=_HOUR)
        assert (await conversations.fork("s", "t")).expires_at == await _expiry(conversations)

    async def test_listing_skips_the_expired(self, database: Database) -> None:
        """Expired sessions take no place on a page, and end no listing."""
        require(database, ttl=True, listing="exact")
        conversations = database.conversations
        for place in range(8):
            ttl = _BRIEF if place % 4 else None
            await conversations.append(f"s{place}", [say("x")], user_id="u", ttl=ttl)
        for place in (1, 2, 3, 5, 6, 7):
            await _expired(conversations, f"s{place}")
        for which in _LISTINGS:
            page = await conversations.sessions(limit=1, **which)
            rest = await conversations.sessions(limit=1, cursor=page.cursor, **which)
            assert {one.session_id for one in [*page, *rest]} == {"s0", "s4"}
            assert rest.cursor is None

    @contract
    async def test_expired_value_is_absent(self, database: Database) -> None:
        """A value of state past its time is as if it had never been, to every method."""
        require(database, ttl=True)
        state = database.state.app()
        await state.put("a", 1, ttl=_BRIEF)
        await state.put("b", 2, ttl=_HOUR)
        await _gone(database, "a")
        assert [item.key for item in await state.items()] == ["b"]
        assert [item.key for item in await state.items(prefix="a")] == []
        page = await state.items(limit=1)
        assert ([item.key for item in page], page.cursor) == (["b"], None)
        assert await state.delete("a") is False

    async def test_expired_version_never_comes_again(self, database: Database) -> None:
        """To `expect` an expired value is none, and its version is not used again."""
        require(database, ttl=True, compare_and_set=True)
        state = database.state.app()
        old = await state.put("k", 1, ttl=_BRIEF)
        await _gone(database, "k")
        for call in (state.put("k", 2, expect=old.version), state.delete("k", expect=old.version)):
            with pytest.raises(ConflictError):
                await call
        new = await state.put("k", 2, expect=0)
        assert new.version != old.version
        assert await state.get("k") == new

    async def test_put_without_ttl_lasts(self, database: Database) -> None:
        """A `put` without `ttl` makes the value last for ever, whatever it had before."""
        require(database, ttl=True)
        state = database.state.app()
        await state.put("k", 1, ttl=0.5)
        await state.put("brief", 1, ttl=0.5)
        await state.put("k", 2)
        await _gone(database, "brief")
        value = await state.get("k")
        assert value is not None
        assert value.value == 2

    @contract
    async def test_purge_expired(self, database: Database) -> None:
        """`purge_expired` frees what has expired, counts it, and keeps the rest."""
        require(database, ttl=True)
        conversations, state = database.conversations, database.state.user("u")
        for place in range(3):
            await conversations.append(f"old{place}", [say("x")], ttl=_BRIEF)
            await state.put(f"old{place}", 1, ttl=_BRIEF)
        await conversations.append("new", [say("x")], ttl=_HOUR)
        await conversations.append("endless", [say("x")])
        await state.put("new", 1, ttl=_HOUR)
        await state.put("endless", 1)
        for place in range(3):
            await _expired(conversations, f"old{place}")
        await asyncio.sleep(_BRIEF)
        assert await conversations.purge_expired(limit=2) == 2
        assert await conversations.purge_expired() == 4
        assert await conversations.purge_expired() == 0
        assert await conversations.get("old0") is None
        for kept in ("new", "endless"):
            assert texts(await conversations.read(kept)) == ["x"]
            assert await state.get(kept) is not None

    async def test_purged_session_begins_anew(self, database: Database) -> None:
        """After the purge `seq` goes on where it was, as after a deletion."""
        require(database, ttl=True)
        conversations = database.conversations
        message = say("a")
        old = await conversations.append("s", [message, say("b")], ttl=_BRIEF)
        await _expired(conversations, "s")
        assert await conversations.purge_expired() == 1
        new = await conversations.append("s", [message])
        assert new.created == (True,)
        assert (new.seqs[0] or 0) > (old.seqs[1] or 0)


_LISTINGS: list[dict[str, Any]] = [{}, {"prefix": ""}, {"user_id": "u"}]


async def _expired(conversations: Conversations, session_id: str) -> None:
    async def check() -> bool:
        return await conversations.get(session_id) is None

    await eventually(check, f"{session_id} expires")


async def _gone(database: Database, key: str) -> None:
    async def check() -> bool:
        return await database.state.app().get(key) is None

    await eventually(check, f"{key} expires")


async def _expiry(conversations: Conversations) -> Any:  # noqa: ANN401 - arithmetic with datetimes
    session = await conversations.get("s")
    assert session is not None
    return _end(session)


def _end(session: Session) -> Any:  # noqa: ANN401 - arithmetic with datetimes
    assert session.expires_at is not None
    return session.expires_at


def _is_about(length: timedelta, seconds: float) -> None:
    assert abs(length - timedelta(seconds=seconds)) < timedelta(seconds=90)
