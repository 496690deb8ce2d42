"""Rows of sessions: found, begun, changed and buried, within a transaction."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection

from agentstore.driver import TOUCH_INTERVAL, from_micros, load, now
from agentstore.types import Session

from ._statement import Statement
from ._statements import Statements


class SessionRow(NamedTuple):
    """A session as it is stored; the order is that of the table's columns."""

    pk: int
    tenant: str
    session_id: str
    user_id: str | None
    agent: str | None
    title: str | None
    metadata: str
    created_at: int
    updated_at: int
    expires_at: int | None
    next_seq: int
    last_seq: int
    message_count: int
    operation: str
    dropped: int

    def shown(self) -> Session:
        """Give the session as its user sees it."""
        return Session(
            session_id=self.session_id,
            tenant=self.tenant,
            user_id=self.user_id,
            agent=self.agent,
            title=self.title,
            metadata=load(self.metadata),
            created_at=from_micros(self.created_at),
            updated_at=from_micros(self.updated_at),
            expires_at=None if self.expires_at is None else from_micros(self.expires_at),
            message_count=self.message_count,
        )

    def touched(self, moment: int) -> int:
        """Give the `updated_at` that a change at this moment leaves."""
        return moment if moment - self.updated_at >= TOUCH_INTERVAL else self.updated_at


class Sessions:
    """The sessions of one tenant within one transaction."""

    def __init__(self, statements: Statements, connection: Connection, tenant: str) -> None:
        self._statements = statements
        self._connection = connection
        self._tenant = tenant

    def find(self, session_id: str) -> SessionRow | None:
        """Find a session that has not expired, to look at it."""
        return _alive(self._row(self._statements.find, session_id))

    def hold(self, session_id: str) -> SessionRow | None:
        """Find a session that has not expired, and lock it until the transaction ends.

        The lock is what makes `seq` rise in the order of commits.
        """
        return _alive(self._row(self._statements.hold, session_id))

    def grave(self, session_id: str) -> tuple[int, str] | None:
        """Find what is left of a deleted session: its `next_seq`, and the deleting operation."""
        rows = self._statements.find_grave.rows(
            self._connection, tenant=self._tenant, session_id=session_id
        )
        return tuple(rows[0]) if rows else None

    def begin(self, session_id: str, **columns: Any) -> SessionRow:
        """Make a session, or make it anew: its `seq` goes on where it was.

        Where another transaction made it meanwhile, it is that one which is given, and locked.
        """
        expired = self._row(self._statements.hold, session_id)
        if expired is not None:
            self.bury(expired, operation="")
        grave = self.grave(session_id)
        if grave is not None:
            self._statements.exhume.run(
                self._connection, tenant=self._tenant, session_id=session_id
            )
        moment = now()
        values = {
            "tenant": self._tenant,
            "session_id": session_id,
            "user_id": None,
            "agent": None,
            "title": None,
            "metadata": "{}",
            "created_at": moment,
            "updated_at": moment,
            "expires_at": None,
            "next_seq": grave[0] if grave else 1,
            "last_seq": 0,
            "message_count": 0,
            # A delete that comes again knows itself by this, and spares the new session.
            "operation": grave[1] if grave else "",
            "dropped": 0,
        } | columns
        self._statements.create.run(self._connection, **values)
        made = self._row(self._statements.hold, session_id)
        assert made is not None  # noqa: S101 - it was inserted, here or elsewhere
        return made

    def bury(self, row: SessionRow, *, operation: str) -> None:
        """Delete a session, and leave a tombstone."""
        self._statements.drop.run(self._connection, session=row.pk)
        self._statements.bury.run(
            self._connection,
            tenant=self._tenant,
            session_id=row.session_id,
            next_seq=row.next_seq,
            deleted_at=now(),
            operation=operation,
        )

    def _row(self, statement: Statement, session_id: str) -> SessionRow | None:
        rows = statement.rows(self._connection, tenant=self._tenant, session_id=session_id)
        return SessionRow(*rows[0]) if rows else None


def _alive(row: SessionRow | None) -> SessionRow | None:
    expired = row is not None and row.expires_at is not None and row.expires_at <= now()
    return None if expired else row
