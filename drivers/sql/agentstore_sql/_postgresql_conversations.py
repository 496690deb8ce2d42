"""Conversations on PostgreSQL: an append and a read are one statement each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentstore.types import AppendResult, Message

from ._appends import Append, Appends
from ._conversations import SQLConversations
from ._postgresql_engine import PostgreSQLEngine
from ._statement import Statement


class PostgreSQLConversations(SQLConversations):
    """The conversations of one tenant."""

    def __init__(self, engine: PostgreSQLEngine, tenant: str, appends: Appends) -> None:
        super().__init__(engine, tenant)
        self._fetch = engine.fetch
        self._appends = appends

    async def append(
        self,
        session_id: str,
        messages: Sequence[Message],
        *,
        user_id: str | None = None,
        agent: str | None = None,
        ttl: float | None = None,
        expect_seq: int | None = None,
    ) -> AppendResult:
        """Store messages at the end of a session, with others that wait to be stored there."""
        append = Append(messages, user_id, agent, ttl, expect_seq)
        return await self._appends.put(self._tenant, session_id, append)

    async def _rows(self, statement: Statement, **parameters: Any) -> Sequence[Any]:
        return await self._fetch(*statement.call(tenant=self._tenant, **parameters), "read")
