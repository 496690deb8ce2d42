"""The blocking face of a database: the same methods, without `await`.

Each is documented where its asynchronous twin is; a test holds the signatures equal.
They block the calling thread, whether or not an event loop runs in it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._portal import portal
from .conversations import Conversations
from .state import State, States
from .types import (
    UNSET,
    AppendResult,
    ErasureReceipt,
    Health,
    History,
    Hit,
    Message,
    Page,
    Session,
    UnsetType,
    Versioned,
)

if TYPE_CHECKING:
    from .database import Database

__all__ = ["SyncConversations", "SyncDatabase", "SyncState", "SyncStates"]


class SyncDatabase:
    """A `Database` for code that doesn't await."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def conversations(self) -> SyncConversations:
        """The conversations."""
        return SyncConversations(self._database.conversations)

    @property
    def state(self) -> SyncStates:
        """Handles on state: `state.app()`, `state.user(id)`, `state.session(id)`."""
        return SyncStates(self._database.state)

    def for_tenant(self, tenant: str) -> SyncDatabase:
        """Give a view on another tenant's data, over the same connections."""
        return SyncDatabase(self._database.for_tenant(tenant))

    def open(self) -> None:
        """Open the stores now, and not at the first use."""
        portal().run(self._database.open)

    def close(self) -> None:
        """Close the stores; what was acknowledged is safe before and after."""
        portal().run(self._database.close)

    def health(self) -> Health:
        """Ask each store for a sign of life; never raises for one that is down."""
        return portal().run(self._database.health)

    def delete_session(self, session_id: str) -> bool:
        """Delete a conversation and the state of its session."""
        return portal().run(self._database.delete_session, session_id)

    def erase_user(self, user_id: str) -> ErasureReceipt:
        """Delete everything of a user."""
        return portal().run(self._database.erase_user, user_id)

    def export_user(self, user_id: str) -> Generator[dict[str, Any], None, None]:
        """Give everything of a user, as JSON."""
        return portal().iterate(self._database.export_user, user_id)


class SyncConversations:
    """`Conversations` for code that doesn't await."""

    def __init__(self, conversations: Conversations) -> None:
        self._conversations = conversations

    def append(
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
        return portal().run(
            self._conversations.append,
            session_id,
            messages,
            user_id=user_id,
            agent=agent,
            ttl=ttl,
            expect_seq=expect_seq,
        )

    def read(
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
        return portal().run(
            self._conversations.read,
            session_id,
            first=first,
            last=last,
            before=before,
            after=after,
            max_tokens=max_tokens,
            user_id=user_id,
        )

    def get(self, session_id: str, *, user_id: str | None = None) -> Session | None:
        """Tell what is known of a session."""
        return portal().run(self._conversations.get, session_id, user_id=user_id)

    def update(
        self,
        session_id: str,
        *,
        title: str | None | UnsetType = UNSET,
        metadata: dict[str, Any] | UnsetType = UNSET,
        ttl: float | None | UnsetType = UNSET,
    ) -> Session | None:
        """Replace what is given of a session."""
        return portal().run(
            self._conversations.update, session_id, title=title, metadata=metadata, ttl=ttl
        )

    def sessions(
        self,
        *,
        user_id: str | None = None,
        prefix: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Session]:
        """List sessions: newest first, or by id where `prefix` is given."""
        return portal().run(
            self._conversations.sessions,
            user_id=user_id,
            prefix=prefix,
            limit=limit,
            cursor=cursor,
        )

    def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        limit: int = 20,
    ) -> list[Hit]:
        """Find messages by their words, the best match first."""
        return portal().run(
            self._conversations.search,
            query,
            user_id=user_id,
            session_id=session_id,
            limit=limit,
        )

    def replace(
        self,
        session_id: str,
        message_id: str,
        *,
        content: str | list[Any] | None,
        metadata: dict[str, Any] | UnsetType = UNSET,
    ) -> bool:
        """Put other content in the place of one message's."""
        return portal().run(
            self._conversations.replace,
            session_id,
            message_id,
            content=content,
            metadata=metadata,
        )

    def rewind(self, session_id: str, *, to: int) -> int:
        """Drop every message behind `seq` `to`, and tell how many they were."""
        return portal().run(self._conversations.rewind, session_id, to=to)

    def fork(self, session_id: str, new_session_id: str, *, upto: int | None = None) -> Session:
        """Copy a session under a new id, up to and with `seq` `upto`."""
        return portal().run(self._conversations.fork, session_id, new_session_id, upto=upto)

    def delete(self, session_id: str) -> bool:
        """Delete a session and its messages; its state stays."""
        return portal().run(self._conversations.delete, session_id)

    def purge_expired(self, *, limit: int = 1000) -> int:
        """Free the space of what has expired."""
        return portal().run(self._conversations.purge_expired, limit=limit)


class SyncStates:
    """`States` for code that doesn't await."""

    def __init__(self, states: States) -> None:
        self._states = states

    def app(self) -> SyncState:
        """Give the state of the whole application (within its tenant)."""
        return SyncState(self._states.app())

    def user(self, user_id: str) -> SyncState:
        """Give the state of one user."""
        return SyncState(self._states.user(user_id))

    def session(self, session_id: str) -> SyncState:
        """Give the state of one session."""
        return SyncState(self._states.session(session_id))


class SyncState:
    """`State` for code that doesn't await."""

    def __init__(self, state: State) -> None:
        self._state = state

    def get(self, key: str) -> Versioned | None:
        """Read one value."""
        return portal().run(self._state.get, key)

    def put(
        self,
        key: str,
        value: Any,  # noqa: ANN401 - any JSON
        *,
        expect: int | None = None,
        ttl: float | None = None,
    ) -> Versioned:
        """Write one value, and give it with its new version."""
        return portal().run(self._state.put, key, value, expect=expect, ttl=ttl)

    def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Delete one value."""
        return portal().run(self._state.delete, key, expect=expect)

    def items(
        self, *, prefix: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Versioned]:
        """List values by key."""
        return portal().run(self._state.items, prefix=prefix, limit=limit, cursor=cursor)
