"""Hostile ids: each stands for itself alone, wherever an id can stand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from ..._ids import uuid7
from ...conversations import Conversations
from ...database import Database
from ...state import State
from ..corpus import IDS
from ..strategies import identifiers
from ._base import Suite, contract, examples, require, say, texts

__all__ = ["HostileTests"]

T = TypeVar("T")


class HostileTests(Suite):
    """Ids are any text of up to 512 bytes, compared byte for byte."""

    @contract
    async def test_session_ids(self, database: Database) -> None:
        """Sessions whose ids are alike to the eye, to a file system or to SQL are apart."""
        conversations = database.conversations
        await _all(conversations.append(one, [say(one)]) for one in IDS)
        read = await _all(conversations.read(one) for one in IDS)
        assert [texts(history) for history in read] == [[one] for one in IDS]
        shown = await _all(conversations.get(one) for one in IDS)
        assert [session and session.session_id for session in shown] == list(IDS)
        assert [session and session.message_count for session in shown] == [1] * len(IDS)

    async def test_session_ids_are_listed(self, database: Database) -> None:
        """A listing by prefix gives exactly the ids that begin with these bytes, in their order."""
        require(database, listing="exact")
        conversations = database.conversations
        await _all(conversations.append(one, [say("x")]) for one in IDS)
        for prefix in ("", *IDS):
            page = await conversations.sessions(prefix=prefix, limit=500)
            expected = sorted(one for one in IDS if one.startswith(prefix))
            assert [session.session_id for session in page] == expected, repr(prefix)

    async def test_session_ids_are_deleted(self, conversations: Conversations) -> None:
        """Deleting one session deletes none of its twins."""
        await _all(conversations.append(one, [say(one)]) for one in IDS)
        assert await _all(conversations.delete(one) for one in IDS[::2]) == [True] * len(IDS[::2])
        left = await _all(conversations.read(one) for one in IDS)
        assert [texts(one) for one in left[::2]] == [[]] * len(left[::2])
        assert [texts(one) for one in left[1::2]] == [[one] for one in IDS[1::2]]

    @contract
    async def test_message_ids(self, conversations: Conversations) -> None:
        """Messages whose ids are twins are different messages, each with its own repeat."""
        messages = [say(one, id=one) for one in IDS]
        first = await conversations.append("s", messages)
        assert all(first.created)
        again = await conversations.append("s", messages[::-1])
        assert again.seqs == first.seqs[::-1]
        stored = await conversations.read("s")
        assert [(message.id, message.text) for message in stored] == [(one, one) for one in IDS]
        for one in IDS[::10]:
            assert await conversations.replace("s", one, content="replaced") is True
        assert texts(await conversations.read("s")) == [
            "replaced" if place % 10 == 0 else one for place, one in enumerate(IDS)
        ]

    async def test_user_ids(self, database: Database) -> None:
        """Users whose ids are twins own different sessions, and see no others."""
        require(database, listing="exact")
        conversations = database.conversations
        await _all(
            conversations.append(f"s{place}", [say(one)], user_id=one)
            for place, one in enumerate(IDS)
        )
        pages = await _all(conversations.sessions(user_id=one) for one in IDS)
        assert [[session.session_id for session in page] for page in pages] == [
            [f"s{place}"] for place in range(len(IDS))
        ]

    async def test_keys_of_state(self, state: State) -> None:
        """Keys of state that are twins hold different values, listed in the order of bytes."""
        await _all(state.put(key, place) for place, key in enumerate(IDS))
        got = await _all(state.get(key) for key in IDS)
        assert [one and (one.key, one.value) for one in got] == [
            (key, place) for place, key in enumerate(IDS)
        ]
        assert [item.key for item in await state.items(limit=500)] == sorted(IDS)

    async def test_owners_of_state(self, database: Database) -> None:
        """The state of users and of sessions whose ids are twins is apart."""
        for state in (database.state.user, database.state.session):
            await _all(state(one).put("k", one) for one in IDS)
            got = await _all(state(one).get("k") for one in IDS)
            assert [one and one.value for one in got] == list(IDS)

    async def test_tenants(self, database: Database) -> None:
        """Tenants whose names are twins are different tenants."""
        views = [database.for_tenant(one).conversations for one in IDS]
        await _all(view.append("s", [say(one)]) for view, one in zip(views, IDS, strict=True))
        read = await _all(view.read("s") for view in views)
        assert [texts(history) for history in read] == [[one] for one in IDS]
        assert await database.conversations.get("s") is None

    async def test_joined_ids(self, database: Database) -> None:
        """No tenant and id are joined in a way in which another tenant and id could be."""
        cases = [
            (left, right)
            for joint in (*":/|.,;-_ #@%\\\n\x01\x1f\x7f", "::", '","', "']['", "%3A", "\u2028")
            for left, right in (("a", f"b{joint}c"), (f"a{joint}b", "c"), (f"a{joint}", "b"))
        ]
        await _all(
            database.for_tenant(tenant).conversations.append(one, [say(f"{tenant}+{one}")])
            for tenant, one in cases
        )
        await _all(
            database.for_tenant(tenant).state.session(one).put(f"{one}", f"{tenant}+{one}")
            for tenant, one in cases
        )
        for tenant, one in cases:
            view = database.for_tenant(tenant)
            assert texts(await view.conversations.read(one)) == [f"{tenant}+{one}"]
            value = await view.state.session(one).get(one)
            assert value is not None
            assert value.value == f"{tenant}+{one}"

    async def test_joined_owners_and_keys(self, database: Database) -> None:
        """Nor are an owner of state and a key, a user and a session, or a session and a message."""
        for joint in (*":/|.-_ \x1f", "::"):
            left, right = ("a", f"b{joint}c"), (f"a{joint}b", "c")
            for owner, key in (left, right):
                await database.state.user(owner).put(key, owner)
                await database.conversations.append(owner, [say(owner, id=key)])
            for owner, key in (left, right):
                value = await database.state.user(owner).get(key)
                assert value is not None
                assert value.value == owner
                stored = await database.conversations.read(owner)
                assert (owner, key) in [(message.text, message.id) for message in stored]

    @examples(30)
    @given(ids=st.lists(identifiers(), min_size=1, max_size=5, unique=True))
    async def test_generated_ids(self, database: Database, ids: list[str]) -> None:
        """Ids of any characters work as session, message, user, tenant, agent and key."""
        view = database.for_tenant(uuid7())
        for one in ids:
            await view.conversations.append(one, [say(one, id=one)], user_id=one, agent=one)
            await view.state.user(one).put(one, one)
        for one in ids:
            session = await view.conversations.get(one, user_id=one)
            assert session is not None
            assert (session.session_id, session.user_id, session.agent) == (one, one, one)
            stored = await view.conversations.read(one, user_id=one)
            assert [(message.id, message.text) for message in stored] == [(one, one)]
            assert [item.key for item in await view.state.user(one).items()] == [one]


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Make calls at once, a few dozen at a time."""
    made, results = list(calls), list[T]()
    for start in range(0, len(made), 32):
        results += await asyncio.gather(*made[start : start + 32])
    return results
