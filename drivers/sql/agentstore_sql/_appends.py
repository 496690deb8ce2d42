"""Appends of a process, of which those to one session go together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice

import msgspec

from agentstore.driver import Row
from agentstore.errors import AgentStoreError
from agentstore.types import AppendResult, Message

from ._coalescer import Coalescer
from ._conversations import SQLConversations
from ._engine import Engine

_MOST_MESSAGES = 1_000
# A gigabyte is the most that any server takes; a batch of the largest messages is more than that.
_MOST_BYTES = 64 * 1024 * 1024


class Append(msgspec.Struct, frozen=True):
    """What one caller appends; those on the same terms may share a statement."""

    messages: Sequence[Message]
    user_id: str | None
    agent: str | None
    ttl: float | None
    expect_seq: int | None


def together(appends: Sequence[Append]) -> int:
    """Say how many appends may be one statement, from the first on."""
    first, ids = appends[0], set[str]()
    for place, append in enumerate(appends):
        new = {message.id for message in append.messages}
        if place and not (
            (append.user_id, append.agent, append.ttl) == (first.user_id, first.agent, first.ttl)
            and append.expect_seq is None
            and first.expect_seq is None
            and ids.isdisjoint(new)
            and len(ids) + len(new) <= _MOST_MESSAGES
        ):
            return place
        ids |= new
    return len(appends)


class Appends(ABC):
    """The appends of a process: for each session one statement at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._coalescer = Coalescer[tuple[str, str], Append, AppendResult](
            self._send, together=together
        )

    async def put(self, tenant: str, session_id: str, append: Append) -> AppendResult:
        """Append, in one statement with others to this session that wait."""
        return await self._coalescer.put((tenant, session_id), append)

    async def close(self) -> None:
        """Send what waits."""
        await self._coalescer.close()

    async def _send(
        self, key: tuple[str, str], appends: Sequence[Append]
    ) -> list[AppendResult | BaseException]:
        rows = [Row.of(message, 0) for append in appends for message in append.messages]
        seqs: list[int] = []
        if sum(len(row.body) for row in rows) <= _MOST_BYTES:
            seqs = await self._insert(key, appends[0], rows)
        if not seqs:
            return [await self._decide(key, append) for append in appends]
        given = iter(seqs)
        return [
            AppendResult(
                seqs=tuple(islice(given, len(append.messages))),
                created=(True,) * len(append.messages),
            )
            for append in appends
        ]

    @abstractmethod
    async def _insert(self, key: tuple[str, str], terms: Append, rows: Sequence[Row]) -> list[int]:
        """Store rows, or none where that is not plain; gives their `seq`."""

    async def _decide(self, key: tuple[str, str], append: Append) -> AppendResult | BaseException:
        """Append one by one where there is something to decide."""
        tenant, session_id = key
        try:
            return await SQLConversations(self._engine, tenant).append(
                session_id,
                append.messages,
                user_id=append.user_id,
                agent=append.agent,
                ttl=append.ttl,
                expect_seq=append.expect_seq,
            )
        except AgentStoreError as error:
            return error  # its neighbours go on
