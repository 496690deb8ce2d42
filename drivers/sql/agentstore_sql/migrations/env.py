"""How Alembic runs the migrations: on a connection that is handed in, never on one of its own."""

from __future__ import annotations

from alembic import context

_attributes = context.config.attributes

context.configure(
    connection=_attributes["connection"],
    # A version table of our own: an application's migrations have theirs.
    version_table=_attributes["tables"].version,
    version_table_schema=_attributes["tables"].schema,
)
with context.begin_transaction():
    context.run_migrations()
