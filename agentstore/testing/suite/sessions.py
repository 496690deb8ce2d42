"""Sessions: what is known of them, and their listing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from ...conversations import Conversations
from ...database import Database
from ...types import Page, Session
from ._base import Suite, contract, eventually, require, say

__all__ = ["SessionTests"]


class SessionTests(Suite):
    """`get`, `update` and `sessions`."""

    async def test_absent_session_is_none(self, conversations: Conversations) -> None:
        """A session that nobody began is `None`, and can't be updated into being."""
        assert await conversations.get("s") is None
        assert await conversations.update("s", title="t") is None
        assert await conversations.get("s") is None

    async def test_update_replaces_what_is_given(self, conversations: Conversations) -> None:
        """`update` replaces what is given, keeps the rest, and answers with the session."""
        await conversations.append("s", [say("x")], user_id="u", agent="a")
        titled = await conversations.update("s", title="T", metadata={"a": 1, "b": {"c": None}})
        assert titled is not None
        assert (titled.title, titled.metadata) == ("T", {"a": 1, "b": {"c": None}})
        assert (titled.user_id, titled.agent, titled.message_count) == ("u", "a", 1)
        other = await conversations.update("s", metadata={"d": 2})
        assert other is not None
        assert (other.title, other.metadata) == ("T", {"d": 2})
        cleared = await conversations.update("s", title=None)
        assert cleared is not None
        assert (cleared.title, cleared.metadata) == (None, {"d": 2})
        assert await conversations.update("s") == await conversations.get("s") == cleared

    async def test_append_keeps_what_was_updated(self, conversations: Conversations) -> None:
        """Title and metadata stay through later appends and rewinds."""
        await conversations.append("s", [say("x")])
        await conversations.update("s", title="T", metadata={"a": 1})
        await conversations.append("s", [say("y")])
        await conversations.rewind("s", to=0)
        session = await conversations.get("s")
        assert session is not None
        assert (session.title, session.metadata, session.message_count) == ("T", {"a": 1}, 0)

    async def test_times_are_utc(self, conversations: Conversations) -> None:
        """The times of a session are aware, in UTC, and those of this day."""
        await conversations.append("s", [say("x")])
        session = await conversations.get("s")
        assert session is not None
        assert session.created_at.utcoffset() == session.updated_at.utcoffset() == timedelta(0)
        assert session.created_at <= session.updated_at
        assert abs(session.created_at - datetime.now(UTC)) < timedelta(days=1)

    async def test_begin_is_kept(self, conversations: Conversations) -> None:
        """`created_at` is the time of the first append, whatever happens later."""
        await conversations.append("s", [say("x")])
        before = await conversations.get("s")
        await conversations.append("s", [say("y")])
        await conversations.update("s", title="T")
        after = await conversations.get("s")
        assert before is not None
        assert after is not None
        assert after.created_at == before.created_at

    @contract
    async def test_newest_first(self, database: Database) -> None:
        """Without `prefix` the session that was begun last comes first."""
        require(database, listing="exact")
        for place in range(5):
            await database.conversations.append(f"s{place}", [say("x")])
            await asyncio.sleep(0.002)
        page = await database.conversations.sessions()
        assert [session.session_id for session in page] == ["s4", "s3", "s2", "s1", "s0"]
        assert page.cursor is None

    @contract
    async def test_listing_shows_what_get_shows(self, database: Database) -> None:
        """A listed session is the same as that which `get` gives."""
        require(database, listing="exact")
        conversations = database.conversations
        await conversations.append("a", [say("x"), say("y")], user_id="u", agent="bot")
        await conversations.update("a", title="T", metadata={"k": [1.0]})
        await conversations.append("b", [say("z")])
        expected = [await conversations.get("a"), await conversations.get("b")]
        assert list(await conversations.sessions(prefix="")) == expected
        assert list(await conversations.sessions(user_id="u")) == expected[:1]

    async def test_listing_shows_up(self, database: Database) -> None:
        """An eventual listing shows a session in the end, and forgets a deleted one."""
        require(database, listing="eventual")
        conversations = database.conversations

        async def listed() -> bool:
            return [one.session_id for one in await conversations.sessions()] == ["s"]

        async def gone() -> bool:
            return not await conversations.sessions()

        await conversations.append("s", [say("x")])
        await eventually(listed, "the session is listed")
        await conversations.delete("s")
        await eventually(gone, "the deleted session is gone from the listing")

    @contract
    async def test_by_id_where_prefix_is_given(self, database: Database) -> None:
        """With `prefix` sessions come by id, of all ids where it is empty."""
        require(database, listing="exact")
        ids = ["b", "a", "é", "B", "a/1", "a0", "z", "Ω", "😀"]
        for session_id in ids:
            await database.conversations.append(session_id, [say("x")])
        page = await database.conversations.sessions(prefix="")
        assert [session.session_id for session in page] == sorted(ids)

    async def test_prefix_is_no_pattern(self, database: Database) -> None:
        """`prefix` is compared as text, byte for byte."""
        require(database, listing="exact")
        ids = ["a", "a%", "a_", "ab", "A", "b", "*", "a*", "%", "aé", "a\\"]
        for session_id in ids:
            await database.conversations.append(session_id, [say("x")])
        for prefix in ("a", "a%", "a_", "a*", "%", "_", "*", "é", "a\\", "[a]", "a.", "zz"):
            page = await database.conversations.sessions(prefix=prefix)
            expected = sorted(one for one in ids if one.startswith(prefix))
            assert [session.session_id for session in page] == expected, prefix

    @contract
    async def test_pages_of_sessions_join(self, database: Database) -> None:
        """Pages of any size are the whole listing, once; the last one has no cursor."""
        require(database, listing="exact")
        conversations = database.conversations
        for place in range(6):
            await conversations.append(f"s{place}", [say("x")], user_id="u")
        await conversations.append("other", [say("x")], user_id="v")
        for which in (*_LISTINGS, {"prefix": "s"}, {"prefix": "s", "user_id": "u"}):
            whole = list(await conversations.sessions(**which))
            assert len(whole) == (7 if which in ({}, {"prefix": ""}) else 6)
            for size in (1, 2, 3, 6, 7, 8):
                pages = await _pages(conversations, limit=size, **which)
                assert [session for page in pages for session in page] == whole
                assert len(pages) == -(-len(whole) // size)
                assert all(len(page) == size for page in pages[:-1])

    async def test_page_goes_on_behind_a_deleted_session(self, database: Database) -> None:
        """A page begins behind the last session of the page before, though that is gone."""
        require(database, listing="exact")
        conversations = database.conversations
        for prefix in (None, ""):
            for place in range(5):
                await conversations.append(f"s{place}", [say("x")])
                await asyncio.sleep(0.002)
            whole = [one.session_id for one in await conversations.sessions(prefix=prefix)]
            page = await conversations.sessions(prefix=prefix, limit=2)
            await conversations.delete(whole[1])
            rest = await conversations.sessions(prefix=prefix, limit=9, cursor=page.cursor)
            assert [one.session_id for one in rest] == whole[2:]

    async def test_pages_while_sessions_come_and_go(self, database: Database) -> None:
        """No session is on one page twice, and none that nobody touched is missed."""
        require(database, listing="exact")
        conversations = database.conversations
        for place in range(12):
            await conversations.append(f"s{place:02}", [say("x")])
            await asyncio.sleep(0.001)
        for which in ({}, {"prefix": ""}):
            seen: list[str] = []
            cursor: str | None = None
            while True:
                page = await conversations.sessions(limit=3, cursor=cursor, **which)
                ids = [session.session_id for session in page]
                assert len(set(ids)) == len(ids)
                seen += ids
                if (cursor := page.cursor) is None:
                    break
                await conversations.delete("s05")
                await conversations.append("s05", [say("x")])
                await conversations.append(f"new{len(seen)}", [say("x")])
                await conversations.append("s07", [say("y")])
            untouched = [f"s{place:02}" for place in range(12) if place not in (5, 7)]
            assert sorted(one for one in seen if one in untouched) == untouched

    async def test_listing_of_a_user(self, database: Database) -> None:
        """`user_id` lists that user's sessions: nobody else's, and not those of nobody."""
        require(database, listing="exact")
        conversations = database.conversations
        owners = {"a": "u", "b": "U", "c": None, "d": "u ", "e": "u"}
        for session_id, owner in owners.items():
            await conversations.append(session_id, [say("x")], user_id=owner)
        mine = await conversations.sessions(user_id="u", prefix="")
        assert [session.session_id for session in mine] == ["a", "e"]
        assert list(await conversations.sessions(user_id="nobody")) == []
        assert len(await conversations.sessions()) == 5

    async def test_deleted_is_not_listed(self, database: Database) -> None:
        """A deleted session is in no listing, and in all of them once it begins anew."""
        require(database, listing="exact")
        conversations = database.conversations
        await conversations.append("s", [say("x")], user_id="u")
        await conversations.delete("s")
        for which in _LISTINGS:
            assert list(await conversations.sessions(**which)) == []
        await conversations.append("s", [say("x")], user_id="u")
        for which in _LISTINGS:
            assert [one.session_id for one in await conversations.sessions(**which)] == ["s"]


_LISTINGS: list[dict[str, Any]] = [{}, {"prefix": ""}, {"user_id": "u"}]


async def _pages(conversations: Conversations, *, limit: int, **which: str) -> list[Page[Session]]:
    pages = [await conversations.sessions(limit=limit, **which)]
    while pages[-1].cursor is not None:
        pages.append(await conversations.sessions(limit=limit, cursor=pages[-1].cursor, **which))
    return pages
