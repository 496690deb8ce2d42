"""The conversations of a database: what an application calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from . import _validate as check
from .driver._operation import one_operation
from .errors import DataError, StoreError
from .stores import ConversationStore
from .types import (
    UNSET,
    AppendResult,
    History,
    Hit,
    Limits,
    Message,
    Page,
    Session,
    UnsetType,
)

__all__ = ["Conversations"]

T = TypeVar("T")


class Conversations:
    """A `ConversationStore` that checks its arguments before anything is sent.

    Each method is documented at `ConversationStore`.
    Messages may be given as dicts of OpenAI's chat format.
    What can't be stored as it is raises `DataError`, on every backend alike.
    """

    def __init__(self, store: ConversationStore, *, backend: str, limits: Limits) -> None:
        self._store = store
        self._backend = backend
        self._limits = limits

    async def append(
        self,
        session_id: str,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        user_id: str | None = None,
        agent: str | None = None,
        ttl: float | None = None,
        expect_seq: int | None = None,
    ) -> AppendResult:
        """Store messages at the end of a session, all of them or none."""
        checked = check.messages(messages, self._limits)
        return await self._call(
            "append",
            lambda: self._store.append(
                check.identifier(session_id, "session_id"),
                checked,
                user_id=check.optional_identifier(user_id, "user_id"),
                agent=check.optional_identifier(agent, "agent"),
                ttl=check.seconds(ttl, "ttl"),
                expect_seq=check.optional_count(expect_seq, "expect_seq", least=0),
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
        """Read messages, oldest first."""
        if first is not None and (last is not None or max_tokens is not None):
            raise DataError("first reads from the oldest on: give it without last and max_tokens")
        return await self._call(
            "read",
            lambda: self._store.read(
                check.identifier(session_id, "session_id"),
                first=check.optional_count(first, "first"),
                last=check.optional_count(last, "last"),
                before=check.optional_count(before, "before", least=0),
                after=check.optional_count(after, "after", least=0),
                max_tokens=check.optional_count(max_tokens, "max_tokens"),
                user_id=check.optional_identifier(user_id, "user_id"),
            ),
        )

    async def get(self, session_id: str, *, user_id: str | None = None) -> Session | None:
        """Tell what is known of a session."""
        return await self._call(
            "get",
            lambda: self._store.get(
                check.identifier(session_id, "session_id"),
                user_id=check.optional_identifier(user_id, "user_id"),
            ),
        )

    async def update(
        self,
        session_id: str,
        *,
        title: str | None | UnsetType = UNSET,
        metadata: dict[str, Any] | UnsetType = UNSET,
        ttl: float | None | UnsetType = UNSET,
    ) -> Session | None:
        """Replace what is given of a session."""
        if metadata is not UNSET:
            check.metadata(metadata, self._limits)
        return await self._call(
            "update",
            lambda: self._store.update(
                check.identifier(session_id, "session_id"),
                title=UNSET if title is UNSET else check.title_text(title),
                metadata=metadata,
                ttl=UNSET if ttl is UNSET else check.seconds(ttl, "ttl"),
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
        """List sessions: newest first, or by id where `prefix` is given."""
        return await self._call(
            "sessions",
            lambda: self._store.sessions(
                user_id=check.optional_identifier(user_id, "user_id"),
                prefix=check.prefix(prefix),
                limit=check.count(limit, "limit", most=self._limits.page),
                cursor=check.cursor(cursor),
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
        """Find messages by their words, the best match first."""
        return await self._call(
            "search",
            lambda: self._store.search(
                check.identifier(query, "query"),
                user_id=check.optional_identifier(user_id, "user_id"),
                session_id=check.optional_identifier(session_id, "session_id"),
                limit=check.count(limit, "limit", most=self._limits.page),
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
        """Put other content in the place of one message's."""
        check.replacement(content, metadata, self._limits)
        return await self._call(
            "replace",
            lambda: self._store.replace(
                check.identifier(session_id, "session_id"),
                check.identifier(message_id, "message_id"),
                content=content,
                metadata=metadata,
            ),
        )

    async def rewind(self, session_id: str, *, to: int) -> int:
        """Drop every message behind `seq` `to`, and tell how many they were."""
        return await self._call(
            "rewind",
            lambda: self._store.rewind(
                check.identifier(session_id, "session_id"), to=check.count(to, "to", least=0)
            ),
        )

    async def fork(
        self, session_id: str, new_session_id: str, *, upto: int | None = None
    ) -> Session:
        """Copy a session under a new id, up to and with `seq` `upto`."""
        return await self._call(
            "fork",
            lambda: self._store.fork(
                check.identifier(session_id, "session_id"),
                check.identifier(new_session_id, "new_session_id"),
                upto=check.optional_count(upto, "upto", least=0),
            ),
        )

    async def delete(self, session_id: str) -> bool:
        """Delete a session and its messages; its state stays (`Database.delete_session`)."""
        return await self._call(
            "delete", lambda: self._store.delete(check.identifier(session_id, "session_id"))
        )

    async def purge_expired(self, *, limit: int = 1000) -> int:
        """Free the space of what has expired."""
        return await self._call(
            "purge_expired",
            lambda: self._store.purge_expired(limit=check.count(limit, "limit")),
        )

    async def _call(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        return await called(self._backend, operation, call)


async def called(backend: str, operation: str, call: Callable[[], Awaitable[T]]) -> T:
    """Make one call of the application: one operation id, and errors that say where."""
    try:
        with one_operation():
            return await call()
    except StoreError as error:
        error.backend = error.backend or backend
        error.operation = error.operation or operation
        raise
