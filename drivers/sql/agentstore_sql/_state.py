"""State in SQL, the same on every engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from sqlalchemy import Connection

from agentstore.driver import decode_cursor, dump, encode_cursor, load, operation_id
from agentstore.errors import ConflictError
from agentstore.types import Page, Scope, Versioned

from ._engine import Engine
from ._statement import Statement
from ._statements import AFTER_ALL

COUNTER = "state"

_Stored: TypeAlias = tuple[str, int, str]
"""The text of a value, its version and the operation that wrote it."""


class SQLState:
    """The state of one scope: each method is one job."""

    def __init__(self, engine: Engine, tenant: str, scope: Scope) -> None:
        self._engine = engine
        self._statements = engine.statements
        self._scope = {"tenant": tenant, "scope": scope.kind, "owner": scope.owner}

    async def get(self, key: str) -> Versioned | None:
        """Read one value."""
        stored = _living(await self._rows(self._statements.value, key=key))
        if stored is None:
            return None
        return Versioned(key=key, value=load(stored[0]), version=stored[1])

    async def put(
        self,
        key: str,
        value: Any,  # noqa: ANN401 - any JSON
        *,
        expect: int | None = None,
        ttl: float | None = None,
    ) -> Versioned:
        """Write one value."""
        operation, text = operation_id(), dump(value)

        row = {
            "value": text,
            "ttl": None if ttl is None else round(ttl * 1_000_000),
            "operation": operation,
        }

        def job(connection: Connection) -> int:
            while True:
                held = self._hold(connection, key)
                stored = _living(held)
                if stored is not None and stored[2] == operation:
                    return stored[1]
                _check_version(stored, expect)
                version = self._draw(connection)
                place = {"key": key, "version": version, **row, **self._scope}
                if held:
                    self._statements.set_value.run(connection, **place)
                    return version
                # Another transaction may be first: look whose row it is.
                self._statements.insert_value.run(connection, **place)

        version = await self._engine.write(job)
        return Versioned(key=key, value=value, version=version)

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Delete one value."""

        def job(connection: Connection) -> bool:
            stored = _living(self._hold(connection, key))
            _check_version(stored, expect)
            self._statements.remove_value.run(connection, key=key, **self._scope)
            return stored is not None

        return await self._engine.write(job)

    async def items(
        self, *, prefix: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Versioned]:
        """List values by key."""
        start = prefix or ""
        behind = decode_cursor(cursor, str)[0] if cursor else ""
        rows = await self._rows(
            self._statements.values,
            start=start,
            behind=behind,
            stop=start + AFTER_ALL,
            limit=limit + 1,
        )
        found = [Versioned(key=key, value=load(text), version=v) for key, text, v in rows[:limit]]
        return Page(found, cursor=encode_cursor(found[-1].key) if len(rows) > limit else None)

    async def _rows(self, statement: Statement, **parameters: Any) -> Sequence[Any]:
        """Run one statement that reads."""
        return await self._engine.read(
            lambda connection: statement.rows(connection, **parameters, **self._scope)
        )

    def _hold(self, connection: Connection, key: str) -> list[Any]:
        """Find the row of a value, expired or not, and lock it until the transaction ends."""
        return self._statements.hold_value.rows(connection, key=key, **self._scope)

    def _draw(self, connection: Connection) -> int:
        if self._statements.draw is not None:
            self._statements.draw.run(connection, counter=COUNTER)
        ((version,),) = self._statements.drawn.rows(connection, counter=COUNTER)
        return int(version)


def _living(rows: Sequence[Any]) -> _Stored | None:
    """Give the value that was found, unless it has expired."""
    for value, version, expires_at, operation, moment in rows:
        if expires_at is None or expires_at > moment:
            return value, version, operation
    return None


def _check_version(stored: _Stored | None, expect: int | None) -> None:
    version = stored[1] if stored else 0
    if expect is not None and expect != version:
        raise ConflictError(f"expected version {expect}, and the stored one is {version}")
