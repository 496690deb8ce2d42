"""Every statement that the stores run, compiled for one dialect."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ClauseElement,
    ColumnElement,
    Select,
    Table,
    delete,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy import bindparam as p
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine.interfaces import Dialect

from agentstore.driver import TOMBSTONE_AGE

from ._statement import Statement
from ._tables import Tables


class Statements:
    """The statements over one set of tables; parameters are named as the columns are.

    The time is the server's, where there is one: each statement asks for it itself.
    """

    def __init__(self, tables: Tables, dialect: Dialect) -> None:
        self.tables = tables
        self._dialect = dialect
        sessions = tables.sessions.c
        self.now = _clock(dialect)
        self._session = (*sessions, self.now.label("now"))
        self._this = (sessions.tenant == p("tenant"), sessions.session_id == p("session_id"))
        self._owned = sessions.user_id == p("user_id")
        self._sessions()
        self._listings()
        self._messages()
        self._slices()
        self._state()

    def _ready(self, clause: ClauseElement) -> Statement:
        return Statement(clause, self._dialect)

    def _sessions(self) -> None:
        table, sessions = self.tables.sessions, self.tables.sessions.c
        change = update(table).where(sessions.pk == p("session"))
        this = select(*self._session).where(*self._this)
        self.find = self._ready(this)
        # SQLite has no row locks and needs none: its transactions begin with the file's.
        self.hold = self._ready(this.with_for_update())
        self.create = self._ready(
            self._insert_or_nothing(table, "pk", created_at=self.now, updated_at=self.now)
        )
        self.begin_anew = self._ready(
            change.values(
                _all(table, "pk", "tenant", "session_id", "next_seq")
                | {"created_at": self.now, "updated_at": self.now}
            )
        )
        self.set_ends = self._ready(
            change.values(
                next_seq=p("next_seq"),
                last_seq=p("last_seq"),
                message_count=p("message_count"),
            )
        )
        # Apart from the ends, because these are in indexes: SQLite writes an index again with every
        # change of its columns, to the same values too.
        self.touch = self._ready(
            change.values(updated_at=p("updated_at"), expires_at=p("expires_at"))
        )
        self.set_words = self._ready(
            change.values(
                title=p("title"),
                metadata=p("metadata"),
                updated_at=p("updated_at"),
                expires_at=p("expires_at"),
            )
        )
        self.set_rewound = self._ready(
            change.values(
                last_seq=p("last_seq"),
                message_count=sessions.message_count - p("dropped"),
                operation=p("operation"),
                dropped=p("dropped"),
            )
        )
        # Nothing of its owner's stays; `created_at` says when it was deleted, and the end of the
        # listings is where nobody looks.
        self.bury = self._ready(
            change.values(
                user_id=null(),
                agent=null(),
                title=null(),
                metadata=literal_column("'{}'"),
                created_at=self.now,
                updated_at=literal_column("0"),
                expires_at=literal_column(str(DELETED)),
                last_seq=literal_column("0"),
                message_count=literal_column("0"),
                operation=p("operation"),
            )
        )
        of_tenant = sessions.tenant == p("tenant")
        self.level_graves = self._ready(
            delete(table).where(
                of_tenant,
                sessions.expires_at == literal_column(str(DELETED)),
                sessions.created_at <= self.now - literal_column(str(TOMBSTONE_AGE)),
            )
        )
        self.expired = self._ready(
            select(*self._session)
            .where(
                of_tenant,
                sessions.expires_at > literal_column(str(DELETED)),
                sessions.expires_at <= self.now,
            )
            .limit(p("limit"))
        )

    def _insert_or_nothing(
        self, table: Table, *without: str, **given: ColumnElement[Any]
    ) -> ClauseElement:
        """Make an insert that leaves a row alone that another transaction made first."""
        values = _all(table, *without) | given
        if self._dialect.name == "postgresql":
            return postgresql.insert(table).values(values).on_conflict_do_nothing()
        if self._dialect.name == "sqlite":
            return sqlite.insert(table).values(values).on_conflict_do_nothing()
        # Not INSERT IGNORE: that cuts values to fit, too.
        first = next(iter(table.primary_key))
        return mysql.insert(table).values(values).on_duplicate_key_update({first.name: first})

    def _listings(self) -> None:
        """One for each combination: an OR over what may be absent would leave the index unused."""
        sessions = self.tables.sessions.c
        newest = (sessions.updated_at.desc(), sessions.session_id)
        # The first term says where the index is entered; the second alone is read from its start.
        # The first page has both too, with the greatest time: without a bound, SQLite would rather
        # sort the whole table once it has been analyzed.
        behind = (
            sessions.updated_at <= p("updated_at"),
            or_(
                sessions.updated_at < p("updated_at"),
                (sessions.updated_at == p("updated_at")) & (sessions.session_id > p("behind")),
            ),
        )
        alive = select(*self._session).where(
            sessions.tenant == p("tenant"), self._alive(sessions.expires_at)
        )
        self.newest: dict[bool, Statement] = {}
        self.by_id: dict[bool, Statement] = {}
        for of_user in (False, True):
            listed = alive.where(self._owned) if of_user else alive
            page = self._by(listed, "sessions_user" if of_user else "sessions_newest")
            page = page.where(*behind).order_by(*newest).limit(p("limit"))
            if self._dialect.name == "postgresql" and not of_user:
                # What its index says of itself: what was deleted has 0.
                page = page.where(sessions.updated_at > literal_column("0"))
            self.newest[of_user] = self._ready(page)
            self.by_id[of_user] = self._ready(
                self._by(listed, "sessions_id")
                .where(
                    sessions.session_id >= p("start"),
                    sessions.session_id > p("behind"),
                    sessions.session_id < p("stop"),
                )
                .order_by(sessions.session_id)
                .limit(p("limit"))
            )

    def _by(self, clause: Select[Any], index: str) -> Select[Any]:
        """Say the index where MySQL would rather take the one of expiry, and sort.

        It does so with few sessions, or with statistics from when there were few.
        """
        hint = f"FORCE INDEX ({self.tables.prefix}{index})"
        return clause.with_hint(self.tables.sessions, hint, "mysql")

    def _messages(self) -> None:
        table, messages = self.tables.messages, self.tables.messages.c
        within = messages.session_pk == p("session")
        last_seq = func.coalesce(func.max(messages.seq), literal_column("0"))
        self.find_message = self._ready(
            select(messages.seq, messages.digest).where(within, messages.id == p("id"))
        )
        self.message = self._ready(select(*self._row).where(within, messages.id == p("id")))
        self.add = self._ready(insert(table).values(_all(table)))
        self.put = self._ready(
            update(table)
            .where(within, messages.seq == p("at"))
            .values(body=p("body"), digest=p("digest"))
        )
        self.cut = self._ready(delete(table).where(within, messages.seq > p("to")))
        self.last = self._ready(select(last_seq).where(within))
        self.count = self._ready(select(func.count(), last_seq).where(within))
        copied = select(p("copy", type_=messages.session_pk.type), *self._row)
        self.copy = self._ready(
            insert(table).from_select(
                [column.name for column in table.c],
                copied.where(within, messages.seq <= p("upto")),
            )
        )

    def _slices(self) -> None:
        """Find the session in the same statement: a read is one round trip."""
        messages = self.tables.messages.c
        sessions = self.tables.sessions.c
        whose = select(sessions.pk).where(*self._this, self._alive(sessions.expires_at))
        owned = self._owned
        if self._dialect.name == "postgresql":
            # Which no index serves: without statistics, it would look among all the user's.
            owned = sessions.user_id.is_not_distinct_from(p("user_id"))
        self.slices: dict[tuple[bool, bool], Statement] = {}
        for of_user in (False, True):
            session = whose.where(owned) if of_user else whose
            between = select(*self._row).where(
                messages.session_pk == session.scalar_subquery(),
                messages.seq > p("after"),
                messages.seq < p("before"),
            )
            for backwards in (False, True):
                order = messages.seq.desc() if backwards else messages.seq
                self.slices[of_user, backwards] = self._ready(
                    between.order_by(order).limit(p("limit"))
                )

    def _state(self) -> None:
        table, state = self.tables.state, self.tables.state.c
        scope = (
            state.tenant == p("tenant"),
            state.scope == p("scope"),
            state.owner == p("owner"),
        )
        this = (*scope, state.key == p("key"))
        self.draw, self.drawn = self._versions()
        value = select(state.value, state.version, state.expires_at, state.operation, self.now)
        self.value = self._ready(value.where(*this))
        self.hold_value = self._ready(value.where(*this).with_for_update())
        expires_at = self.now + p("ttl", type_=BigInteger)
        self.insert_value = self._ready(self._insert_or_nothing(table, expires_at=expires_at))
        self.set_value = self._ready(
            update(table)
            .where(*this)
            .values(
                value=p("value"),
                version=p("version"),
                expires_at=expires_at,
                operation=p("operation"),
            )
        )
        self.remove_value = self._ready(delete(table).where(*this))
        self.values = self._ready(
            select(state.key, state.value, state.version)
            .where(
                *scope,
                self._alive(state.expires_at),
                state.key >= p("start"),
                state.key > p("behind"),
                state.key < p("stop"),
            )
            .order_by(state.key)
            .limit(p("limit"))
        )
        self.expired_values = self._ready(
            select(state.scope, state.owner, state.key)
            .where(state.tenant == p("tenant"), state.expires_at <= self.now)
            .limit(p("limit"))
        )

    def _alive(self, expires_at: ColumnElement[Any]) -> ColumnElement[bool]:
        return or_(expires_at.is_(None), expires_at > self.now)

    def _versions(self) -> tuple[Statement | None, Statement]:
        """Draw a version: where there is no sequence, by a change that is read afterwards."""
        if self.tables.versions is not None:
            return None, self._ready(select(self.tables.versions.next_value()))
        if self.tables.numbers is not None:
            # Nobody waits for anybody, as all would for one row to count in.
            name = self._dialect.identifier_preparer.format_table(self.tables.numbers)
            return self._ready(text(draw_number(name))), self._ready(select(func.last_insert_id()))
        assert self.tables.counters is not None  # noqa: S101 - one or the other
        counters = self.tables.counters
        counter = counters.c.name == p("counter")
        return (
            self._ready(
                update(counters).where(counter).values(value=counters.c.value + literal_column("1"))
            ),
            self._ready(select(counters.c.value).where(counter)),
        )

    @property
    def _row(self) -> tuple[ColumnElement[Any], ...]:
        """The columns of a message in the order of `agentstore.driver.Row`."""
        c = self.tables.messages.c
        return (c.seq, c.id, c.digest, c.body, c.tokens, c.created_at)


DELETED = 0
"""The `expires_at` of a session that was deleted."""

AFTER_ALL = "\U0010ffff" * 129
"""Greater than every id: one more of the greatest character than 512 bytes have room for."""


def draw_number(table: str) -> str:
    """Have MySQL give LAST_INSERT_ID() a number that it gave to nobody before."""
    return f"INSERT INTO {table} () VALUES ();DELETE FROM {table} WHERE version = LAST_INSERT_ID()"  # noqa: S608


def _clock(dialect: Dialect) -> ColumnElement[Any]:
    """Give the time in microseconds, the same throughout a statement, so that indexes serve it."""
    if dialect.name == "postgresql":
        now = "CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS bigint)"
        return literal_column(now, BigInteger)
    if dialect.name in ("mysql", "mariadb"):
        # Not UNIX_TIMESTAMP(NOW()): that goes by a time zone, where an hour may come twice.
        now = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
        return literal_column(now, BigInteger)
    return p("now", type_=BigInteger)


def _all(table: Table, *without: str) -> dict[str, BindParameter[Any]]:
    return {
        column.name: p(column.name, type_=column.type)
        for column in table.c
        if column.name not in without
    }
