"""The wrapper that changes nothing, and its one hook."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from ..stores import API_VERSION, ConversationStore, Driver, StateStore
from ..types import (
    UNSET,
    AppendResult,
    Capabilities,
    History,
    Hit,
    Message,
    Page,
    Scope,
    Session,
    UnsetType,
    Versioned,
)

__all__ = ["Operation", "Wrapper"]

T = TypeVar("T")


class Operation(msgspec.Struct, frozen=True):
    """What a call is, for those who make it in their own way.

    `subject` is the session's id or the key of state, where there is one.
    `writes` says that it changes the store.
    `repeatable` says that a second attempt recognises what the first one wrote, so that it may be
    made when the first one's outcome is unknown.
    """

    name: str
    tenant: str
    subject: str = ""
    scope: Scope | None = None
    writes: bool = False
    repeatable: bool = True


class Wrapper:
    """A driver around a driver; subclasses override `_invoke`, and nothing else as a rule."""

    api_version = API_VERSION

    def __init__(self, inner: Driver) -> None:
        self._inner = inner

    async def _invoke(self, operation: Operation, call: Callable[[Driver], Awaitable[T]]) -> T:
        """Make one call: `call` takes the driver to make it on, and can be called again."""
        return await call(self._inner)

    @property
    def capabilities(self) -> Capabilities:
        """What the wrapped store can do."""
        return self._inner.capabilities

    def conversations(self, tenant: str) -> ConversationStore:
        """Give the conversations of a tenant."""
        return _Conversations(self, tenant)

    def state(self, tenant: str, scope: Scope) -> StateStore:
        """Give the state of a scope."""
        return _State(self, tenant, scope)

    async def open(self) -> None:
        """Open the wrapped store."""
        await self._inner.open()

    async def close(self) -> None:
        """Close the wrapped store."""
        await self._inner.close()

    async def ping(self) -> None:
        """Ask the wrapped store for a sign of life."""
        await self._inner.ping()


class _Conversations:
    """Passes each method on through the wrapper's hook."""

    __slots__ = ("_tenant", "_wrapper")

    def __init__(self, wrapper: Wrapper, tenant: str) -> None:
        self._wrapper = wrapper
        self._tenant = tenant

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
        return await self._wrapper._invoke(
            Operation("append", self._tenant, session_id, writes=True),
            lambda driver: driver.conversations(self._tenant).append(
                session_id,
                messages,
                user_id=user_id,
                agent=agent,
                ttl=ttl,
                expect_seq=expect_seq,
            ),
        )

    async def read(
        self,
        session_id: str,
        *,
        first: int | None = None,
        last: int | None = None,
        before: int | None = None,
        after: int | None = None,
        max_tokens: int | None = None,
        user_id: str | None = None,
    ) -> History:
        return await self._wrapper._invoke(
            Operation("read", self._tenant, session_id),
            lambda driver: driver.conversations(self._tenant).read(
                session_id,
                first=first,
                last=last,
                before=before,
                after=after,
                max_tokens=max_tokens,
                user_id=user_id,
            ),
        )

    async def get(self, session_id: str, *, user_id: str | None = None) -> Session | None:
        return await self._wrapper._invoke(
            Operation("get", self._tenant, session_id),
            lambda driver: driver.conversations(self._tenant).get(session_id, user_id=user_id),
        )

    async def update(
        self,
        session_id: str,
        *,
        title: str | None | UnsetType = UNSET,
        metadata: dict[str, Any] | UnsetType = UNSET,
        ttl: float | None | UnsetType = UNSET,
    ) -> Session | None:
        return await self._wrapper._invoke(
            Operation("update", self._tenant, session_id, writes=True),
            lambda driver: driver.conversations(self._tenant).update(
                session_id, title=title, metadata=metadata, ttl=ttl
            ),
        )

    async def sessions(
        self,
        *,
        user_id: str | None = None,
        prefix: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Session]:
        return await self._wrapper._invoke(
            Operation("sessions", self._tenant),
            lambda driver: driver.conversations(self._tenant).sessions(
                user_id=user_id, prefix=prefix, limit=limit, cursor=cursor
            ),
        )

    async def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        limit: int = 20,
    ) -> list[Hit]:
        return await self._wrapper._invoke(
            Operation("search", self._tenant, session_id or ""),
            lambda driver: driver.conversations(self._tenant).search(
                query, user_id=user_id, session_id=session_id, limit=limit
            ),
        )

    async def replace(
        self,
        session_id: str,
        message_id: str,
        *,
        content: str | list[Any] | None,
        metadata: dict[str, Any] | UnsetType = UNSET,
    ) -> bool:
        return await self._wrapper._invoke(
            Operation("replace", self._tenant, session_id, writes=True),
            lambda driver: driver.conversations(self._tenant).replace(
                session_id, message_id, content=content, metadata=metadata
            ),
        )

    async def rewind(self, session_id: str, *, to: int) -> int:
        return await self._wrapper._invoke(
            Operation("rewind", self._tenant, session_id, writes=True),
            lambda driver: driver.conversations(self._tenant).rewind(session_id, to=to),
        )

    async def fork(
        self, session_id: str, new_session_id: str, *, upto: int | None = None
    ) -> Session:
        return await self._wrapper._invoke(
            Operation("fork", self._tenant, session_id, writes=True),
            lambda driver: driver.conversations(self._tenant).fork(
                session_id, new_session_id, upto=upto
            ),
        )

    async def delete(self, session_id: str) -> bool:
        return await self._wrapper._invoke(
            Operation("delete", self._tenant, session_id, writes=True),
            lambda driver: driver.conversations(self._tenant).delete(session_id),
        )

    async def purge_expired(self, *, limit: int = 1000) -> int:
        return await self._wrapper._invoke(
            Operation("purge_expired", self._tenant, writes=True, repeatable=False),
            lambda driver: driver.conversations(self._tenant).purge_expired(limit=limit),
        )


class _State:
    """Passes each method on through the wrapper's hook."""

    __slots__ = ("_scope", "_tenant", "_wrapper")

    def __init__(self, wrapper: Wrapper, tenant: str, scope: Scope) -> None:
        self._wrapper = wrapper
        self._tenant = tenant
        self._scope = scope

    async def get(self, key: str) -> Versioned | None:
        return await self._wrapper._invoke(
            Operation("state.get", self._tenant, key, self._scope),
            lambda driver: driver.state(self._tenant, self._scope).get(key),
        )

    async def put(
        self,
        key: str,
        value: Any,  # noqa: ANN401 - any JSON
        *,
        expect: int | None = None,
        ttl: float | None = None,
    ) -> Versioned:
        return await self._wrapper._invoke(
            Operation("state.put", self._tenant, key, self._scope, writes=True),
            lambda driver: driver.state(self._tenant, self._scope).put(
                key, value, expect=expect, ttl=ttl
            ),
        )

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        return await self._wrapper._invoke(
            Operation(
                "state.delete", self._tenant, key, self._scope, writes=True, repeatable=False
            ),
            lambda driver: driver.state(self._tenant, self._scope).delete(key, expect=expect),
        )

    async def items(
        self, *, prefix: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Versioned]:
        return await self._wrapper._invoke(
            Operation("state.items", self._tenant, "", self._scope),
            lambda driver: driver.state(self._tenant, self._scope).items(
                prefix=prefix, limit=limit, cursor=cursor
            ),
        )
