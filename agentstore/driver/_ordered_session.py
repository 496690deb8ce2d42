"""One session in an ordered engine, within one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import msgspec

from ..types import Message, Session
from ._clock import TOUCH_INTERVAL, from_micros, now
from ._keys import key_hash
from ._ledger import Ledger
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

    def with_(self, **changes: Any) -> Record:
        """Give the record with something changed."""
        return msgspec.structs.replace(self, **changes)

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


def newest(moment: int) -> str:
    """Write a moment so that the latest sorts first."""
    return digits(2**63 - 1 - moment)


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
        )

    def save(self, record: Record) -> None:
        """Store the record; its indexes follow it."""
        reindex(self._tx, self._names(self.record), self._names(record))
        self._tx.put(self._key, record)

    def touch(self, record: Record) -> None:
        """Store the record as that of a session that has changed now."""
        moment = now()
        if moment - record.touched >= TOUCH_INTERVAL:
            record = record.with_(touched=moment)
        self.save(record)
