"""The tables, as SQLAlchemy sees them on every engine."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

PREFIX = "agentstore_"

# SQLite makes a rowid of a column only where it is declared as INTEGER.
_Key = BigInteger().with_variant(Integer, "sqlite")
_ID_BYTES = 512


class Tables:
    """The tables under one prefix.

    Ids are compared byte for byte, times are microseconds since 1970, and what is JSON is text:
    an engine's own JSON type would change it (key order, duplicate keys, NUL).
    """

    def __init__(self, prefix: str = PREFIX) -> None:
        self.metadata = MetaData()
        self.prefix = prefix
        self.version = f"{prefix}version"
        self.sessions = Table(
            f"{prefix}sessions",
            self.metadata,
            Column("pk", _Key, primary_key=True, autoincrement=True),
            Column("tenant", String(_ID_BYTES), nullable=False),
            Column("session_id", String(_ID_BYTES), nullable=False),
            Column("user_id", String(_ID_BYTES)),
            Column("agent", String(_ID_BYTES)),
            Column("title", Text),
            Column("metadata", Text, nullable=False),
            Column("created_at", BigInteger, nullable=False),
            Column("updated_at", BigInteger, nullable=False),
            Column("expires_at", BigInteger),
            Column("next_seq", BigInteger, nullable=False),
            Column("last_seq", BigInteger, nullable=False),
            Column("message_count", BigInteger, nullable=False),
            # The last change that has to recognise itself when it is made again, and its answer.
            Column("operation", String(64), nullable=False),
            Column("dropped", BigInteger, nullable=False),
            UniqueConstraint("tenant", "session_id", name=f"{prefix}sessions_id"),
            Index(f"{prefix}sessions_expiry", "tenant", "expires_at"),
        )
        listed = (self.sessions.c.updated_at.desc(), self.sessions.c.session_id)
        tenant, user = self.sessions.c.tenant, self.sessions.c.user_id
        Index(f"{prefix}sessions_newest", tenant, *listed)
        Index(f"{prefix}sessions_user", tenant, user, *listed)
        self.messages = Table(
            f"{prefix}messages",
            self.metadata,
            Column(
                "session_pk",
                _Key,
                ForeignKey(f"{prefix}sessions.pk", ondelete="CASCADE"),
                nullable=False,
            ),
            Column("seq", BigInteger, nullable=False),
            Column("id", String(_ID_BYTES), nullable=False),
            Column("digest", LargeBinary(32), nullable=False),
            Column("body", Text, nullable=False),
            Column("tokens", BigInteger),
            Column("created_at", BigInteger, nullable=False),
            PrimaryKeyConstraint("session_pk", "seq", name=f"{prefix}messages_pk"),
            UniqueConstraint("session_pk", "id", name=f"{prefix}messages_id"),
        )
        # What is left of a deleted session: where its `seq` goes on, and who deleted it.
        self.tombstones = Table(
            f"{prefix}tombstones",
            self.metadata,
            Column("tenant", String(_ID_BYTES), nullable=False),
            Column("session_id", String(_ID_BYTES), nullable=False),
            Column("next_seq", BigInteger, nullable=False),
            Column("deleted_at", BigInteger, nullable=False),
            Column("operation", String(64), nullable=False),
            PrimaryKeyConstraint("tenant", "session_id", name=f"{prefix}tombstones_pk"),
            Index(f"{prefix}tombstones_age", "tenant", "deleted_at"),
        )
        self.state = Table(
            f"{prefix}state",
            self.metadata,
            Column("tenant", String(_ID_BYTES), nullable=False),
            Column("scope", String(16), nullable=False),
            Column("owner", String(_ID_BYTES), nullable=False),
            Column("key", String(_ID_BYTES), nullable=False),
            Column("value", Text, nullable=False),
            Column("version", BigInteger, nullable=False),
            Column("expires_at", BigInteger),
            Column("operation", String(64), nullable=False),
            PrimaryKeyConstraint("tenant", "scope", "owner", "key", name=f"{prefix}state_pk"),
            Index(f"{prefix}state_expiry", "tenant", "expires_at"),
        )
        # Versions of state are drawn here, so that none comes twice, deleted or not.
        self.counters = Table(
            f"{prefix}counters",
            self.metadata,
            Column("name", String(64), primary_key=True),
            Column("value", BigInteger, nullable=False),
        )
