"""State in SQL, the same on every engine."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from agentstore.driver import decode_cursor, dump, encode_cursor, load, now, operation_id
from agentstore.errors import ConflictError
from agentstore.types import Page, Scope, Versioned

from ._engine import Engine
from ._statements import AFTER_ALL

COUNTER = "state"


class SQLState:
    """The state of one scope: each method is one job."""

    def __init__(self, engine: Engine, tenant: str, scope: Scope) -> None:
        self._engine = engine
        self._statements = engine.statements
        self._scope = {"tenant": tenant, "scope": scope.kind, "owner": scope.owner}

    async def get(self, key: str) -> Versioned | None:
        """Read one value."""
        stored = await self._engine.read(lambda connection: self._find(connection, key))
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

        def job(connection: Connection) -> int:
            stored = self._find(connection, key)
            if stored is not None and stored[2] == operation:
                return stored[1]
            _check_version(stored, expect)
            self._statements.draw.run(connection, counter=COUNTER)
            ((version,),) = self._statements.drawn.rows(connection, counter=COUNTER)
            self._statements.remove_value.run(connection, key=key, **self._scope)
            self._statements.insert_value.run(
                connection,
                key=key,
                value=text,
                version=version,
                expires_at=None if ttl is None else now() + round(ttl * 1_000_000),
                operation=operation,
                **self._scope,
            )
            return int(version)

        version = await self._engine.write(job)
        return Versioned(key=key, value=value, version=version)

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Delete one value."""

        def job(connection: Connection) -> bool:
            stored = self._find(connection, key)
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
        rows = await self._engine.read(
            lambda connection: self._statements.values.rows(
                connection,
                now=now(),
                start=start,
                behind=behind,
                stop=start + AFTER_ALL,
                limit=limit + 1,
                **self._scope,
            )
        )
        found = [Versioned(key=key, value=load(text), version=v) for key, text, v in rows[:limit]]
        return Page(found, cursor=encode_cursor(found[-1].key) if len(rows) > limit else None)

    def _find(self, connection: Connection, key: str) -> tuple[str, int, str] | None:
        """Find a value that has not expired: its text, its version and who wrote it."""
        for value, version, expires_at, operation in self._statements.value.rows(
            connection, key=key, **self._scope
        ):
            if expires_at is None or expires_at > now():
                return value, version, operation
        return None


def _check_version(stored: tuple[str, int, str] | None, expect: int | None) -> None:
    version = stored[1] if stored else 0
    if expect is not None and expect != version:
        raise ConflictError(f"expected version {expect}, and the stored one is {version}")
