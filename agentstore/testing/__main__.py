"""Print what a store can do: `python -m agentstore.testing URL`.

It writes to a tenant of its own, under a name that nobody has, and clears it up.
The exit code is 0 where everything came back as it was written.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable
from typing import TypeVar

from .._ids import uuid7
from ..database import Database, connect
from ..errors import AgentStoreError
from ..types import Capabilities, Limits, Message
from ..url import URL

T = TypeVar("T")

_CALLS = 20


class _Timed:
    """Times calls under their names."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    async def __call__(self, name: str, call: Awaitable[T]) -> T:
        began = time.perf_counter()
        result = await call
        self.times.setdefault(name, []).append(time.perf_counter() - began)
        return result


def main() -> int:
    """Report on the store that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m agentstore.testing", description=__doc__)
    parser.add_argument("url", metavar="URL", help="such as sqlite:///agents.db")
    try:
        return asyncio.run(_report(parser.parse_args().url))
    except AgentStoreError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


async def _report(database_url: str) -> int:
    timed = _Timed()
    async with connect(database_url, tenant=f"agentstore-testing-{uuid7()}") as database:
        print(URL.parse(database_url))  # without its secrets
        _print_capabilities(database.capabilities)
        try:
            wrong = await _round_trip(database, timed)
        finally:
            await database.delete_session("scratch")
    print(f"\n{'call':<20} {'median ms':>12}")
    for name, times in timed.times.items():
        print(f"{name:<20} {sorted(times)[len(times) // 2] * 1000:>12.3f}")
    print(f"\n{'; '.join(wrong) or 'ok'}")
    return 1 if wrong else 0


def _print_capabilities(capabilities: Capabilities) -> None:
    print(f"\n{'capability':<20} {'declared':>12}")
    for name in capabilities.__struct_fields__:
        declared = getattr(capabilities, name)
        if isinstance(declared, bool):
            declared = "yes" if declared else "no"
        if name != "limits":
            print(f"{name:<20} {declared:>12}")
    print(f"\n{'limit':<20} {'at most':>12} {'by default':>12}")
    for name in Limits.__struct_fields__:
        most, usual = getattr(capabilities.limits, name), getattr(Limits(), name)
        print(f"{name:<20} {most:>12} {min(most, usual):>12}")


async def _round_trip(database: Database, timed: _Timed) -> list[str]:
    """Write, read and delete a session and its state; list what was not as it should be."""
    conversations, state = database.conversations, database.state.session("scratch")
    wrong: set[str] = set()
    sent: list[Message] = []
    for turn in range(_CALLS):
        batch = [
            Message(role="user", content=f"question {turn} \0 é 😀"),
            Message(role="assistant", content=f"answer {turn}", metadata={"cost": 1.0}),
        ]
        sent += batch
        await timed("append 2", conversations.append("scratch", batch))
        await timed("state.put", state.put("k", {"turn": turn}))
        stored = await timed("read", conversations.read("scratch"))
        if list(map(_shown, stored)) != list(map(_shown, sent)):
            wrong.add("messages came back other than they were written")
        window = await timed("read last 2", conversations.read("scratch", last=2))
        if list(map(_shown, window)) != list(map(_shown, batch)):
            wrong.add("the last messages are not those that were written last")
        session = await timed("get", conversations.get("scratch"))
        if session is None or session.message_count != len(sent):
            wrong.add("the count of messages is wrong")
        value = await timed("state.get", state.get("k"))
        if value is None or value.value != {"turn": turn}:
            wrong.add("state came back other than it was written")
        again = await timed("append again", conversations.append("scratch", batch))
        if any(again.created):
            wrong.add("a message that was sent again was stored twice")
    if not await timed("delete", conversations.delete("scratch")):
        wrong.add("the session was not there to delete")
    if await conversations.get("scratch") or await conversations.read("scratch"):
        wrong.add("the deleted session is still there")
    return sorted(wrong)


def _shown(message: Message) -> tuple[object, ...]:
    return message.id, message.to_openai(), message.metadata, message.created_at


if __name__ == "__main__":
    sys.exit(main())
