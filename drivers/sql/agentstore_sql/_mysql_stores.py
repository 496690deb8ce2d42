"""The stores on MySQL: the hot calls are one round trip, the others the generic jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentstore.types import AppendResult, Message, Scope

from ._conversations import SQLConversations
from ._mysql_append import MySQLAppends, MySQLEngine
from ._postgresql_append import Append
from ._state import SQLState
from ._statement import Statement


class MySQLConversations(SQLConversations):
    """The conversations of one tenant."""

    def __init__(self, engine: MySQLEngine, tenant: str, appends: MySQLAppends) -> None:
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


class MySQLState(SQLState):
    """The state of one scope."""

    def __init__(self, engine: MySQLEngine, tenant: str, scope: Scope) -> None:
        super().__init__(engine, tenant, scope)
        self._fetch = engine.fetch

    async def _rows(self, statement: Statement, **parameters: Any) -> Sequence[Any]:
        return await self._fetch(*statement.call(**parameters, **self._scope), "read")
