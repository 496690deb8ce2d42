"""Two processes, each with sessions in memory, that change them behind each other's back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from agentstore import Database, Message

pytestmark = pytest.mark.asyncio


def said(*texts: str) -> list[Message]:
    return [Message(role="user", content=text, id=f"id of {text}") for text in texts]


async def seen(database: Database, session_id: str = "s") -> list[tuple[int | None, str]]:
    return [(m.seq, m.text) for m in await database.conversations.read(session_id)]


Change = Callable[[Database], Awaitable[object]]

CHANGES: dict[str, tuple[Change, list[tuple[int, str]]]] = {
    "append": (
        lambda other: other.conversations.append("s", said("d")),
        [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "e")],
    ),
    # The file has the same size then.
    "replace": (
        lambda other: other.conversations.replace("s", "id of b", content="B"),
        [(1, "a"), (2, "B"), (3, "c"), (4, "e")],
    ),
    "rewind": (
        lambda other: other.conversations.rewind("s", to=1),
        [(1, "a"), (4, "e")],
    ),
    "delete": (
        lambda other: other.conversations.delete("s"),
        [(4, "e")],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_change_by_another(database: Database, other: Database, name: str) -> None:
    """Whatever another process does to a session, this one sees it, and goes on from there."""
    change, expected = CHANGES[name]
    await database.conversations.append("s", said("a", "b", "c"))
    assert await seen(database) == await seen(other)
    await change(other)
    await database.conversations.append("s", said("e"))
    assert await seen(database) == await seen(other) == expected
    session = await other.conversations.get("s")
    assert session is not None
    assert session.message_count == len(expected)
