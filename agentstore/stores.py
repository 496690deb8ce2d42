"""The protocols that a driver implements and that `Database` offers.

The subject is positional, everything else keyword-only.
Absence is `None` or empty; an error is never turned into either.

A store belongs to one tenant, which is set when the store is asked for and is part of every key.
Where `user_id` is given, a session of anybody else, or of nobody, is as if it did not exist.
What has expired is absent from every method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from .types import (
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

__all__ = ["API_VERSION", "ConversationStore", "Driver", "StateStore"]

API_VERSION = 1
"""The version of these protocols; a driver says which one it was written for."""


class ConversationStore(Protocol):
    """The conversations of one tenant."""

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
        """Store messages at the end of a session, all of them or none.

        The session is made with its first messages, in the same transaction; `user_id` and
        `agent` are kept from then.
        A message whose id is stored already, with the same body, is a repeat: it changes nothing
        and is answered with the stored `seq`.
        With another body it is a `ConflictError`, and nothing of the batch is written.

        `ttl` in seconds moves the session's expiry; omitted, it stays.
        `expect_seq` is the `seq` of the last message that the caller knows, 0 for an empty
        session: where another has come since, `ConflictError`.
        A session of another user is a `ConflictError` too.

        `seq` rises in the order of commits, and never comes again, not after `rewind` either.
        """

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
        """Read messages, oldest first.

        `first` or `last` says how many, from which end; `after` and `before` are exclusive bounds
        of `seq`, so that pages follow one another without gap or repeat.

        `last` without bounds is a window for a model: it never begins with a tool's result whose
        call is outside, but is widened to hold the whole exchange.
        `max_tokens` makes a window of the newest messages that fit, exchange by exchange; the
        newest exchange comes always.
        """

    async def get(self, session_id: str, *, user_id: str | None = None) -> Session | None:
        """Tell what is known of a session."""

    async def update(
        self,
        session_id: str,
        *,
        title: str | None | UnsetType = UNSET,
        metadata: dict[str, Any] | UnsetType = UNSET,
        ttl: float | None | UnsetType = UNSET,
    ) -> Session | None:
        """Replace what is given of a session; `ttl=None` makes it last for ever.

        The session as it is then, or `None` where there is no such session.
        """

    async def sessions(
        self,
        *,
        user_id: str | None = None,
        prefix: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Session]:
        """List sessions: newest first, or by id where `prefix` is given (`""` for all).

        Newest is by an `updated_at` that may lag a minute, ties by id.
        A session that is touched while one pages may be missed; none is on one page twice.
        """

    async def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        limit: int = 20,
    ) -> list[Hit]:
        """Find messages by their words, the best match first."""

    async def replace(
        self,
        session_id: str,
        message_id: str,
        *,
        content: str | list[Any] | None,
        metadata: dict[str, Any] | UnsetType = UNSET,
    ) -> bool:
        """Put other content in the place of one message's: to redact it, or to annotate it.

        Its id and `seq` stay.
        What was there is gone from the store; appending the old body again is a conflict.
        False where there is no such message.
        """

    async def rewind(self, session_id: str, *, to: int) -> int:
        """Drop every message behind `seq` `to`, and tell how many they were."""

    async def fork(
        self, session_id: str, new_session_id: str, *, upto: int | None = None
    ) -> Session:
        """Copy a session under a new id, up to and with `seq` `upto`, in one transaction.

        The copies keep their ids and their `seq`.
        `ConflictError` where the new id is taken, or where there is nothing to fork.
        """

    async def delete(self, session_id: str) -> bool:
        """Delete a session and its messages; false where there was none."""

    async def purge_expired(self, *, limit: int = 1000) -> int:
        """Free the space of what has expired, at most `limit` sessions and values of state."""


class StateStore(Protocol):
    """The state of one scope: of the application, of one user or of one session."""

    async def get(self, key: str) -> Versioned | None:
        """Read one value."""

    async def put(
        self,
        key: str,
        value: Any,  # noqa: ANN401 - any JSON
        *,
        expect: int | None = None,
        ttl: float | None = None,
    ) -> Versioned:
        """Write one value, and give it with its new version.

        With `expect`, only where the stored version is that one, or where nothing is stored for
        `expect=0`; otherwise `ConflictError`: of several at once exactly one wins.
        `ttl` in seconds; omitted, the value lasts for ever.
        """

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Delete one value; false where there was none (and `expect` was not given)."""

    async def items(
        self, *, prefix: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Versioned]:
        """List values by key."""


@runtime_checkable
class Driver(Protocol):
    """What an entry point of the group `agentstore.drivers` names.

    It is called with the `URL` and with the options that are meant for it.
    Nothing touches the network or the disk before `open`.
    """

    api_version: int

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do; final once it is open."""

    def conversations(self, tenant: str) -> ConversationStore:
        """Give the conversations of a tenant; costs nothing."""

    def state(self, tenant: str, scope: Scope) -> StateStore:
        """Give the state of a scope; costs nothing."""

    async def open(self) -> None:
        """Connect, and bring the schema up to date."""

    async def close(self) -> None:
        """Finish what was begun, and let go of everything that `open` took."""

    async def ping(self) -> None:
        """Ask the backend for a sign of life, or raise."""
