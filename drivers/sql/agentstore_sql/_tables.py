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
    Sequence,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.mysql import BINARY, LONGTEXT

from ._mysql_types import DIALECTS, OPTIONS, Id

PREFIX = "agentstore_"

# SQLite makes a rowid of a column only where it is declared as INTEGER.
_Key = BigInteger().with_variant(Integer, "sqlite")
# PostgreSQL's "C" compares bytes, whatever the database's own collation does.
_Id = String(512).with_variant(Text(collation="C"), "postgresql").with_variant(Id(512), *DIALECTS)
_Text = Text().with_variant(LONGTEXT(), *DIALECTS)  # whose TEXT ends at 64 KiB
_Digest = LargeBinary(32).with_variant(BINARY(32), *DIALECTS)
# Where PostgreSQL has no statistics, as of a new table, it looks for one session in whatever index
# begins with its tenant: these hold only what they are for, and so can't be meant.
_LISTED = text("updated_at > 0")
_OWNED = text("user_id IS NOT NULL")
_EXPIRES = text("expires_at IS NOT NULL")


class Tables:
    """The tables under one prefix, in one schema where the engine has schemas.

    A session that was deleted keeps its row for a while, without its messages and its owner, as
    one that expired in 1970: so its `seq` goes on where it was, and of a delete and an append at
    the same time, the one that comes second finds what the first one left.

    Ids are compared byte for byte, times are microseconds since 1970, and what is JSON is text:
    an engine's own JSON type would change it (key order, duplicate keys, NUL).
    """

    def __init__(
        self,
        prefix: str = PREFIX,
        *,
        schema: str | None = None,
        sequences: bool = False,
        numbers: bool = False,
    ) -> None:
        self.metadata = MetaData(schema=schema)
        self.prefix = prefix
        self.schema = schema
        self.version = f"{prefix}version"
        self.sessions = Table(
            f"{prefix}sessions",
            self.metadata,
            Column("pk", _Key, primary_key=True, autoincrement=True),
            Column("tenant", _Id, nullable=False),
            Column("session_id", _Id, nullable=False),
            Column("user_id", _Id),
            Column("agent", _Id),
            Column("title", _Text),
            Column("metadata", _Text, nullable=False),
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
            Index(f"{prefix}sessions_expiry", "tenant", "expires_at", postgresql_where=_EXPIRES),
            # Room in each page, so that an append changes its session's row without the indexes.
            postgresql_with={"fillfactor": 70},
            **OPTIONS,
        )
        listed = (self.sessions.c.updated_at.desc(), self.sessions.c.session_id)
        tenant, user = self.sessions.c.tenant, self.sessions.c.user_id
        Index(f"{prefix}sessions_newest", tenant, *listed, postgresql_where=_LISTED)
        Index(f"{prefix}sessions_user", tenant, user, *listed, postgresql_where=_OWNED)
        self.messages = Table(
            f"{prefix}messages",
            self.metadata,
            Column(
                "session_pk",
                _Key,
                ForeignKey(self.sessions.c.pk, ondelete="CASCADE"),
                nullable=False,
            ),
            Column("seq", BigInteger, nullable=False),
            Column("id", _Id, nullable=False),
            Column("digest", _Digest, nullable=False),
            Column("body", _Text, nullable=False),
            Column("tokens", BigInteger),
            Column("created_at", BigInteger, nullable=False),
            PrimaryKeyConstraint("session_pk", "seq", name=f"{prefix}messages_pk"),
            UniqueConstraint("session_pk", "id", name=f"{prefix}messages_id"),
            **OPTIONS,
        )
        self.state = Table(
            f"{prefix}state",
            self.metadata,
            Column("tenant", _Id, nullable=False),
            Column("scope", String(16), nullable=False),
            Column("owner", _Id, nullable=False),
            Column("key", _Id, nullable=False),
            Column("value", _Text, nullable=False),
            Column("version", BigInteger, nullable=False),
            Column("expires_at", BigInteger),
            Column("operation", String(64), nullable=False),
            PrimaryKeyConstraint("tenant", "scope", "owner", "key", name=f"{prefix}state_pk"),
            Index(f"{prefix}state_expiry", "tenant", "expires_at", postgresql_where=_EXPIRES),
            **OPTIONS,
        )
        # Versions of state are drawn here, so that none comes twice, deleted or not: from a
        # sequence where the engine has them (PostgreSQL), from the numbers that the server gives to
        # new rows, which are deleted at once (MySQL), otherwise from a row.
        self.versions: Sequence | None = None
        self.numbers: Table | None = None
        self.counters: Table | None = None
        if sequences:
            self.versions = Sequence(f"{prefix}versions", metadata=self.metadata)
        elif numbers:
            self.numbers = Table(
                f"{prefix}versions",
                self.metadata,
                Column("version", BigInteger, primary_key=True, autoincrement=True),
                **OPTIONS,
            )
        else:
            self.counters = Table(
                f"{prefix}counters",
                self.metadata,
                Column("name", String(64), primary_key=True),
                Column("value", BigInteger, nullable=False),
            )
