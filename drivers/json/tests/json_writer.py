"""A process that writes, and says what was acknowledged: `json_writer.py TASK URL NAME [COUNT]`."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable

from agentstore import Database, Message, connect


def pair(name: str, number: int) -> list[Message]:
    return [
        Message(role=role, content=f"{name} {number}", id=f"{name}/{number}/{role}")
        for role in ("user", "assistant")
    ]


def acknowledge(what: str) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


async def endless(database: Database, name: str, _: int) -> None:
    """Write everything that can be written, until killed."""
    for number in itertools.count():
        await database.conversations.append("shared", pair(name, number))
        acknowledge(f"shared {name} {number}")
        await database.conversations.append(f"{name}/{number}", pair(name, number))
        acknowledge(f"own {name} {number}")
        await database.state.app().put(name, number)
        acknowledge(f"state {name} {number}")
        first = f"{name}/{number}/user"
        await database.conversations.replace(f"{name}/{number}", first, content="redacted")
        acknowledge(f"redacted {name} {number}")


async def one_session(database: Database, name: str, count: int) -> None:
    """Append to one session, one message at a time."""
    for number in range(count):
        await database.conversations.append("shared", pair(name, number)[:1])


async def spread(database: Database, name: str, count: int) -> None:
    """Append to ten sessions, some of them at the same time."""

    async def append(number: int) -> None:
        await database.conversations.append(f"session {number % 10}", pair(name, number)[:1])

    for number in range(0, count, 5):
        await asyncio.gather(*map(append, range(number, min(count, number + 5))))


TASKS: dict[str, Callable[[Database, str, int], Awaitable[None]]] = {
    task.__name__: task for task in (endless, one_session, spread)
}


async def main(task: str, url: str, name: str, count: str = "0") -> None:
    async with connect(url) as database:
        await TASKS[task](database, name, int(count))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
