"""Conversations in SQL, the same on every engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from agentstore.driver import (
    Known,
    Row,
    decode_cursor,
    dump,
    encode_cursor,
    operation_id,
    plan_append,
    read_messages,
)
from agentstore.errors import ConflictError, UnsupportedError
from agentstore.types import UNSET, AppendResult, History, Hit, Message, Page, Session, UnsetType

from ._engine import Engine
from ._sessions import SessionRow, Sessions
from ._statement import Statement
from ._statements import AFTER_ALL

_GREATEST = (1 << 63) - 1


class SQLConversations:
    """The conversations of one tenant: each method is one job."""

    def __init__(self, engine: Engine, tenant: str) -> None:
        self._engine = engine
        self._statements = engine.statements
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

        def job(connection: Connection) -> AppendResult:
            sessions = self._sessions(connection)
            row = sessions.hold(session_id)
            if row is None:
                row = sessions.begin(session_id, user_id=user_id, agent=agent)
            if user_id is not None and user_id != row.user_id:
                raise ConflictError("the session belongs to another user")

            def find(message_id: str) -> Known | None:
                found = self._statements.find_message.rows(
                    connection, session=row.pk, id=message_id
                )
                return found[0] if found else None

            plan = plan_append(
                messages,
                find=find,
                next_seq=row.next_seq,
                last_seq=row.last_seq,
                expect_seq=expect_seq,
            )
            expires_at = row.expires_at if ttl is None else row.after(ttl)
            self._add(connection, row, plan.rows, expires_at)
            return plan.result(self._engine.durability)

        return await self._engine.write(job)

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
            rows = await self._rows(
                self._statements.slices[user_id is not None, newest],
                session_id=session_id,
                user_id=user_id,
                after=after or 0,
                before=_GREATEST if before is None else before,
                limit=_GREATEST if limit is None else limit,
            )
            messages = [Row(*row).message() for row in rows]
            return messages[::-1] if newest else messages

        messages = await read_messages(
            fetch, first=first, last=last, before=before, after=after, max_tokens=max_tokens
        )
        return History(messages)

    async def get(self, session_id: str, *, user_id: str | None = None) -> Session | None:
        """Tell what is known of a session."""
        rows = await self._rows(self._statements.find, session_id=session_id)
        row = SessionRow(*rows[0]) if rows else None
        if row is None or not row.alive or (user_id is not None and user_id != row.user_id):
            return None
        return row.shown()

    async def update(
        self,
        session_id: str,
        *,
        title: str | None | UnsetType = UNSET,
        metadata: dict[str, Any] | UnsetType = UNSET,
        ttl: float | None | UnsetType = UNSET,
    ) -> Session | None:
        """Replace what is given of a session."""

        def job(connection: Connection) -> Session | None:
            row = self._sessions(connection).hold(session_id)
            if row is None:
                return None
            row = row._replace(
                title=row.title if title is UNSET else title,
                metadata=row.metadata if metadata is UNSET else dump(metadata),
                expires_at=row.expires_at if ttl is UNSET else row.after(ttl),
                updated_at=row.touched,
            )
            self._statements.set_words.run(
                connection,
                session=row.pk,
                title=row.title,
                metadata=row.metadata,
                updated_at=row.updated_at,
                expires_at=row.expires_at,
            )
            return row.shown()

        return await self._engine.write(job)

    async def sessions(
        self,
        *,
        user_id: str | None = None,
        prefix: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Session]:
        """List sessions."""
        of_user = user_id is not None
        place: dict[str, Any]
        if prefix is None:
            statement = self._statements.newest[of_user]
            updated_at, behind = decode_cursor(cursor, int, str) if cursor else (_GREATEST, "")
            place = {"updated_at": updated_at, "behind": behind}
        else:
            statement = self._statements.by_id[of_user]
            behind = decode_cursor(cursor, str)[0] if cursor else ""
            place = {"start": prefix, "behind": behind, "stop": prefix + AFTER_ALL}
        found = await self._rows(statement, user_id=user_id, limit=limit + 1, **place)
        rows = [SessionRow(*row) for row in found]
        following = None
        if len(rows) > limit:
            tail = rows[limit - 1]
            by_id = prefix is not None
            following = encode_cursor(*((tail.updated_at,) * (not by_id)), tail.session_id)
        return Page([row.shown() for row in rows[:limit]], cursor=following)

    async def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        limit: int = 20,
    ) -> list[Hit]:
        """Refuse: there is no index of words yet."""
        raise UnsupportedError("search is not there yet")

    async def replace(
        self,
        session_id: str,
        message_id: str,
        *,
        content: str | list[Any] | None,
        metadata: dict[str, Any] | UnsetType = UNSET,
    ) -> bool:
        """Put other content in the place of one message's."""

        def job(connection: Connection) -> bool:
            session = self._sessions(connection).hold(session_id)
            if session is None:
                return False
            found = self._statements.message.rows(connection, session=session.pk, id=message_id)
            if not found:
                return False
            row = Row(*found[0]).replaced(content, metadata)
            self._statements.put.run(
                connection, session=session.pk, at=row.seq, body=row.body, digest=row.digest
            )
            return True

        return await self._engine.write(job)

    async def rewind(self, session_id: str, *, to: int) -> int:
        """Drop every message behind `seq` `to`."""
        operation = operation_id()

        def job(connection: Connection) -> int:
            row = self._sessions(connection).hold(session_id)
            if row is None:
                return 0
            if row.operation == operation:
                return row.dropped
            dropped = self._statements.cut.run(connection, session=row.pk, to=to)
            ((last_seq,),) = self._statements.last.rows(connection, session=row.pk)
            self._statements.set_rewound.run(
                connection,
                session=row.pk,
                last_seq=last_seq,
                operation=operation,
                dropped=dropped,
            )
            return dropped

        return await self._engine.write(job)

    async def fork(
        self, session_id: str, new_session_id: str, *, upto: int | None = None
    ) -> Session:
        """Copy a session under a new id."""
        operation = operation_id()

        def job(connection: Connection) -> Session:
            sessions = self._sessions(connection)
            taken = sessions.hold(new_session_id)
            if taken is not None and taken.operation == operation:
                return taken.shown()
            if taken is not None:
                raise ConflictError("the id of the fork is taken")
            source = sessions.hold(session_id)
            if source is None:
                raise ConflictError("there is no such session to fork")
            made = sessions.begin(
                new_session_id,
                user_id=source.user_id,
                agent=source.agent,
                title=source.title,
                metadata=source.metadata,
                expires_at=source.expires_at,
                operation=operation,
            )
            if made.operation != operation:
                raise ConflictError("the id of the fork is taken")
            self._statements.copy.run(
                connection,
                copy=made.pk,
                session=source.pk,
                upto=_GREATEST if upto is None else upto,
            )
            ((count, last_seq),) = self._statements.count.rows(connection, session=made.pk)
            made = made._replace(
                message_count=count,
                last_seq=last_seq,
                next_seq=max(made.next_seq, last_seq + 1),
            )
            self._set_ends(connection, made)
            return made.shown()

        return await self._engine.write(job)

    async def delete(self, session_id: str) -> bool:
        """Delete a session and its messages."""
        operation = operation_id()

        def job(connection: Connection) -> bool:
            sessions = self._sessions(connection)
            row = sessions.hold(session_id)
            if row is None:
                return sessions.deleted_by(operation, session_id)
            if row.operation != operation:
                sessions.bury(row, operation=operation)
            return True

        return await self._engine.write(job)

    async def purge_expired(self, *, limit: int = 1000) -> int:
        """Free the space of what has expired, and forget old tombstones."""

        def job(connection: Connection) -> int:
            sessions = self._sessions(connection)
            self._statements.level_graves.run(connection, tenant=self._tenant)
            rows = self._statements.expired.rows(connection, tenant=self._tenant, limit=limit)
            for row in rows:
                sessions.bury(SessionRow(*row), operation="")
            values = self._statements.expired_values.rows(
                connection, tenant=self._tenant, limit=limit - len(rows)
            )
            for scope, owner, key in values:
                self._statements.remove_value.run(
                    connection, tenant=self._tenant, scope=scope, owner=owner, key=key
                )
            return len(rows) + len(values)

        return await self._engine.write(job)

    async def _rows(self, statement: Statement, **parameters: Any) -> Sequence[Any]:
        """Run one statement that reads."""
        return await self._engine.read(
            lambda connection: statement.rows(connection, tenant=self._tenant, **parameters)
        )

    def _sessions(self, connection: Connection) -> Sessions:
        return Sessions(self._statements, connection, self._tenant)

    def _add(
        self, connection: Connection, session: SessionRow, rows: list[Row], expires_at: int | None
    ) -> None:
        """Insert planned rows, and move the ends of their session."""
        if rows:
            self._statements.add.many(
                connection,
                [
                    {
                        "session_pk": session.pk,
                        "seq": row.seq,
                        "id": row.id,
                        "digest": row.digest,
                        "body": row.body,
                        "tokens": row.tokens,
                        "created_at": row.created,
                    }
                    for row in rows
                ],
            )
        last_seq = rows[-1].seq if rows else session.last_seq
        self._set_ends(
            connection,
            session._replace(
                next_seq=max(session.next_seq, last_seq + 1),
                last_seq=last_seq,
                message_count=session.message_count + len(rows),
            ),
        )
        if (session.touched, expires_at) != (session.updated_at, session.expires_at):
            self._statements.touch.run(
                connection,
                session=session.pk,
                updated_at=session.touched,
                expires_at=expires_at,
            )

    def _set_ends(self, connection: Connection, session: SessionRow) -> None:
        self._statements.set_ends.run(
            connection,
            session=session.pk,
            next_seq=session.next_seq,
            last_seq=session.last_seq,
            message_count=session.message_count,
        )
