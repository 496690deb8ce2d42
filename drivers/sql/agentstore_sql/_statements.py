"""Every statement that the stores run, compiled for one dialect."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    Table,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.engine.interfaces import Dialect

from ._statement import Statement
from ._tables import Tables


class Statements:
    """The statements over one set of tables; parameters are named as the columns are."""

    def __init__(self, tables: Tables, dialect: Dialect) -> None:
        self.tables = tables
        sessions, messages = tables.sessions.c, tables.messages.c
        state, tombstones = tables.state.c, tables.tombstones.c
        p = bindparam

        def ready(clause: object) -> Statement:
            return Statement(clause, dialect)  # type: ignore[arg-type]  # every clause of ours is one

        this = (sessions.tenant == p("tenant"), sessions.session_id == p("session_id"))
        alive = _alive(sessions.expires_at)

        # Sessions.
        everything = list(tables.sessions.c)
        self.find = ready(select(*everything).where(*this))
        self.create = ready(insert(tables.sessions).values(_all(tables.sessions, "pk")))
        self.set_ends = ready(
            update(tables.sessions)
            .where(sessions.pk == p("session"))
            .values(
                next_seq=p("next_seq"),
                last_seq=p("last_seq"),
                message_count=p("message_count"),
                updated_at=p("updated_at"),
                expires_at=p("expires_at"),
            )
        )
        self.set_words = ready(
            update(tables.sessions)
            .where(sessions.pk == p("session"))
            .values(
                title=p("title"),
                metadata=p("metadata"),
                updated_at=p("updated_at"),
                expires_at=p("expires_at"),
            )
        )
        self.set_rewound = ready(
            update(tables.sessions)
            .where(sessions.pk == p("session"))
            .values(
                last_seq=p("last_seq"),
                message_count=sessions.message_count - p("dropped"),
                operation=p("operation"),
                dropped=p("dropped"),
            )
        )
        self.drop = ready(delete(tables.sessions).where(sessions.pk == p("session")))
        self.expired = ready(
            select(*everything)
            .where(sessions.tenant == p("tenant"), sessions.expires_at <= p("now"))
            .limit(p("limit"))
        )

        # Tombstones.
        grave = (tombstones.tenant == p("tenant"), tombstones.session_id == p("session_id"))
        self.find_grave = ready(select(tombstones.next_seq, tombstones.operation).where(*grave))
        self.bury = ready(insert(tables.tombstones).values(_all(tables.tombstones)))
        self.exhume = ready(delete(tables.tombstones).where(*grave))
        self.level_graves = ready(
            delete(tables.tombstones).where(
                tombstones.tenant == p("tenant"), tombstones.deleted_at <= p("deleted_at")
            )
        )

        # Listings. One for each combination: an OR with NULL would keep the index unused.
        newest = (sessions.updated_at.desc(), sessions.session_id)
        behind = or_(
            sessions.updated_at < p("updated_at"),
            (sessions.updated_at == p("updated_at")) & (sessions.session_id > p("behind")),
        )
        # Says in one term where the index is entered; `behind` alone is read from its beginning.
        entered = sessions.updated_at <= p("updated_at")
        every = select(*everything).where(sessions.tenant == p("tenant"), alive)
        owned = sessions.user_id == p("user_id")
        self.newest: dict[tuple[bool, bool], Statement] = {}
        self.by_id: dict[bool, Statement] = {}
        for of_user in (False, True):
            listed = every.where(owned) if of_user else every
            page = listed.order_by(*newest).limit(p("limit"))
            self.newest[of_user, False] = ready(page)
            self.newest[of_user, True] = ready(page.where(entered, behind))
            self.by_id[of_user] = ready(
                listed.where(
                    sessions.session_id >= p("start"),
                    sessions.session_id > p("behind"),
                    sessions.session_id < p("stop"),
                )
                .order_by(sessions.session_id)
                .limit(p("limit"))
            )

        # Messages.
        columns = (
            messages.seq,
            messages.id,
            messages.digest,
            messages.body,
            messages.tokens,
            messages.created_at,
        )
        self.find_message = ready(
            select(messages.seq, messages.digest).where(
                messages.session_pk == p("session"), messages.id == p("id")
            )
        )
        self.message = ready(
            select(*columns).where(messages.session_pk == p("session"), messages.id == p("id"))
        )
        self.add = ready(insert(tables.messages).values(_all(tables.messages)))
        self.put = ready(
            update(tables.messages)
            .where(messages.session_pk == p("session"), messages.seq == p("at"))
            .values(body=p("body"), digest=p("digest"))
        )
        self.cut = ready(
            delete(tables.messages).where(
                messages.session_pk == p("session"), messages.seq > p("to")
            )
        )
        self.last = ready(
            select(func.coalesce(func.max(messages.seq), literal_column("0"))).where(
                messages.session_pk == p("session")
            )
        )
        self.copy = ready(
            insert(tables.messages).from_select(
                [column.name for column in tables.messages.c],
                select(p("copy", type_=sessions.pk.type), *columns).where(
                    messages.session_pk == p("session"), messages.seq <= p("upto")
                ),
            )
        )
        self.count = ready(
            select(func.count(), func.coalesce(func.max(messages.seq), literal_column("0"))).where(
                messages.session_pk == p("session")
            )
        )
        # The session is found in the same statement: a read is one round trip.
        whose: Select[tuple[int]] = select(sessions.pk).where(*this, alive)
        self.slices: dict[tuple[bool, bool], Statement] = {}
        for of_user in (False, True):
            owner = whose.where(owned) if of_user else whose
            between = select(*columns).where(
                messages.session_pk == owner.scalar_subquery(),
                messages.seq > p("after"),
                messages.seq < p("before"),
            )
            for backwards in (False, True):
                order = messages.seq.desc() if backwards else messages.seq
                self.slices[of_user, backwards] = ready(between.order_by(order).limit(p("limit")))

        # State.
        one = (
            state.tenant == p("tenant"),
            state.scope == p("scope"),
            state.owner == p("owner"),
            state.key == p("key"),
        )
        self.draw = ready(
            update(tables.counters)
            .where(tables.counters.c.name == p("counter"))
            .values(value=tables.counters.c.value + 1)
        )
        self.drawn = ready(
            select(tables.counters.c.value).where(tables.counters.c.name == p("counter"))
        )
        self.value = ready(
            select(state.value, state.version, state.expires_at, state.operation).where(*one)
        )
        self.insert_value = ready(insert(tables.state).values(_all(tables.state)))
        self.remove_value = ready(delete(tables.state).where(*one))
        self.values = ready(
            select(state.key, state.value, state.version)
            .where(
                *one[:3],
                _alive(state.expires_at),
                state.key >= p("start"),
                state.key > p("behind"),
                state.key < p("stop"),
            )
            .order_by(state.key)
            .limit(p("limit"))
        )
        self.expired_values = ready(
            select(state.scope, state.owner, state.key)
            .where(state.tenant == p("tenant"), state.expires_at <= p("now"))
            .limit(p("limit"))
        )


AFTER_ALL = "\U0010ffff" * 129
"""Greater than every id: one more of the greatest character than 512 bytes have room for."""


def _all(table: Table, *without: str) -> dict[str, BindParameter[Any]]:
    return {
        column.name: bindparam(column.name, type_=column.type)
        for column in table.c
        if column.name not in without
    }


def _alive(expires_at: ColumnElement[Any]) -> ColumnElement[bool]:
    return or_(expires_at.is_(None), expires_at > bindparam("now"))
