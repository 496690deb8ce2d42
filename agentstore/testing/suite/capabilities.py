"""Capabilities: what a driver declares absent is refused, and never ignored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from ...database import Database
from ...errors import UnsupportedError
from ...stores import API_VERSION, Driver
from ...types import Capabilities, Limits
from ._base import Suite, contract, driver_for, say, taken, texts

__all__ = ["CapabilityTests"]

_Calls = dict[str, Callable[[], Awaitable[object]]]


class CapabilityTests(Suite):
    """What `Capabilities` says, and what it says is not there."""

    @contract
    async def test_driver_is_one(self, database_url: str) -> None:
        """What the entry point names is a driver for this version of the protocols."""
        driver = driver_for(database_url)
        assert isinstance(driver, Driver)
        assert driver.api_version == API_VERSION

    async def test_capabilities_make_sense(self, database: Database) -> None:
        """Each capability has one of its values, and no limit is below 1."""
        declared = database.capabilities
        assert isinstance(declared, Capabilities)
        for name in (
            *("atomic_batch", "conflict_detection", "compare_and_set", "ttl", "search", "shared"),
            *("invalidation", "embedded"),
        ):
            assert isinstance(getattr(declared, name), bool), name
        assert declared.order in ("commit", "eventual")
        assert declared.listing in ("exact", "eventual")
        assert declared.durability in ("strong", "weak", "none")
        assert min(getattr(declared.limits, name) for name in Limits.__struct_fields__) >= 1

    @contract
    async def test_without_conflict_detection(self, database: Database) -> None:
        """A store that can't tell what it has refuses `expect_seq`."""
        _absent(database, "conflict_detection")
        append = partial(database.conversations.append, "s", [say("x")])
        assert await taken({"append": partial(append, expect_seq=0)}, UnsupportedError) == []
        assert await database.conversations.get("s") is None

    @contract
    async def test_without_compare_and_set(self, database: Database) -> None:
        """A store that can't compare refuses `expect`."""
        _absent(database, "compare_and_set")
        state = database.state.app()
        put = await state.put("k", 1)
        calls: _Calls = {
            "put where nothing is": partial(state.put, "new", 1, expect=0),
            "put": partial(state.put, "k", 2, expect=put.version),
            "delete": partial(state.delete, "k", expect=put.version),
        }
        assert await taken(calls, UnsupportedError) == []
        assert await state.get("k") == put
        assert await state.get("new") is None

    @contract
    async def test_without_ttl(self, database: Database) -> None:
        """A store in which nothing expires refuses `ttl`, and has nothing to purge."""
        _absent(database, "ttl")
        conversations, state = database.conversations, database.state.app()
        await conversations.append("old", [say("x")])
        calls: _Calls = {
            "append": partial(conversations.append, "s", [say("x")], ttl=60),
            "append to what is there": partial(conversations.append, "old", [say("y")], ttl=60),
            "update": partial(conversations.update, "old", ttl=60),
            "put": partial(state.put, "k", 1, ttl=60),
        }
        assert await taken(calls, UnsupportedError) == []
        assert texts(await conversations.read("old")) == ["x"]
        assert await conversations.get("s") is None
        assert await state.get("k") is None
        session = await conversations.update("old", ttl=None)
        assert session is not None
        assert session.expires_at is None
        assert await conversations.purge_expired() == 0

    @contract
    async def test_without_search(self, database: Database) -> None:
        """A store without an index of words refuses to search."""
        _absent(database, "search")
        await database.conversations.append("s", [say("x")])
        with pytest.raises(UnsupportedError):
            await database.conversations.search("x")


def _absent(database: Database, name: str) -> None:
    if getattr(database.capabilities, name):
        pytest.skip(f"declares {name}")
