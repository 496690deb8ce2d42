"""The version of the schema: looked at on every open, changed by Alembic where it is old."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select

from agentstore.errors import ConfigurationError

from ._tables import Tables

HEAD = "0001"
_MIGRATIONS = Path(__file__).parent / "migrations"


def is_current(connection: Connection, tables: Tables) -> bool:
    """Tell whether the schema is this version's; refuse one that is newer.

    One SELECT: Alembic takes longer to import than most scripts to run, and is seldom needed.
    """
    version = _version(connection, tables)
    if version is not None and version not in _known():
        raise ConfigurationError(
            f"the tables {tables.prefix}* have the schema version {version}, which is newer than "
            "this version of agentstore-sql: upgrade it"
        )
    return version == HEAD


def migrate(connection: Connection, tables: Tables) -> None:
    """Bring the schema to this version, in the caller's transaction and under its lock."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes.update(connection=connection, tables=tables)
    command.upgrade(config, HEAD)


def _version(connection: Connection, tables: Tables) -> str | None:
    table = Table(tables.version, MetaData(schema=tables.schema), Column("version_num", String(32)))
    if not inspect(connection).has_table(table.name, schema=tables.schema):
        return None
    return connection.execute(select(table.c.version_num)).scalar()


def _known() -> set[str]:
    return {path.stem.partition("_")[0] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py")}
