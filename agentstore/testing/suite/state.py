"""State: values with versions, of which one writer at a time goes on."""

from __future__ import annotations

from typing import Any

import pytest

from ...database import Database
from ...errors import ConflictError
from ...state import State
from ...types import Page, Versioned
from ._base import Suite, contract, require

__all__ = ["StateTests"]


class StateTests(Suite):
    """Rule 6, and the rest of `StateStore`."""

    async def test_absent_value_is_none(self, state: State) -> None:
        """A key that nobody wrote is `None`, and nothing to delete."""
        assert await state.get("k") is None
        assert await state.delete("k") is False
        assert list(await state.items()) == []

    @contract
    async def test_put_then_get(self, state: State) -> None:
        """What is put is got, with the version that `put` told."""
        put = await state.put("k", {"a": [1, None]})
        assert (put.key, put.value) == ("k", {"a": [1, None]})
        assert put.version > 0
        assert await state.get("k") == put

    async def test_put_replaces(self, state: State) -> None:
        """A later `put` takes the place of the value, under another version."""
        first = await state.put("k", 1)
        second = await state.put("k", 2)
        assert await state.get("k") == second
        assert second.version != first.version
        assert len(await state.items()) == 1

    async def test_null_is_a_value(self, state: State) -> None:
        """`None` is kept, and is not the same as nothing."""
        put = await state.put("k", None)
        assert await state.get("k") == Versioned(key="k", value=None, version=put.version)

    async def test_delete(self, state: State) -> None:
        """A deleted value is gone, and is deleted once."""
        await state.put("k", 1)
        assert await state.delete("k") is True
        assert await state.get("k") is None
        assert list(await state.items()) == []
        assert await state.delete("k") is False

    async def test_put_expecting_a_version(self, database: Database) -> None:
        """`put(expect=)` writes where that version is stored, and nothing anywhere else."""
        require(database, compare_and_set=True)
        state = database.state.app()
        first = await state.put("k", 1)
        second = await state.put("k", 2, expect=first.version)
        for wrong in (first.version, 0, second.version + 1):
            with pytest.raises(ConflictError):
                await state.put("k", 3, expect=wrong)
        assert await state.get("k") == second

    async def test_put_expecting_nothing(self, database: Database) -> None:
        """`put(expect=0)` writes where nothing is stored, as after a deletion."""
        require(database, compare_and_set=True)
        state = database.state.app()
        with pytest.raises(ConflictError):
            await state.put("k", 1, expect=1)
        assert await state.get("k") is None
        await state.put("k", 1, expect=0)
        with pytest.raises(ConflictError):
            await state.put("k", 2, expect=0)
        await state.delete("k")
        assert (await state.put("k", 3, expect=0)).value == 3

    async def test_delete_expecting_a_version(self, database: Database) -> None:
        """`delete(expect=)` deletes that version and no other."""
        require(database, compare_and_set=True)
        state = database.state.app()
        with pytest.raises(ConflictError):
            await state.delete("k", expect=1)
        put = await state.put("k", 1)
        with pytest.raises(ConflictError):
            await state.delete("k", expect=put.version + 1)
        assert await state.get("k") == put
        assert await state.delete("k", expect=put.version) is True
        assert await state.get("k") is None

    async def test_versions_never_repeat(self, state: State) -> None:
        """A key never has a version twice, though it is deleted in between."""
        versions: list[int] = []
        for turn in range(8):
            versions.append((await state.put("k", 1)).version)
            if turn % 3 == 2:
                await state.delete("k")
        assert len(set(versions)) == 8

    async def test_deleted_version_stays_gone(self, database: Database) -> None:
        """A version from before a deletion is not that of the value which came after."""
        require(database, compare_and_set=True)
        state = database.state.app()
        old = await state.put("k", 1)
        await state.delete("k")
        new = await state.put("k", 1)
        with pytest.raises(ConflictError):
            await state.put("k", 2, expect=old.version)
        with pytest.raises(ConflictError):
            await state.delete("k", expect=old.version)
        assert await state.get("k") == new

    @contract
    async def test_items_come_by_key(self, state: State) -> None:
        """`items` lists every value in the order of the keys, as `get` gives it."""
        keys = ["b", "a", "é", "B", "a/1", "a0", "z", "Ω", "😀"]
        for place, key in enumerate(keys):
            await state.put(key, place)
        items = list(await state.items())
        assert [item.key for item in items] == sorted(keys)
        assert items == [await state.get(key) for key in sorted(keys)]

    async def test_items_by_prefix(self, state: State) -> None:
        """`prefix` is text and no pattern, and "" is the beginning of every key."""
        keys = ["a", "a%", "a_", "ab", "A", "b", "*", "a*", "%", "aé"]
        for key in keys:
            await state.put(key, None)
        for prefix in ("", "a", "a%", "a_", "a*", "%", "_", "*", "é", "a\\"):
            found = [item.key for item in await state.items(prefix=prefix)]
            assert found == sorted(key for key in keys if key.startswith(prefix)), prefix

    async def test_pages_of_items_join(self, state: State) -> None:
        """Pages of any size are all values, once; the last one has no cursor."""
        for place in range(6):
            await state.put(f"k{place}", place)
        await state.put("other", None)
        for size in (1, 2, 3, 6, 7):
            pages = await _pages(state, prefix="k", limit=size)
            assert [item.value for page in pages for item in page] == list(range(6))
            assert len(pages) == -(-6 // size)
            assert all(len(page) == size for page in pages[:-1])

    async def test_page_goes_on_behind_a_deleted_key(self, state: State) -> None:
        """A page begins behind the last key of the page before, though that is gone."""
        for place in range(4):
            await state.put(f"k{place}", place)
        page = await state.items(limit=2)
        await state.delete("k1")
        rest = await state.items(limit=2, cursor=page.cursor)
        assert [item.key for item in rest] == ["k2", "k3"]

    @contract
    async def test_scopes_are_apart(self, database: Database) -> None:
        """The state of the application, of a user and of a session share no key."""
        await database.conversations.append("x", [_message()], user_id="x")
        scopes = [
            database.state.app(),
            database.state.user("x"),
            database.state.session("x"),
            database.state.user("y"),
            database.state.session("y"),
        ]
        for place, scope in enumerate(scopes):
            await scope.put("k", place)
        for place, scope in enumerate(scopes):
            assert [item.value for item in await scope.items()] == [place]
        assert await scopes[1].delete("k") is True
        assert [scope for scope in scopes if await scope.get("k") is None] == [scopes[1]]

    async def test_state_outlives_the_conversation(self, database: Database) -> None:
        """State of a session needs no conversation; only `delete_session` takes both."""
        state = database.state.session("s")
        await state.put("k", 1)
        await database.conversations.append("s", [_message()])
        assert await database.conversations.delete("s") is True
        assert (await _value(state, "k")) == 1
        await database.conversations.append("s", [_message()])
        assert await database.delete_session("s") is True
        assert await state.get("k") is None
        assert await database.conversations.get("s") is None
        assert await database.delete_session("s") is False

    async def test_values_are_copies(self, state: State) -> None:
        """What the caller does with a value afterwards doesn't reach the store."""
        value: dict[str, Any] = {"list": [1]}
        await state.put("k", value)
        value["list"].append(2)
        got = await state.get("k")
        assert got is not None
        assert got.value == {"list": [1]}
        got.value["list"].append(3)
        assert (await _value(state, "k")) == {"list": [1]}


def _message() -> dict[str, str]:
    return {"role": "user", "content": "x"}


async def _value(state: State, key: str) -> object:
    stored = await state.get(key)
    assert stored is not None
    return stored.value


async def _pages(state: State, *, prefix: str, limit: int) -> list[Page[Versioned]]:
    pages = [await state.items(prefix=prefix, limit=limit)]
    while pages[-1].cursor is not None:
        pages.append(await state.items(prefix=prefix, limit=limit, cursor=pages[-1].cursor))
    return pages
