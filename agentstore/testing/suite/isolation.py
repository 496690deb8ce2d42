"""Isolation: tenants share nothing, and users see their own."""

from __future__ import annotations

from typing import Any

import pytest

from ...conversations import Conversations
from ...database import Database
from ...errors import ConflictError
from ._base import Suite, contract, require, say, texts

__all__ = ["IsolationTests"]


class IsolationTests(Suite):
    """Rule 10, and what `user_id` promises."""

    @contract
    async def test_tenants_share_nothing(self, database: Database) -> None:
        """What is written for one tenant is absent for every other, under the same ids."""
        mine, theirs = database.for_tenant("mine"), database.for_tenant("theirs")
        message = say("mine")
        await mine.conversations.append("s", [message], user_id="u")
        await mine.state.user("u").put("k", 1)
        for other in (theirs, database):
            assert await other.conversations.get("s") is None
            assert list(await other.conversations.read("s")) == []
            assert list(await other.conversations.sessions()) == []
            assert list(await other.conversations.sessions(prefix="")) == []
            assert list(await other.conversations.sessions(user_id="u")) == []
            assert await other.state.user("u").get("k") is None
            assert list(await other.state.user("u").items()) == []
        session = await mine.conversations.get("s")
        assert session is not None
        assert session.tenant == "mine"

    @contract
    async def test_tenants_change_nothing(self, database: Database) -> None:
        """Nothing that is done for one tenant reaches the session of another one."""
        mine, theirs = (database.for_tenant(one).conversations for one in ("mine", "theirs"))
        message = say("mine")
        await mine.append("s", [message, say("second")], user_id="u")
        await database.for_tenant("mine").state.user("u").put("k", 1)
        assert await theirs.update("s", title="T") is None
        assert await theirs.replace("s", message.id, content="theirs") is False
        assert await theirs.rewind("s", to=0) == 0
        assert await theirs.delete("s") is False
        assert await database.for_tenant("theirs").state.user("u").delete("k") is False
        with pytest.raises(ConflictError):
            await theirs.fork("s", "t")
        assert (await theirs.append("s", [message], user_id="v")).created == (True,)
        assert await theirs.delete("s") is True
        receipt = await database.for_tenant("theirs").erase_user("u")
        assert (receipt.sessions, receipt.messages, receipt.state) == (0, 0, 0)
        assert texts(await mine.read("s")) == ["mine", "second"]
        assert await database.for_tenant("mine").state.user("u").get("k") is not None
        session = await mine.get("s")
        assert session is not None
        assert (session.title, session.user_id, session.message_count) == (None, "u", 2)

    @contract
    async def test_session_of_another_user(self, conversations: Conversations) -> None:
        """With `user_id`, a session of another user is as if it did not exist."""
        await conversations.append("s", [say("x")], user_id="u")
        for who in ("v", "U", "u ", "u\u200b"):
            assert await conversations.get("s", user_id=who) is None
            assert list(await conversations.read("s", user_id=who)) == []
            assert list(await conversations.read("s", user_id=who, last=1)) == []
            assert list(await conversations.read("s", user_id=who, max_tokens=9)) == []
            assert list(await conversations.sessions(user_id=who)) == []
        assert await conversations.get("s", user_id="u") == await conversations.get("s")
        assert texts(await conversations.read("s", user_id="u")) == ["x"]

    async def test_append_to_the_session_of_another_user(
        self, conversations: Conversations
    ) -> None:
        """An append to another user's session is a conflict, a repeat too; nothing is written."""
        message = say("x")
        await conversations.append("s", [message], user_id="u")
        for batch in ([say("y")], [message]):
            with pytest.raises(ConflictError):
                await conversations.append("s", batch, user_id="v")
        await conversations.append("s", [say("mine")], user_id="u")
        assert texts(await conversations.read("s")) == ["x", "mine"]

    async def test_session_of_nobody(self, conversations: Conversations) -> None:
        """A session without an owner is nobody's: no user sees it, or can append to it."""
        await conversations.append("s", [say("x")])
        assert await conversations.get("s", user_id="u") is None
        assert list(await conversations.read("s", user_id="u")) == []
        assert list(await conversations.sessions(user_id="u")) == []
        with pytest.raises(ConflictError):
            await conversations.append("s", [say("y")], user_id="u")
        session = await conversations.get("s")
        assert session is not None
        assert (session.user_id, session.message_count) == (None, 1)

    async def test_erase_user(self, database: Database) -> None:
        """`erase_user` deletes all of a user, counts it, and touches nobody else's."""
        require(database, listing="exact")
        sizes: dict[str, tuple[str | None, int]] = {
            "a": ("u", 3),
            "b": ("u", 1),
            "c": ("v", 2),
            "d": (None, 1),
        }
        for session_id, (owner, size) in sizes.items():
            batch = [say("x") for _ in range(size)]
            await database.conversations.append(session_id, batch, user_id=owner)
            await database.state.session(session_id).put("k", 1)
        for user in ("u", "v"):
            await database.state.user(user).put("k1", 1)
            await database.state.user(user).put("k2", 2)
        await database.state.app().put("k", 1)

        receipt = await database.erase_user("u")
        assert (receipt.user_id, receipt.sessions, receipt.messages) == ("u", 2, 4)
        assert receipt.state == 4
        left = await database.conversations.sessions(prefix="")
        assert [session.session_id for session in left] == ["c", "d"]
        assert list(await database.state.user("u").items()) == []
        assert await database.state.session("a").get("k") is None
        assert len(await database.state.user("v").items()) == 2
        assert await database.state.session("c").get("k") is not None
        assert await database.state.app().get("k") is not None
        again = await database.erase_user("u")
        assert (again.sessions, again.messages, again.state) == (0, 0, 0)

    async def test_search_finds_words(self, database: Database) -> None:
        """A search finds messages by their words, in this tenant alone, until they are gone."""
        require(database, search=True)
        conversations = database.conversations
        await conversations.append("a", [say("the quick brown fox"), say("a dog")], user_id="u")
        await conversations.append("b", [say("quick, quick!")], user_id="v")
        other = database.for_tenant("other").conversations
        await other.append("c", [say("quick")])

        async def found(**which: Any) -> set[str]:
            return {hit.session_id for hit in await conversations.search("quick", **which)}

        hits = await conversations.search("quick")
        assert {hit.message.text for hit in hits} == {"the quick brown fox", "quick, quick!"}
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert await found(user_id="u") == {"a"}
        assert await found(session_id="b") == {"b"}
        assert len(await conversations.search("quick", limit=1)) == 1
        assert await conversations.search("absent") == []
        await conversations.replace("b", hits[-1].message.id, content="x")
        await conversations.delete("a")
        assert "a" not in await found()
