"""An append as one statement."""

from __future__ import annotations

from collections.abc import Sequence

from agentstore.driver import Row
from agentstore.errors import ConflictError

from ._appends import Append, Appends
from ._postgresql_engine import PostgreSQLEngine


class PostgreSQLAppends(Appends):
    """The appends of a process: for each session one statement at a time."""

    def __init__(self, engine: PostgreSQLEngine) -> None:
        super().__init__(engine)
        self._server = engine

    async def _insert(self, key: tuple[str, str], terms: Append, rows: Sequence[Row]) -> list[int]:
        """Store rows, or none where that is not plain; gives their `seq`."""
        arguments = (
            *key,
            terms.user_id,
            terms.agent,
            None if terms.ttl is None else round(terms.ttl * 1_000_000),
            terms.expect_seq,
            len(rows),
            [row.id for row in rows],
            [row.digest for row in rows],
            [row.body for row in rows],
            [row.tokens for row in rows],
            [row.created for row in rows],
        )
        try:
            stored = await self._server.fetch(self._server.single.append, arguments, "write")
        except ConflictError:
            return []  # an id that is there already: a repeat, or another body
        return sorted(seq for (seq,) in stored)
