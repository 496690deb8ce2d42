"""The stores on MySQL: the hot calls are one round trip, the others the generic jobs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from agentstore.driver import dump, operation_id
from agentstore.errors import ConflictError
from agentstore.types import AppendResult, Message, Scope, Versioned

from ._appends import Append, Appends
from ._conversations import SQLConversations
from ._mysql_append import MySQLEngine
from ._state import SQLState
from ._statement import Statement


class MySQLConversations(SQLConversations):
    """The conversations of one tenant."""

    def __init__(self, engine: MySQLEngine, tenant: str, appends: Appends) -> None:
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
        self._travel = engine.travel
        self._trips = engine.trips

    async def put(
        self,
        key: str,
        value: Any,  # noqa: ANN401 - any JSON
        *,
        expect: int | None = None,
        ttl: float | None = None,
    ) -> Versioned:
        """Write one value."""
        place = [*self._scope.values(), key]
        operation = operation_id()
        given = [dump(value), None if ttl is None else round(ttl * 1_000_000), operation]
        if expect:
            trip, arguments = self._trips.replace, [*given, *place, expect]
        else:
            trip = self._trips.put if expect is None else self._trips.insert
            arguments = [*place, *given]
        version = None
        with suppress(ConflictError):
            ((version,),) = await self._travel(trip, [*arguments, *place, operation])
        if version is None:
            # There is something to decide.
            return await super().put(key, value, expect=expect, ttl=ttl)
        return Versioned(key=key, value=value, version=version)

    async def _rows(self, statement: Statement, **parameters: Any) -> Sequence[Any]:
        return await self._fetch(*statement.call(**parameters, **self._scope), "read")
