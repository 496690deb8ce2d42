"""The stores on PostgreSQL: the hot calls are one statement, the others the generic jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from agentstore.types import AppendResult, Message, Scope

from ._conversations import SQLConversations
from ._engine import Engine
from ._postgresql_append import Append, Appends
from ._state import SQLState
from ._statement import Statement


class PostgreSQLEngine(Engine, Protocol):
    """An engine with single statements beside its jobs."""

    @property
    def appends(self) -> Appends:
        """The appends of this process."""

    async def rows(self, statement: Statement, **parameters: Any) -> Sequence[Any]:
        """Run one statement that reads, in one round trip."""


class PostgreSQLConversations(SQLConversations):
    """The conversations of one tenant."""

    def __init__(self, engine: PostgreSQLEngine, tenant: str) -> None:
        super().__init__(engine, tenant)
        self._single = engine

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
        """Store messages at the end of a session, with others' that wait to be stored there."""
        append = Append(messages, user_id, agent, ttl, expect_seq)
        return await self._single.appends.put(self._tenant, session_id, append)

    async def _rows(self, statement: Statement, **parameters: Any) -> Sequence[Any]:
        return await self._single.rows(statement, tenant=self._tenant, **parameters)


class PostgreSQLState(SQLState):
    """The state of one scope."""

    def __init__(self, engine: PostgreSQLEngine, tenant: str, scope: Scope) -> None:
        super().__init__(engine, tenant, scope)
        self._single = engine

    async def _rows(self, statement: Statement, **parameters: Any) -> Sequence[Any]:
        return await self._single.rows(statement, **parameters, **self._scope)
