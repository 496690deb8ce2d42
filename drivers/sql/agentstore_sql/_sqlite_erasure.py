"""Stores whose erased text leaves SQLite's log as well."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from agentstore.types import UNSET, Scope, UnsetType

from ._conversations import SQLConversations
from ._engine import Engine
from ._state import SQLState

T = TypeVar("T")

EmptyLog = Callable[[], Awaitable[None]]


class ErasingConversations(SQLConversations):
    """Conversations that empty the log behind what takes text away.

    `secure_delete` overwrites it in the file, but the log holds the pages as they were.
    """

    def __init__(self, engine: Engine, tenant: str, empty_log: EmptyLog) -> None:
        super().__init__(engine, tenant)
        self._empty_log = empty_log

    async def replace(
        self,
        session_id: str,
        message_id: str,
        *,
        content: str | list[Any] | None,
        metadata: dict[str, Any] | UnsetType = UNSET,
    ) -> bool:
        """Put other content in the place of one message's."""
        return await self._behind(
            super().replace(session_id, message_id, content=content, metadata=metadata)
        )

    async def rewind(self, session_id: str, *, to: int) -> int:
        """Drop every message behind `seq` `to`."""
        return await self._behind(super().rewind(session_id, to=to))

    async def delete(self, session_id: str) -> bool:
        """Delete a session and its messages."""
        return await self._behind(super().delete(session_id))

    async def purge_expired(self, *, limit: int = 1000) -> int:
        """Free the space of what has expired, and forget old tombstones."""
        return await self._behind(super().purge_expired(limit=limit))

    async def _behind(self, change: Awaitable[T]) -> T:
        changed = await change
        if changed:
            await self._empty_log()
        return changed


class ErasingState(SQLState):
    """State that empties the log behind what is deleted."""

    def __init__(self, engine: Engine, tenant: str, scope: Scope, empty_log: EmptyLog) -> None:
        super().__init__(engine, tenant, scope)
        self._empty_log = empty_log

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Delete one value."""
        deleted = await super().delete(key, expect=expect)
        if deleted:
            await self._empty_log()
        return deleted
