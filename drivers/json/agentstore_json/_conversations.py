"""Conversations in JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from agentstore.driver import (
    Row,
    decode_cursor,
    dump,
    encode_cursor,
    operation_id,
    read_messages,
)
from agentstore.errors import ConflictError, UnsupportedError
from agentstore.types import UNSET, AppendResult, History, Hit, Message, Page, Session, UnsetType

from ._catalog import Place
from ._records import Change, after, is_past
from ._session import Append
from ._store import Store
from ._values import purge_values

if TYPE_CHECKING:
    from ._driver import JSONDriver


class JSONConversations:
    """The conversations of one tenant: each method is one piece of work in a thread."""

    def __init__(self, driver: JSONDriver, tenant: str) -> None:
        self._driver = driver
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
        """Store messages at the end of a session."""
        append = Append(messages, user_id, agent, ttl, expect_seq)
        return await self._driver.append((self._tenant, session_id), append)

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

        async def fetch(
            *, after: int | None, before: int | None, limit: int | None, newest: bool
        ) -> list[Message]:
            def work(store: Store) -> list[Message]:
                rows: list[Row] = []
                with store.session(self._tenant, session_id) as session:
                    if session.find(user_id):
                        rows = session.ledger.slice(
                            after=after, before=before, limit=limit, newest=newest
                        )
                return [row.message() for row in rows]

            return await self._driver.run(work)

        messages = await read_messages(
            fetch, first=first, last=last, before=before, after=after, max_tokens=max_tokens
        )
        return History(messages)

    async def get(self, session_id: str, *, user_id: str | None = None) -> Session | None:
        """Tell what is known of a session."""

        def work(store: Store) -> Session | None:
            with store.session(self._tenant, session_id) as session:
                head = session.find(user_id)
                return None if head is None else session.shown(head)

        return await self._driver.run(work)

    async def update(
        self,
        session_id: str,
        *,
        title: str | None | UnsetType = UNSET,
        metadata: dict[str, Any] | UnsetType = UNSET,
        ttl: float | None | UnsetType = UNSET,
    ) -> Session | None:
        """Replace what is given of a session."""

        def work(store: Store) -> Session | None:
            with store.session(self._tenant, session_id) as session:
                head = session.find()
                if head is None:
                    return None
                change = Change(
                    title=title,
                    metadata=UNSET if metadata is UNSET else Raw(dump(metadata).encode()),
                    expires_at=UNSET if ttl is UNSET else after(ttl),
                )
                session.change(head, change)
                store.commit(session)
                return session.shown(head)

        return await self._driver.run(work)

    async def sessions(
        self,
        *,
        user_id: str | None = None,
        prefix: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Session]:
        """List sessions."""
        shape = (int, str) if prefix is None else (str,)
        start: Place = decode_cursor(cursor, *shape) if cursor is not None else ()

        def work(store: Store) -> Page[Session]:
            found: list[tuple[Place, Session]] = []
            behind, more = start, True
            while more and len(found) <= limit:
                wanted = limit + 1 - len(found)
                places = store.catalog.page(self._tenant, user_id, prefix, behind, wanted)
                for place in places:
                    session = _look(store, self._tenant, str(place[-1]), user_id)
                    if session is not None:
                        found.append((place, session))
                    behind = place
                more = len(places) == wanted
            return Page(
                [session for _, session in found[:limit]],
                cursor=encode_cursor(*found[limit - 1][0]) if len(found) > limit else None,
            )

        return await self._driver.run(work)

    async def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        limit: int = 20,
    ) -> list[Hit]:
        """Refuse: there is no index of words here."""
        raise UnsupportedError("JSON files have no search")

    async def replace(
        self,
        session_id: str,
        message_id: str,
        *,
        content: str | list[Any] | None,
        metadata: dict[str, Any] | UnsetType = UNSET,
    ) -> bool:
        """Put other content in the place of one message's."""

        def work(store: Store) -> bool:
            with store.session(self._tenant, session_id) as session:
                row = session.ledger.find(message_id) if session.find() else None
                if row is not None:
                    session.ledger.put(row.replaced(content, metadata))
                    session.rewrite()
                    store.commit(session)
                return row is not None

        return await self._driver.run(work)

    async def rewind(self, session_id: str, *, to: int) -> int:
        """Drop every message behind `seq` `to`."""
        operation = operation_id()

        def work(store: Store) -> int:
            with store.session(self._tenant, session_id) as session:
                head = session.find()
                if head is None:
                    return 0
                if head.operation != operation:
                    head.operation, head.dropped = operation, session.ledger.rewind(to)
                    session.rewrite()
                store.commit(session)
                return head.dropped

        return await self._driver.run(work)

    async def fork(
        self, session_id: str, new_session_id: str, *, upto: int | None = None
    ) -> Session:
        """Copy a session under a new id."""
        operation = operation_id()
        before = None if upto is None else upto + 1

        def work(store: Store) -> Session:
            with store.sessions(self._tenant, session_id, new_session_id) as (source, copy):
                head, made = source.find(), copy.find()
                if made is None or made.operation != operation:
                    if made is not None:
                        raise ConflictError("the id of the fork is taken")
                    if head is None:
                        raise ConflictError("there is no such session to fork")
                    rows = source.ledger.slice(after=None, before=before, limit=None, newest=False)
                    made = copy.begin(
                        user_id=head.user_id,
                        agent=head.agent,
                        title=head.title,
                        metadata=head.metadata,
                        expires_at=head.expires_at,
                        operation=operation,
                    )
                    copy.ledger.add(rows)
                store.commit(copy)
                return copy.shown(made)

        return await self._driver.run(work)

    async def delete(self, session_id: str) -> bool:
        """Delete a session and its messages."""
        operation = operation_id()

        def work(store: Store) -> bool:
            with store.session(self._tenant, session_id) as session:
                if session.head is None or session.head.operation != operation:
                    if session.find() is None:
                        return False
                    session.end(operation)
                store.commit(session)
                return True

        return await self._driver.run(work)

    async def purge_expired(self, *, limit: int = 1000) -> int:
        """Free the space of what has expired, and forget old tombstones."""

        def work(store: Store) -> int:
            done = 0
            due = store.catalog.due(self._tenant)
            for session_id in due:
                if done == limit:
                    break
                done += _purge(store, self._tenant, session_id)
            if due:
                store.catalog.shrink()
            return done + purge_values(store, self._tenant, limit - done)

        return await self._driver.run(work)


def append_together(
    store: Store, key: tuple[str, str], appends: Sequence[Append]
) -> list[AppendResult | Exception]:
    """Carry out appends to one session with one write; a conflict is its own caller's alone."""
    outcomes: list[AppendResult | Exception] = []
    with store.session(*key) as session:
        for append in appends:
            try:
                outcomes.append(session.append(append))
            except ConflictError as conflict:
                outcomes.append(conflict)
        if any(isinstance(outcome, AppendResult) for outcome in outcomes):
            store.commit(session)
    return outcomes


def _look(store: Store, tenant: str, session_id: str, user_id: str | None) -> Session | None:
    """Look into the file of a session that the catalog lists."""
    with store.session(tenant, session_id) as session:
        head = session.find(user_id)
        if head is not None:
            return session.shown(head)
        if session.head is None or session.head.deleted_at is not None:
            store.recheck(session)
        return None


def _purge(store: Store, tenant: str, session_id: str) -> bool:
    """Look at a session that may be due, and tell whether it had expired."""
    with store.session(tenant, session_id) as session:
        head = session.head
        if head is None or head.deleted_at is not None or not is_past(head.expires_at):
            store.recheck(session)
            return False
        session.end()
        store.commit(session)
        return True
