"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0001"
down_revision = None

_Key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_Id = sa.String(512).with_variant(sa.Text(collation="C"), "postgresql")


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
        sa.Column("title", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
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
    )
    newest: list[str | sa.TextClause] = [sa.text("updated_at DESC"), "session_id"]
    sessions = f"{prefix}sessions"
    op.create_index(f"{prefix}sessions_newest", sessions, ["tenant", *newest], schema=schema)
    op.create_index(
        f"{prefix}sessions_user", sessions, ["tenant", "user_id", *newest], schema=schema
    )
    op.create_index(f"{prefix}sessions_expiry", sessions, ["tenant", "expires_at"], schema=schema)
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
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("tokens", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("session_pk", "seq", name=f"{prefix}messages_pk"),
        sa.UniqueConstraint("session_pk", "id", name=f"{prefix}messages_id"),
        schema=schema,
    )
    op.create_table(
        f"{prefix}state",
        sa.Column("tenant", _Id, nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("owner", _Id, nullable=False),
        sa.Column("key", _Id, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("operation", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "scope", "owner", "key", name=f"{prefix}state_pk"),
        schema=schema,
    )
    op.create_index(
        f"{prefix}state_expiry", f"{prefix}state", ["tenant", "expires_at"], schema=schema
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(sa.schema.CreateSequence(sa.Sequence(f"{prefix}versions", schema=schema)))
        return
    counters = op.create_table(
        f"{prefix}counters",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counters, [{"name": "state", "value": 0}])
