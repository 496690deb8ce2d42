"""Limits: at each of them, and one to either side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ...database import Database, connect
from ...errors import ConfigurationError, DataError
from ...types import Limits, Message
from ._base import Suite, contract, require, say

__all__ = ["LimitTests"]

# What JSON adds to the content of a message that has nothing else.
_AROUND = len('{"role":"user","content":""}')


def _limit(database: Database, name: str) -> int:
    """Give the limit in force: the usual one, or what the engine takes where that is less."""
    usual: int = getattr(Limits(), name)
    most: int = getattr(database.capabilities.limits, name)
    return min(usual, most)


class LimitTests(Suite):
    """The limits of rule 9: the largest value is kept whole, and one more is refused."""

    @contract
    async def test_size_of_a_message(self, database: Database) -> None:
        """A message may have so many bytes of JSON, whatever its letters."""
        conversations = database.conversations
        for letter, full in _full(_limit(database, "message") - _AROUND).items():
            await conversations.append(letter, [say(full[1:])])
            await conversations.append(letter, [say(full)])
            with pytest.raises(DataError, match=r"messages\[0\]"):
                await conversations.append(letter, [say(full + "a")])
            stored = [message.text for message in await conversations.read(letter)]
            assert stored == [full[1:], full]

    async def test_size_of_a_replaced_message(self, database: Database) -> None:
        """What takes the place of a content has the same limit."""
        conversations = database.conversations
        message = say("x")
        await conversations.append("s", [message])
        full = "a" * (_limit(database, "message") - _AROUND)
        assert await conversations.replace("s", message.id, content=full) is True
        assert (await conversations.read("s"))[0].text == full
        with pytest.raises(DataError, match="content"):
            await conversations.replace("s", message.id, content=full + "a" * _AROUND)
        assert (await conversations.read("s"))[0].text == full

    async def test_size_of_a_value(self, database: Database) -> None:
        """A value of state may have so many bytes of JSON."""
        state = database.state.app()
        for letter, full in _full(_limit(database, "state") - len('""')).items():
            await state.put(letter, full[1:])
            put = await state.put(letter, full)
            with pytest.raises(DataError, match="value"):
                await state.put(letter, full + "a")
            assert await state.get(letter) == put

    async def test_size_of_metadata(self, database: Database) -> None:
        """The metadata of a session and of a message have one limit."""
        conversations = database.conversations
        full = "a" * (_limit(database, "metadata") - len('{"k":""}'))
        await conversations.append("s", [say("x", metadata={"k": full})])
        session = await conversations.update("s", metadata={"k": full})
        assert session is not None
        assert session.metadata == {"k": full} == (await conversations.read("s"))[0].metadata
        with pytest.raises(DataError, match="metadata"):
            await conversations.append("s", [say("x", metadata={"k": full + "a"})])
        with pytest.raises(DataError, match="metadata"):
            await conversations.update("s", metadata={"k": full + "a"})
        assert await conversations.get("s") == session

    @contract
    async def test_depth(self, database: Database) -> None:
        """JSON may be nested so deeply, in every field that holds some, and not deeper."""
        conversations, state = database.conversations, database.state.app()
        depth = _limit(database, "depth")
        await conversations.append("s", [say("x")])

        def message(deep: Any) -> list[Message]:  # noqa: ANN401 - JSON
            return [
                Message(role="user", content=[deep]),
                Message(role="assistant", tool_calls=[deep]),
                say("x", metadata={"k": deep}),
                say("x", extra={"k": deep}),
            ]

        deepest = message(_nested(depth - 1))
        await conversations.append("s", deepest)
        assert [one.to_openai() for one in (await conversations.read("s"))[1:]] == [
            one.to_openai() for one in deepest
        ]
        session = await conversations.update("s", metadata={"k": _nested(depth - 1)})
        assert session is not None
        assert session.metadata == {"k": _nested(depth - 1)}
        put = await state.put("k", _nested(depth))
        assert await state.get("k") == put

        calls: list[Callable[[], Awaitable[object]]] = [
            *(_appending(database, one) for one in message(_nested(depth))),
            lambda: conversations.update("s", metadata={"k": _nested(depth)}),
            lambda: conversations.replace("s", deepest[0].id, content=[_nested(depth)]),
            lambda: state.put("k", _nested(depth + 1)),
            lambda: state.put("k", _nested(100_000)),
        ]
        for call in calls:
            with pytest.raises(DataError, match="nested too deeply"):
                await call()
        assert len(await conversations.read("s")) == 5
        assert await conversations.get("s") == session
        assert await state.get("k") == put

    @contract
    async def test_size_of_a_batch(self, database: Database) -> None:
        """A batch may have so many messages: they are stored in order, or it is refused."""
        conversations = database.conversations
        most = _limit(database, "batch")
        batch = [say(str(place)) for place in range(most)]
        with pytest.raises(DataError, match="batch"):
            await conversations.append("s", [*batch, say("one more")])
        assert await conversations.get("s") is None
        result = await conversations.append("s", batch)
        assert len(set(result.seqs)) == most
        stored = await conversations.read("s")
        assert [message.text for message in stored] == [str(place) for place in range(most)]
        session = await conversations.get("s")
        assert session is not None
        assert session.message_count == most
        window = await conversations.read("s", last=3)
        assert [message.text for message in window] == [str(most - 3 + i) for i in range(3)]

    async def test_size_of_a_page(self, database: Database) -> None:
        """A page may be so large, and no larger."""
        require(database, listing="exact")
        most = _limit(database, "page")
        await database.conversations.append("s", [say("x")])
        await database.state.app().put("k", 1)
        assert len(await database.conversations.sessions(limit=most)) == 1
        assert len(await database.conversations.sessions(limit=most, prefix="")) == 1
        assert len(await database.state.app().items(limit=most)) == 1
        with pytest.raises(DataError, match="limit"):
            await database.conversations.sessions(limit=most + 1)
        with pytest.raises(DataError, match="limit"):
            await database.state.app().items(limit=most + 1)

    async def test_size_of_a_title(self, database: Database) -> None:
        """A title may have 1024 bytes."""
        await database.conversations.append("s", [say("x")])
        for title in ("a" * 1024, "😀" * 256):
            session = await database.conversations.update("s", title=title)
            assert session is not None
            assert session.title == title
        with pytest.raises(DataError, match="title"):
            await database.conversations.update("s", title="a" * 1025)

    async def test_limits_can_be_lowered(self, database_url: str) -> None:
        """Limits that are given take the place of the usual ones."""
        lower = Limits(message=100, state=50, metadata=30, depth=3, batch=2, page=4)
        async with connect(database_url, limits=lower) as database:
            conversations, state = database.conversations, database.state.app()
            fits = "a" * (100 - _AROUND)
            await conversations.append("s", [say(fits), say("b")])
            await state.put("k", [[[1]]])
            await conversations.sessions(limit=4)
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: conversations.append("s", [say(fits + "a")]),
                lambda: conversations.append("s", [say("a") for _ in range(3)]),
                lambda: conversations.append("s", [say("a", metadata={"k": "a" * 30})]),
                lambda: state.put("k", "a" * 49),
                lambda: state.put("k", [[[[1]]]]),
                lambda: conversations.sessions(limit=5),
            ]
            for call in calls:
                with pytest.raises(DataError):
                    await call()
            assert [message.text for message in await conversations.read("s")] == [fits, "b"]

    async def test_limits_can_be_raised(self, database_url: str, database: Database) -> None:
        """Limits can be raised up to what the engine takes, and no further."""
        most = database.capabilities.limits
        for name in Limits.__struct_fields__:
            too_much = Limits(**{name: getattr(most, name) + 1})
            with pytest.raises(ConfigurationError, match=name):
                async with connect(database_url, limits=too_much):
                    pass


def _full(room: int) -> dict[str, str]:
    """Fill so many bytes of JSON with text: of 1 and of 4 bytes a letter, and escaped."""
    sizes = {"a": 1, "😀": 4, "NUL": 6}
    return {
        name: ("\0" if name == "NUL" else name) * (room // size) + "a" * (room % size)
        for name, size in sizes.items()
    }


def _nested(depth: int) -> Any:  # noqa: ANN401 - JSON
    value: Any = "end"
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


def _appending(database: Database, message: Message) -> Callable[[], Awaitable[object]]:
    return lambda: database.conversations.append("s", [message])
