"""State in an ordered engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import ConflictError
from ..types import Page, Scope, Versioned
from ._cursor import decode_cursor, encode_cursor
from ._keys import key_hash
from ._operation import operation_id
from ._ordered_keys import (
    COUNTER,
    EXPIRY,
    KEYS,
    VALUE,
    Batch,
    Names,
    digits,
    expiry,
    is_past,
    names,
    page,
    reindex,
)

if TYPE_CHECKING:
    from ._ordered import OrderedDriver


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A value as it is stored: with what it is found by, and the call that wrote it."""

    kind: str
    owner: str
    key: str
    value: Any
    version: int
    expires: int | None = None
    operation: str

    def shown(self) -> Versioned:
        """Give what a caller sees of it."""
        return Versioned(key=self.key, value=self.value, version=self.version)


class Slot:
    """The place of one value, within one transaction."""

    def __init__(self, tx: Batch, tenant: str, place: bytes) -> None:
        self._tx = tx
        self._tenant = tenant
        self._key = VALUE + place
        self._stored = tx.load(self._key, Value)

    def live(self) -> Value | None:
        """Give the value, unless it has expired."""
        return None if self._stored is None or is_past(self._stored.expires) else self._stored

    def draw(self) -> int:
        """Draw a version, which no value of the tenant had before."""
        counter = COUNTER + key_hash(self._tenant)
        version = (self._tx.load(counter, int) or 0) + 1
        self._tx.put(counter, version)
        return version

    def write(self, value: Value) -> None:
        """Put a value here."""
        reindex(self._tx, self._names(self._stored), self._names(value))
        self._tx.put(self._key, value)

    def remove(self) -> None:
        """Leave nothing here."""
        reindex(self._tx, self._names(self._stored), set())
        self._tx.delete(self._key)

    def _names(self, value: Value | None) -> Names:
        if value is None:
            return set()
        found = {(KEYS + key_hash(self._tenant, value.kind, value.owner), value.key)}
        if value.expires is not None:
            found.add((EXPIRY + key_hash(self._tenant), digits(value.expires) + self._key.hex()))
        return found


class OrderedState:
    """The state of one scope in an ordered engine."""

    def __init__(self, driver: OrderedDriver, tenant: str, scope: Scope) -> None:
        self._driver = driver
        self._tenant = tenant
        self._scope = scope

    def _slot(self, tx: Batch, key: str) -> Slot:
        place = key_hash(self._tenant, self._scope.kind, self._scope.owner, key)
        return Slot(tx, self._tenant, place)

    async def get(self, key: str) -> Versioned | None:
        """Read one value."""
        value = await self._driver._look(lambda tx: self._slot(tx, key).live())
        return None if value is None else value.shown()

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

        def work(tx: Batch) -> Versioned:
            slot = self._slot(tx, key)
            stored = slot.live()
            if stored is None or stored.operation != operation:
                _check_version(stored, expect)
                stored = Value(
                    kind=self._scope.kind,
                    owner=self._scope.owner,
                    key=key,
                    value=value,
                    version=slot.draw(),
                    expires=expiry(ttl),
                    operation=operation,
                )
                slot.write(stored)
            return stored.shown()

        return await self._driver._change(work)

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Delete one value."""

        def work(tx: Batch) -> bool:
            slot = self._slot(tx, key)
            stored = slot.live()
            _check_version(stored, expect)
            if stored is not None:
                slot.remove()
            return stored is not None

        return await self._driver._change(work)

    async def items(
        self, *, prefix: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Versioned]:
        """List values by key."""
        after = "" if cursor is None else decode_cursor(cursor, str)[0]
        index = KEYS + key_hash(self._tenant, self._scope.kind, self._scope.owner)
        found, more = await self._driver._look(
            lambda tx: page(
                names(tx, index, prefix=prefix or "", after=after),
                lambda key: self._slot(tx, key).live(),
                limit,
            )
        )
        return Page(
            [value.shown() for value in found],
            cursor=encode_cursor(found[-1].key) if more else None,
        )


def _check_version(stored: Value | None, expect: int | None) -> None:
    version = stored.version if stored else 0
    if expect is not None and expect != version:
        raise ConflictError(f"expected version {expect}, and the stored one is {version}")
