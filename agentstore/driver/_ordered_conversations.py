"""Conversations in an ordered engine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, UnsetType, structs

from ..errors import ConflictError, UnsupportedError
from ..types import AppendResult, Durability, History, Hit, Message, Page, Session
from ._clock import TOMBSTONE_AGE
from ._cursor import decode_cursor, encode_cursor
from ._keys import key_hash
from ._operation import operation_id
from ._ordered_keys import (
    BY_ID,
    DIGITS,
    EXPIRY,
    GRAVES,
    NEWEST,
    SESSION,
    Batch,
    due,
    expiry,
    names,
    page,
)
from ._ordered_session import Kept, Record, backwards, listing
from ._ordered_state import Slot
from ._plan import plan_append
from ._window import read_messages

if TYPE_CHECKING:
    from ._ordered import OrderedDriver


class OrderedConversations:
    """The conversations of one tenant in an ordered engine."""

    def __init__(self, driver: OrderedDriver, tenant: str) -> None:
        self._driver = driver
        self._tenant = tenant

    def _kept(self, tx: Batch, session_id: str) -> Kept:
        return Kept(tx, self._tenant, key_hash(self._tenant, session_id))

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
        durable = self._driver.capabilities.durability != "none"

        def work(tx: Batch) -> AppendResult:
            kept = self._kept(tx, session_id)
            record = kept.live()
            if record is not None and user_id is not None and user_id != record.user_id:
                raise ConflictError("the session belongs to another user")
            record = record or kept.begin(session_id, user_id, agent)
            plan = plan_append(
                messages,
                find=kept.known,
                next_seq=record.next_seq,
                last_seq=0 if expect_seq is None else kept.last_seq(record),
                expect_seq=expect_seq,
            )
            kept.put(plan.rows)
            kept.touch(
                structs.replace(
                    record,
                    count=record.count + len(plan.rows),
                    next_seq=record.next_seq + len(plan.rows),
                    expires=record.expires if ttl is None else expiry(ttl),
                )
            )
            return plan.result(Durability.COMMITTED if durable else Durability.BUFFERED)

        return await self._driver._change(work)

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
            def work(tx: Batch) -> list[Message]:
                kept = self._kept(tx, session_id)
                if kept.live(user_id) is None:
                    return []
                rows = kept.rows(after=after, before=before, limit=limit, newest=newest)
                return [row.message() for row in rows]

            return await self._driver._look(work)

        messages = await read_messages(
            fetch, first=first, last=last, before=before, after=after, max_tokens=max_tokens
        )
        return History(messages)

    async def get(self, session_id: str, *, user_id: str | None = None) -> Session | None:
        """Tell what is known of a session."""
        record = await self._driver._look(lambda tx: self._kept(tx, session_id).live(user_id))
        return None if record is None else record.shown(self._tenant)

    async def update(
        self,
        session_id: str,
        *,
        title: str | None | UnsetType = UNSET,
        metadata: dict[str, Any] | UnsetType = UNSET,
        ttl: float | None | UnsetType = UNSET,
    ) -> Session | None:
        """Replace what is given of a session."""
        given = {"title": title, "metadata": metadata}
        changes = {name: value for name, value in given.items() if value is not UNSET}

        def work(tx: Batch) -> Record | None:
            kept = self._kept(tx, session_id)
            record = kept.live()
            if record is None:
                return None
            expires = record.expires if ttl is UNSET else expiry(ttl)
            return kept.touch(structs.replace(record, expires=expires, **changes))

        record = await self._driver._change(work)
        return None if record is None else record.shown(self._tenant)

    async def sessions(
        self,
        *,
        user_id: str | None = None,
        prefix: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Session]:
        """List sessions."""
        newest = prefix is None
        # Where the session's id begins in a name of the index.
        space, cut = (NEWEST, DIGITS) if newest else (BY_ID, 0)
        index = space + listing(self._tenant, user_id)
        after = "" if cursor is None else _place(cursor, newest=newest)
        found, more = await self._driver._look(
            lambda tx: page(
                names(tx, index, prefix=prefix or "", after=after),
                lambda name: self._kept(tx, name[cut:]).live(),
                limit,
            )
        )
        return Page(
            [record.shown(self._tenant) for record in found],
            cursor=_cursor(found[-1], newest=newest) if more else None,
        )

    async def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        limit: int = 20,
    ) -> list[Hit]:
        """Refuse: there is no index of words here."""
        raise UnsupportedError("this store has no search")

    async def replace(
        self,
        session_id: str,
        message_id: str,
        *,
        content: str | list[Any] | None,
        metadata: dict[str, Any] | UnsetType = UNSET,
    ) -> bool:
        """Put other content in the place of one message's."""

        def work(tx: Batch) -> bool:
            kept = self._kept(tx, session_id)
            row = kept.row(message_id) if kept.live() else None
            if row is None:
                return False
            kept.put([row.replaced(content, metadata)])
            return True

        return await self._driver._change(work)

    async def rewind(self, session_id: str, *, to: int) -> int:
        """Drop every message behind `seq` `to`."""
        operation = operation_id()

        def work(tx: Batch) -> int:
            kept = self._kept(tx, session_id)
            record = kept.live()
            if record is None:
                return 0
            if record.operation != operation:
                rows = kept.rows(after=to)
                kept.drop(rows)
                record = kept.save(
                    structs.replace(
                        record,
                        count=record.count - len(rows),
                        operation=operation,
                        dropped=len(rows),
                    )
                )
            return record.dropped

        return await self._driver._change(work)

    async def fork(
        self, session_id: str, new_session_id: str, *, upto: int | None = None
    ) -> Session:
        """Copy a session under a new id."""
        operation = operation_id()

        def work(tx: Batch) -> Record:
            source, kept = self._kept(tx, session_id), self._kept(tx, new_session_id)
            original, taken = source.live(), kept.live()
            if taken is not None and taken.operation == operation:
                return taken
            if original is None:
                raise ConflictError(f"no session {session_id!r} to fork")
            if taken is not None:
                raise ConflictError("the new id is taken")
            rows = source.rows(before=None if upto is None else upto + 1)
            record = kept.begin(new_session_id, original.user_id, original.agent)
            kept.put(rows)
            return kept.save(
                structs.replace(
                    record,
                    title=original.title,
                    metadata=original.metadata,
                    expires=original.expires,
                    operation=operation,
                    count=len(rows),
                    next_seq=max([record.next_seq, *(row.seq + 1 for row in rows[-1:])]),
                )
            )

        record = await self._driver._change(work)
        return record.shown(self._tenant)

    async def delete(self, session_id: str) -> bool:
        """Delete a session and its messages."""
        operation = operation_id()

        def work(tx: Batch) -> bool:
            kept = self._kept(tx, session_id)
            if kept.record is not None and kept.record.operation == operation:
                return True
            if kept.live() is None:
                return False
            kept.bury(operation)
            return True

        return await self._driver._change(work)

    async def purge_expired(self, *, limit: int = 1000) -> int:
        """Free the space of what has expired."""
        tenant = self._tenant

        def work(tx: Batch) -> int:
            past = list(islice(due(tx, EXPIRY + key_hash(tenant)), limit))
            graves = list(islice(due(tx, GRAVES + key_hash(tenant), age=TOMBSTONE_AGE), limit))
            for key in past:
                if key.startswith(SESSION):
                    Kept(tx, tenant, key[1:]).bury()
                else:
                    Slot(tx, tenant, key[1:]).remove()
            for key in graves:
                Kept(tx, tenant, key[1:]).forget()
            return len(past)

        return await self._driver._change(work)


def _cursor(record: Record, *, newest: bool) -> str:
    return encode_cursor(*(record.touched,) * newest, record.session_id)


def _place(cursor: str, *, newest: bool) -> str:
    """Give the name of the session after which a listing goes on."""
    if not newest:
        return str(decode_cursor(cursor, str)[0])
    touched, session_id = decode_cursor(cursor, int, str)
    return backwards(touched) + str(session_id)
