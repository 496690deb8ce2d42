"""Rows of sessions: found, begun, changed and buried, within a transaction."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection

from agentstore.driver import TOUCH_INTERVAL, from_micros, load
from agentstore.types import Session

from ._statement import Statement
from ._statements import DELETED, Statements


class SessionRow(NamedTuple):
    """A session as it is stored, and when it was looked at; in the order of the columns."""

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
    now: int

    @property
    def alive(self) -> bool:
        """Whether it is there for its user: neither expired nor deleted."""
        return self.expires_at is None or self.expires_at > self.now

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

    @property
    def touched(self) -> int:
        """The `updated_at` that a change leaves."""
        return self.now if self.now - self.updated_at >= TOUCH_INTERVAL else self.updated_at

    def after(self, ttl: float | None) -> int | None:
        """Give the `expires_at` that lies so many seconds ahead."""
        return None if ttl is None else self.now + round(ttl * 1_000_000)


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

    def deleted_by(self, operation: str, session_id: str) -> bool:
        """Tell whether it was this operation that deleted the session."""
        row = self._row(self._statements.find, session_id)
        return row is not None and row.expires_at == DELETED and row.operation == operation

    def begin(self, session_id: str, **columns: Any) -> SessionRow:
        """Make a session, or make it anew: its `seq` goes on where it was.

        Where another transaction made it meanwhile, it is that one which is given, and locked.
        """
        values = {
            "user_id": None,
            "agent": None,
            "title": None,
            "metadata": "{}",
            "expires_at": None,
            "last_seq": 0,
            "message_count": 0,
            "operation": "",
            "dropped": 0,
        } | columns
        self._statements.create.run(
            self._connection, tenant=self._tenant, session_id=session_id, next_seq=1, **values
        )
        row = self._held(session_id)
        if row.alive:
            return row
        self._statements.cut.run(self._connection, session=row.pk, to=0)
        if row.expires_at == DELETED:
            # A delete that comes again knows itself by this, and spares the new session.
            values["operation"] = values["operation"] or row.operation
        self._statements.begin_anew.run(self._connection, session=row.pk, **values)
        return self._held(session_id)

    def bury(self, row: SessionRow, *, operation: str) -> None:
        """Delete a session, but for what the next one under its id has to know."""
        self._statements.cut.run(self._connection, session=row.pk, to=0)
        self._statements.bury.run(self._connection, session=row.pk, operation=operation)

    def _held(self, session_id: str) -> SessionRow:
        row = self._row(self._statements.hold, session_id)
        assert row is not None  # noqa: S101 - it was inserted, here or elsewhere
        return row

    def _row(self, statement: Statement, session_id: str) -> SessionRow | None:
        rows = statement.rows(self._connection, tenant=self._tenant, session_id=session_id)
        return SessionRow(*rows[0]) if rows else None


def _alive(row: SessionRow | None) -> SessionRow | None:
    return row if row is not None and row.alive else None
