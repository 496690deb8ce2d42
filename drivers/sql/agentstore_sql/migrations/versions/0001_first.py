"""The first schema."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

_Key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_MYSQL = ("mysql", "mariadb")
_Id = (
    sa.String(512)
    .with_variant(sa.Text(collation="C"), "postgresql")
    .with_variant(sa.VARBINARY(512), *_MYSQL)
)
_Text = sa.Text().with_variant(mysql.LONGTEXT(), *_MYSQL)
_Digest = sa.LargeBinary(32).with_variant(mysql.BINARY(32), *_MYSQL)
_SETTINGS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in _MYSQL
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}


def upgrade() -> None:
    """Make the tables.

    Written out, not taken from the code: a migration has to stay what it was.
    """
    tables = context.config.attributes["tables"]
    prefix, schema = tables.prefix, tables.schema
    within = f"{schema}." if schema else ""
    op.create_table(
        f"{prefix}sessions",
        sa.Column("pk", _Key, primary_key=True, autoincrement=True),
        sa.Column("tenant", _Id, nullable=False),
        sa.Column("session_id", _Id, nullable=False),
        sa.Column("user_id", _Id),
        sa.Column("agent", _Id),
        sa.Column("title", _Text),
        sa.Column("metadata", _Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("next_seq", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("message_count", sa.BigInteger, nullable=False),
        sa.Column("operation", sa.String(64), nullable=False),
        sa.Column("dropped", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("tenant", "session_id", name=f"{prefix}sessions_id"),
        schema=schema,
        postgresql_with={"fillfactor": 70},
        **_SETTINGS,
    )
    newest: list[str | sa.TextClause] = [sa.text("updated_at DESC"), "session_id"]
    sessions = f"{prefix}sessions"
    op.create_index(
        f"{prefix}sessions_newest",
        sessions,
        ["tenant", *newest],
        schema=schema,
        postgresql_where=sa.text("updated_at > 0"),
    )
    op.create_index(
        f"{prefix}sessions_user",
        sessions,
        ["tenant", "user_id", *newest],
        schema=schema,
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )
    expires = sa.text("expires_at IS NOT NULL")
    op.create_index(
        f"{prefix}sessions_expiry",
        sessions,
        ["tenant", "expires_at"],
        schema=schema,
        postgresql_where=expires,
    )
    op.create_table(
        f"{prefix}messages",
        sa.Column(
            "session_pk",
            _Key,
            sa.ForeignKey(f"{within}{prefix}sessions.pk", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("id", _Id, nullable=False),
        sa.Column("digest", _Digest, nullable=False),
        sa.Column("body", _Text, nullable=False),
        sa.Column("tokens", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("session_pk", "seq", name=f"{prefix}messages_pk"),
        sa.UniqueConstraint("session_pk", "id", name=f"{prefix}messages_id"),
        schema=schema,
        **_SETTINGS,
    )
    op.create_table(
        f"{prefix}state",
        sa.Column("tenant", _Id, nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("owner", _Id, nullable=False),
        sa.Column("key", _Id, nullable=False),
        sa.Column("value", _Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("operation", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "scope", "owner", "key", name=f"{prefix}state_pk"),
        schema=schema,
        **_SETTINGS,
    )
    op.create_index(
        f"{prefix}state_expiry",
        f"{prefix}state",
        ["tenant", "expires_at"],
        schema=schema,
        postgresql_where=expires,
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(sa.schema.CreateSequence(sa.Sequence(f"{prefix}versions", schema=schema)))
        return
    if op.get_bind().dialect.name in _MYSQL:
        op.create_table(
            f"{prefix}versions",
            sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=True),
            **_SETTINGS,
        )
        return
    counters = op.create_table(
        f"{prefix}counters",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counters, [{"name": "state", "value": 0}])
