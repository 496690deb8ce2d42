"""Every statement that the stores run, compiled for one dialect."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BindParameter,
    ClauseElement,
    ColumnElement,
    Table,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy import bindparam as p
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine.interfaces import Dialect

from ._statement import Statement
from ._tables import Tables


class Statements:
    """The statements over one set of tables; parameters are named as the columns are."""

    def __init__(self, tables: Tables, dialect: Dialect) -> None:
        self.tables = tables
        self._dialect = dialect
        sessions = tables.sessions.c
        self._session = tuple(sessions)
        self._this = (sessions.tenant == p("tenant"), sessions.session_id == p("session_id"))
        self._owned = sessions.user_id == p("user_id")
        self._sessions()
        self._tombstones()
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
        self.create = self._ready(self._insert_or_nothing(table, "pk"))
        self.set_ends = self._ready(
            change.values(
                next_seq=p("next_seq"),
                last_seq=p("last_seq"),
                message_count=p("message_count"),
                updated_at=p("updated_at"),
                expires_at=p("expires_at"),
            )
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
        self.drop = self._ready(delete(table).where(sessions.pk == p("session")))
        self.expired = self._ready(
            select(*self._session)
            .where(sessions.tenant == p("tenant"), sessions.expires_at <= p("now"))
            .limit(p("limit"))
        )

    def _insert_or_nothing(self, table: Table, *without: str) -> ClauseElement:
        """Make an insert that leaves a row alone that another transaction made first."""
        values = _all(table, *without)
        if self._dialect.name == "postgresql":
            return postgresql.insert(table).values(values).on_conflict_do_nothing()
        if self._dialect.name == "sqlite":
            return sqlite.insert(table).values(values).on_conflict_do_nothing()
        # Not INSERT IGNORE: that cuts values to fit, too.
        first = next(iter(table.primary_key))
        return mysql.insert(table).values(values).on_duplicate_key_update({first.name: first})

    def _tombstones(self) -> None:
        table, graves = self.tables.tombstones, self.tables.tombstones.c
        this = (graves.tenant == p("tenant"), graves.session_id == p("session_id"))
        self.find_grave = self._ready(select(graves.next_seq, graves.operation).where(*this))
        self.bury = self._ready(insert(table).values(_all(table)))
        self.exhume = self._ready(delete(table).where(*this))
        self.level_graves = self._ready(
            delete(table).where(graves.tenant == p("tenant"), graves.deleted_at <= p("deleted_at"))
        )

    def _listings(self) -> None:
        """One for each combination: an OR over what may be absent would leave the index unused."""
        sessions = self.tables.sessions.c
        newest = (sessions.updated_at.desc(), sessions.session_id)
        # The first term says where the index is entered; the second alone is read from its start.
        behind = (
            sessions.updated_at <= p("updated_at"),
            or_(
                sessions.updated_at < p("updated_at"),
                (sessions.updated_at == p("updated_at")) & (sessions.session_id > p("behind")),
            ),
        )
        alive = select(*self._session).where(
            sessions.tenant == p("tenant"), _alive(sessions.expires_at)
        )
        self.newest: dict[tuple[bool, bool], Statement] = {}
        self.by_id: dict[bool, Statement] = {}
        for of_user in (False, True):
            listed = alive.where(self._owned) if of_user else alive
            page = listed.order_by(*newest).limit(p("limit"))
            self.newest[of_user, False] = self._ready(page)
            self.newest[of_user, True] = self._ready(page.where(*behind))
            self.by_id[of_user] = self._ready(
                listed.where(
                    sessions.session_id >= p("start"),
                    sessions.session_id > p("behind"),
                    sessions.session_id < p("stop"),
                )
                .order_by(sessions.session_id)
                .limit(p("limit"))
            )

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
        whose = select(sessions.pk).where(*self._this, _alive(sessions.expires_at))
        self.slices: dict[tuple[bool, bool], Statement] = {}
        for of_user in (False, True):
            session = whose.where(self._owned) if of_user else whose
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
        counters = self.tables.counters
        counter = counters.c.name == p("counter")
        scope = (
            state.tenant == p("tenant"),
            state.scope == p("scope"),
            state.owner == p("owner"),
        )
        this = (*scope, state.key == p("key"))
        self.draw = self._ready(
            update(counters).where(counter).values(value=counters.c.value + literal_column("1"))
        )
        self.drawn = self._ready(select(counters.c.value).where(counter))
        self.value = self._ready(
            select(state.value, state.version, state.expires_at, state.operation).where(*this)
        )
        self.insert_value = self._ready(insert(table).values(_all(table)))
        self.remove_value = self._ready(delete(table).where(*this))
        self.values = self._ready(
            select(state.key, state.value, state.version)
            .where(
                *scope,
                _alive(state.expires_at),
                state.key >= p("start"),
                state.key > p("behind"),
                state.key < p("stop"),
            )
            .order_by(state.key)
            .limit(p("limit"))
        )
        self.expired_values = self._ready(
            select(state.scope, state.owner, state.key)
            .where(state.tenant == p("tenant"), state.expires_at <= p("now"))
            .limit(p("limit"))
        )

    @property
    def _row(self) -> tuple[ColumnElement[Any], ...]:
        """The columns of a message in the order of `agentstore.driver.Row`."""
        c = self.tables.messages.c
        return (c.seq, c.id, c.digest, c.body, c.tokens, c.created_at)


AFTER_ALL = "\U0010ffff" * 129
"""Greater than every id: one more of the greatest character than 512 bytes have room for."""


def _all(table: Table, *without: str) -> dict[str, BindParameter[Any]]:
    return {
        column.name: p(column.name, type_=column.type)
        for column in table.c
        if column.name not in without
    }


def _alive(expires_at: ColumnElement[Any]) -> ColumnElement[bool]:
    return or_(expires_at.is_(None), expires_at > p("now"))
