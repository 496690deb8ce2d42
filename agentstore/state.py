"""State: small JSON values of the application, of a user or of a session."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from . import _validate as check
from .conversations import called
from .stores import StateStore
from .types import Limits, Page, Scope, Versioned

__all__ = ["State", "States", "every"]

_PAGE = 100

T = TypeVar("T")


class States:
    """Handles on state: `app()`, `user(id)` and `session(id)` never see each other's keys."""

    def __init__(self, state: Callable[[Scope], State]) -> None:
        self._state = state

    def app(self) -> State:
        """Give the state of the whole application (within its tenant)."""
        return self._state(Scope("app"))

    def user(self, user_id: str) -> State:
        """Give the state of one user."""
        return self._state(Scope("user", check.identifier(user_id, "user_id")))

    def session(self, session_id: str) -> State:
        """Give the state of one session; it needs no conversation to exist."""
        return self._state(Scope("session", check.identifier(session_id, "session_id")))


class State:
    """A `StateStore` that checks its arguments before anything is sent.

    Each method is documented at `StateStore`.
    """

    def __init__(self, store: StateStore, *, backend: str, limits: Limits) -> None:
        self._store = store
        self._backend = backend
        self._limits = limits

    async def get(self, key: str) -> Versioned | None:
        """Read one value."""
        return await self._call("state.get", lambda: self._store.get(check.identifier(key, "key")))

    async def put(
        self,
        key: str,
        value: Any,  # noqa: ANN401 - any JSON
        *,
        expect: int | None = None,
        ttl: float | None = None,
    ) -> Versioned:
        """Write one value, and give it with its new version."""
        check.json_value(value, "value", limit=self._limits.state, depth=self._limits.depth)
        return await self._call(
            "state.put",
            lambda: self._store.put(
                check.identifier(key, "key"),
                value,
                expect=check.optional_count(expect, "expect", least=0),
                ttl=check.seconds(ttl, "ttl"),
            ),
        )

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Delete one value."""
        return await self._call(
            "state.delete",
            lambda: self._store.delete(
                check.identifier(key, "key"),
                expect=check.optional_count(expect, "expect", least=0),
            ),
        )

    async def items(
        self, *, prefix: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Versioned]:
        """List values by key."""
        return await self._call(
            "state.items",
            lambda: self._store.items(
                prefix=check.prefix(prefix),
                limit=check.count(limit, "limit", most=self._limits.page),
                cursor=check.cursor(cursor),
            ),
        )

    async def _call(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        return await called(self._backend, operation, call)


async def every(state: State) -> AsyncGenerator[Versioned, None]:
    """Give every value of a scope, page by page."""
    cursor: str | None = None
    while True:
        page = await state.items(limit=min(_PAGE, state._limits.page), cursor=cursor)
        for item in page:
            yield item
        if (cursor := page.cursor) is None:
            return
