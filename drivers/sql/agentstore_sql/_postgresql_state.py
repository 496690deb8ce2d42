"""State on PostgreSQL: every call is one statement, where there is nothing to decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentstore.driver import dump, operation_id
from agentstore.types import Scope, Versioned

from ._postgresql_engine import PostgreSQLEngine
from ._state import SQLState
from ._statement import Statement


class PostgreSQLState(SQLState):
    """The state of one scope."""

    def __init__(self, engine: PostgreSQLEngine, tenant: str, scope: Scope) -> None:
        super().__init__(engine, tenant, scope)
        self._fetch = engine.fetch
        self._single = engine.single

    async def put(
        self,
        key: str,
        value: Any,  # noqa: ANN401 - any JSON
        *,
        expect: int | None = None,
        ttl: float | None = None,
    ) -> Versioned:
        """Write one value."""
        arguments = [
            *self._scope.values(),
            key,
            dump(value),
            None if ttl is None else round(ttl * 1_000_000),
            operation_id(),
        ]
        if expect:
            rows = await self._fetch(self._single.replace, [*arguments, expect], "write")
        else:
            rows = await self._fetch(self._single.put, [*arguments, expect == 0], "write")
        if not rows:
            return await super().put(key, value, expect=expect, ttl=ttl)
        return Versioned(key=key, value=value, version=rows[0][0])

    async def _rows(self, statement: Statement, **parameters: Any) -> Sequence[Any]:
        return await self._fetch(*statement.call(**parameters, **self._scope), "read")
