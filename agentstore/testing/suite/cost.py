"""Cost: a long history makes nothing dearer that doesn't read it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from ...conversations import Conversations
from ...types import Limits
from ._base import Suite, say

__all__ = ["CostTests"]

_LONG = 5_000
_ROUNDS = 15


class CostTests(Suite):
    """Rule 5, coarsely: what grows with the session is found, what is merely slow is not."""

    async def test_length_of_a_session_costs_nothing(self, conversations: Conversations) -> None:
        """Appending, reading a window and `get` take a long session no longer than a short one."""
        batch = Limits().batch
        for _ in range(_LONG // batch):
            await conversations.append("long", [say("x" * 100) for _ in range(batch)])
        await conversations.append("short", [say("x" * 100) for _ in range(40)])

        async def append(session_id: str) -> None:
            await conversations.append(session_id, [say("x" * 100)])

        async def page(session_id: str) -> None:
            await conversations.read(session_id, first=20, after=20)

        async def window(session_id: str) -> None:
            await conversations.read(session_id, last=20)

        for call in (append, page, window, conversations.get):
            short, long = await _best(call, "short"), await _best(call, "long")
            assert long < 4 * short + 0.002, f"{call.__name__}: {short:.6f} s and {long:.6f} s"


async def _best(call: Callable[[str], Awaitable[object]], session_id: str) -> float:
    """Time a call, undisturbed: the shortest of several."""
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        await call(session_id)
        times.append(time.perf_counter() - began)
    return min(times)
