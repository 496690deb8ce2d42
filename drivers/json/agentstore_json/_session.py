"""One session: its file, and what of it this process has in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from msgspec import UNSET
from msgspec.json import encode

from agentstore.driver import TOUCH_INTERVAL, Ledger, load
from agentstore.errors import ConflictError, DataError
from agentstore.types import AppendResult, Message, Session

from ._log import Log
from ._records import CHANGE, HEAD, Change, Head, Line, after, decode, is_past, moment

_TOUCHED = timedelta(microseconds=TOUCH_INTERVAL)
# What replaced titles, metadata and times may take before the file is written anew without them.
_SLACK = 1 << 20


@dataclass(frozen=True, slots=True)
class Append:
    """What one call of `append` asks for."""

    messages: Sequence[Message]
    user_id: str | None
    agent: str | None
    ttl: float | None
    expect_seq: int | None


class SessionFile:
    """A session as its file has it, under the file's lock.

    Changes are made in memory and wait for `commit`. Where that fails, or anything before it,
    memory is ahead of the file: this object is thrown away and the file read again.
    """

    def __init__(self, path: Path, tenant: str, session_id: str) -> None:
        self.tenant = tenant
        self.session_id = session_id
        self.head: Head | None = None
        self.ledger = Ledger()
        # Whether the catalog has to hear of what was changed.
        self.relist = False
        self._log = Log(path)
        self._lines: list[bytes] = []
        self._rewrite = False
        self._dead = 0

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return self._log.end

    def pull(self) -> None:
        """Read what others have written since."""
        anew, lines = self._log.pull()
        if anew:
            self.head, self.ledger, self._dead = None, Ledger(), 0
        for number, line in enumerate(lines, self._log.lines - len(lines) + 1):
            where = f"line {number} of {self._log.path}"
            if self.head is None:
                self.head = self._identified(decode(line, HEAD, where))
                self.ledger = Ledger(self.head.next_seq)
            else:
                self._apply(self.head, decode(line, CHANGE, where), len(line))

    def find(self, user_id: str | None = None) -> Head | None:
        """Give what is known of the session, unless it is absent, or absent for this user."""
        head = self.head
        if head is None or head.deleted_at is not None or is_past(head.expires_at):
            return None
        return None if user_id is not None and user_id != head.user_id else head

    def shown(self, head: Head) -> Session:
        """Give the session as callers see it."""
        return Session(
            session_id=head.session_id,
            tenant=head.tenant,
            user_id=head.user_id,
            agent=head.agent,
            title=head.title,
            metadata=load(bytes(head.metadata)),
            created_at=head.created_at,
            updated_at=head.updated_at,
            expires_at=head.expires_at,
            message_count=len(self.ledger),
        )

    def append(self, given: Append) -> AppendResult:
        """Add messages; a `ConflictError` has changed nothing."""
        head = self.find()
        if head is not None and given.user_id is not None and given.user_id != head.user_id:
            raise ConflictError("the session belongs to another user")
        ledger = self.ledger if head else Ledger(self.ledger.next_seq)
        plan = ledger.plan(given.messages, given.expect_seq)
        if head is None:
            # A delete that comes again knows itself by its operation, and spares the new session.
            operation = self.head.operation if self.head else ""
            head = self.begin(user_id=given.user_id, agent=given.agent, operation=operation)
        expires_at = UNSET if given.ttl is None else after(given.ttl)
        lines = [Line.of(row) for row in plan.rows]
        self.change(head, Change(messages=lines, expires_at=expires_at))
        return plan.result()

    def begin(self, **known: Any) -> Head:
        """Make the session, or make it anew: then its `seq` goes on where it was."""
        self.ledger = Ledger(self.ledger.next_seq)
        now = moment()
        self.head = Head(
            file="",
            tenant=self.tenant,
            session_id=self.session_id,
            created_at=now,
            updated_at=now,
            **known,
        )
        self.relist = self._rewrite = True
        return self.head

    def end(self, operation: str = "") -> None:
        """Leave no more of the session than a tombstone."""
        self.begin(deleted_at=moment(), operation=operation)

    def change(self, head: Head, change: Change) -> None:
        """Make a change that takes a line of its own."""
        now = moment()
        if now - head.updated_at >= _TOUCHED:
            change.updated_at = now
            self.relist = True
        # The catalog has to know when to look for an expired session, and may look too early.
        if change.expires_at and (not head.expires_at or change.expires_at < head.expires_at):
            self.relist = True
        line = encode(change)
        if line != b"{}":
            self._apply(head, change, len(line))
            self._lines.append(line)

    def rewrite(self) -> None:
        """Have the whole file written anew, so that what is no longer in memory is gone."""
        self._rewrite = True

    def commit(self) -> None:
        """Write what was changed, durably; where nothing was, make durable what is there."""
        outgrown = self._dead > max(_SLACK, self._log.end // 2)
        if self.head is not None and (self._rewrite or outgrown):
            self._log.replace(self._snapshot(self.head))
            self._dead = 0
        else:
            self._log.push(self._lines)
        self._lines, self._rewrite, self.relist = [], False, False

    def remove(self) -> None:
        """Remove the file, and with it the memory of where `seq` goes on."""
        self._log.remove()
        self.head = None

    def _identified(self, head: Head) -> Head:
        if (head.tenant, head.session_id) != (self.tenant, self.session_id):
            raise DataError(f"{self._log.path} holds another session: was it moved?")
        return head

    def _apply(self, head: Head, change: Change, size: int) -> None:
        for name in ("updated_at", "expires_at", "title", "metadata"):
            value = getattr(change, name)
            if value is not UNSET:
                setattr(head, name, value)
        self.ledger.add([line.row() for line in change.messages])
        if not change.messages:
            self._dead += size

    def _snapshot(self, head: Head) -> list[bytes]:
        head.file, head.next_seq = uuid4().hex, self.ledger.next_seq
        rows = (Change(messages=[Line.of(row)]) for row in self.ledger.rows)
        return [encode(head), *map(encode, rows)]
