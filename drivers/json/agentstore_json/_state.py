"""State in JSON files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Raw

from agentstore.driver import decode_cursor, dump, encode_cursor, operation_id
from agentstore.errors import ConflictError
from agentstore.types import Page, Scope, Versioned

from ._records import after
from ._store import Store
from ._values import Value, values_of

if TYPE_CHECKING:
    from ._driver import JSONDriver


class JSONState:
    """The state of one scope: each method is one piece of work in a thread."""

    def __init__(self, driver: JSONDriver, tenant: str, scope: Scope) -> None:
        self._driver = driver
        self._tenant = tenant
        self._scope = scope

    async def get(self, key: str) -> Versioned | None:
        """Read one value."""

        def work(store: Store) -> Versioned | None:
            with values_of(store, self._tenant, self._scope) as values:
                found = values.find(key)
            return None if found is None else found.shown()

        return await self._driver.run(work)

    async def put(
        self,
        key: str,
        value: Any,  # noqa: ANN401 - any JSON
        *,
        expect: int | None = None,
        ttl: float | None = None,
    ) -> Versioned:
        """Write one value."""
        operation = operation_id()

        def work(store: Store) -> Versioned:
            with values_of(store, self._tenant, self._scope) as values:
                stored = values.find(key)
                if stored is not None and stored.operation == operation:
                    values.settle()
                    return stored.shown()
                _check_version(stored, expect)
                written = Value(
                    tenant=self._tenant,
                    scope=self._scope.kind,
                    owner=self._scope.owner,
                    key=key,
                    version=store.versions.draw(),
                    expires_at=after(ttl),
                    operation=operation,
                    value=Raw(dump(value).encode()),
                )
                values.write(written)
                return written.shown()

        return await self._driver.run(work)

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Delete one value."""

        def work(store: Store) -> bool:
            with values_of(store, self._tenant, self._scope) as values:
                stored = values.find(key)
                _check_version(stored, expect)
                if stored is not None:
                    values.remove(key)
                return stored is not None

        return await self._driver.run(work)

    async def items(
        self, *, prefix: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Versioned]:
        """List values by key."""
        behind = "" if cursor is None else decode_cursor(cursor, str)[0]

        def work(store: Store) -> Page[Versioned]:
            found: list[Versioned] = []
            with values_of(store, self._tenant, self._scope) as values:
                for key in sorted(values.keys()):
                    if key > behind and key.startswith(prefix or "") and (one := values.find(key)):
                        if len(found) == limit:
                            return Page(found, cursor=encode_cursor(found[-1].key))
                        found.append(one.shown())
            return Page(found)

        return await self._driver.run(work)


def _check_version(stored: Value | None, expect: int | None) -> None:
    version = stored.version if stored else 0
    if expect is not None and expect != version:
        raise ConflictError(f"expected version {expect}, and the stored one is {version}")
