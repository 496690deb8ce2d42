"""SQL databases for agentstore."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentstore.errors import MissingDependencyError

from ._import_table import read_table
from ._sqlite import SQLiteDriver
from ._tables import Tables

if TYPE_CHECKING:
    from ._mysql import MySQLDriver
    from ._postgresql import PostgreSQLDriver

__all__ = ["MySQLDriver", "PostgreSQLDriver", "SQLiteDriver", "Tables", "read_table"]

# Drivers of servers, by their module and by the extra that brings what they stand on.
_SERVERS = {
    "MySQLDriver": ("._mysql", "mysql", set[str]()),  # which of two clients, the URL says
    "PostgreSQLDriver": ("._postgresql", "postgresql", {"asyncpg"}),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever it is that is exported
    if name not in _SERVERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra, needed = _SERVERS[name]
    try:
        return getattr(import_module(module, __name__), name)
    except ModuleNotFoundError as error:
        if error.name not in needed:
            raise
        raise MissingDependencyError(
            f"{error.name} is not installed: run pip install 'agentstore-sql[{extra}]'"
        ) from None
