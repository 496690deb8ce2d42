"""One session in an ordered engine, within one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import msgspec
from msgspec import structs

from ..types import Session
from ._clock import TOUCH_INTERVAL, from_micros, now
from ._keys import key_hash
from ._ordered_keys import (
    BY_ID,
    EXPIRY,
    GRAVES,
    ID,
    MESSAGE,
    NEWEST,
    SESSION,
    Batch,
    Names,
    digits,
    end,
    is_past,
    parse,
    reindex,
)
from ._plan import Known
from ._rows import Row


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A session as it is stored, or what is left of it as a tombstone.

    `operation` is the last call that made, cut or deleted it, `dropped` what that call answered.
    """

    session_id: str
    created: int
    touched: int
    next_seq: int = 1
    count: int = 0
    user_id: str | None = None
    agent: str | None = None
    title: str | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    expires: int | None = None
    deleted: int | None = None
    operation: str = ""
    dropped: int = 0

    def shown(self, tenant: str) -> Session:
        """Give what a caller sees of it."""
        return Session(
            session_id=self.session_id,
            tenant=tenant,
            user_id=self.user_id,
            agent=self.agent,
            title=self.title,
            metadata=self.metadata,
            created_at=from_micros(self.created),
            updated_at=from_micros(self.touched),
            expires_at=None if self.expires is None else from_micros(self.expires),
            message_count=self.count,
        )


def backwards(moment: int) -> str:
    """Write a moment so that the latest sorts first."""
    return digits(2**63 - 1 - moment)


def listing(tenant: str, user_id: str | None) -> bytes:
    """Say where the sessions of a tenant, or of one user in it, are listed."""
    return key_hash(tenant) if user_id is None else key_hash(tenant, user_id)


class Kept:
    """What is kept of one session."""

    def __init__(self, tx: Batch, tenant: str, place: bytes) -> None:
        self._tx = tx
        self._tenant = tenant
        self._key = SESSION + place
        self._rows = MESSAGE + place
        self._ids = ID + place
        self.record = tx.load(self._key, Record)

    def live(self, user_id: str | None = None) -> Record | None:
        """Give the record, unless the session is deleted, expired or another user's."""
        record = self.record
        if record is None or record.deleted is not None or is_past(record.expires):
            return None
        return None if user_id is not None and user_id != record.user_id else record

    def begin(self, session_id: str, user_id: str | None, agent: str | None) -> Record:
        """Make the record of a new session, whose `seq` goes on where it was."""
        before = self.record
        if before is not None:
            self._clear()
        moment = now()
        return Record(
            session_id=session_id,
            created=moment,
            touched=moment,
            next_seq=before.next_seq if before else 1,
            user_id=user_id,
            agent=agent,
            # A delete that comes again knows itself by its operation, and spares the new session.
            operation=before.operation if before and before.deleted else "",
        )

    def save(self, record: Record) -> Record:
        """Store the record; what it is found by follows it."""
        reindex(self._tx, self._names(self.record), self._names(record))
        self._tx.put(self._key, record)
        return record

    def touch(self, record: Record) -> Record:
        """Store the record as that of a session that has changed now."""
        moment = now()
        if moment - record.touched >= TOUCH_INTERVAL:
            record = structs.replace(record, touched=moment)
        return self.save(record)

    def bury(self, operation: str = "") -> None:
        """Leave no more of the session than a tombstone."""
        record = self.record
        if record is not None:
            self._clear()
            self.save(
                Record(
                    session_id=record.session_id,
                    created=record.created,
                    touched=record.touched,
                    next_seq=record.next_seq,
                    deleted=now(),
                    operation=operation,
                )
            )

    def forget(self) -> None:
        """Remove the tombstone."""
        reindex(self._tx, self._names(self.record), set())
        self._tx.delete(self._key)

    def rows(
        self,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
        newest: bool = False,
    ) -> list[Row]:
        """Give up to `limit` rows between two exclusive bounds, from one end of them."""
        start = self._row(0 if after is None else after + 1)
        stop = end(self._rows) if before is None else self._row(before)
        found = islice(self._tx.scan(start, stop, reverse=newest), limit)
        rows = [parse(text, Row) for _, text in found]
        return rows[::-1] if newest else rows

    def last_seq(self, record: Record) -> int:
        """Tell the `seq` of the newest message, 0 where there is none."""
        # By the record: what is left of an expired session still waits for its deletion.
        return self.rows(limit=1, newest=True)[0].seq if record.count else 0

    def known(self, message_id: str) -> Known | None:
        """Look a message up by its id."""
        return self._tx.load(self._id(message_id), tuple[int, bytes])

    def row(self, message_id: str) -> Row | None:
        """Read a message by its id."""
        known = self.known(message_id)
        return None if known is None else self._tx.load(self._row(known[0]), Row)

    def put(self, rows: Sequence[Row]) -> None:
        """Store rows, over those that have their `seq`."""
        for row in rows:
            self._tx.put(self._row(row.seq), row)
            self._tx.put(self._id(row.id), (row.seq, row.digest))

    def drop(self, rows: Sequence[Row]) -> None:
        """Delete rows."""
        for row in rows:
            self._tx.delete(self._row(row.seq))
            self._tx.delete(self._id(row.id))

    def _clear(self) -> None:
        self._tx.clear(self._rows)
        self._tx.clear(self._ids)

    def _row(self, seq: int) -> bytes:
        return self._rows + digits(seq).encode()

    def _id(self, message_id: str) -> bytes:
        return self._ids + key_hash(message_id)

    def _names(self, record: Record | None) -> Names:
        if record is None:
            return set()
        tenant = key_hash(self._tenant)
        if record.deleted is not None:
            return {(GRAVES + tenant, digits(record.deleted) + self._key.hex())}
        found = set()
        for owner in (tenant, listing(self._tenant, record.user_id)):
            found.add((BY_ID + owner, record.session_id))
            found.add((NEWEST + owner, backwards(record.touched) + record.session_id))
        if record.expires is not None:
            found.add((EXPIRY + tenant, digits(record.expires) + self._key.hex()))
        return found
