"""Hot statements: compiled once, run on the driver's own cursor."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ClauseElement, Connection
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.compiler import SQLCompiler

from agentstore.driver import now


class Statement:
    """A statement of SQLAlchemy as text and the order of its parameters.

    SQLAlchemy's `execute` costs more than these statements themselves take; what it does for
    them (types, result objects) is not needed here.
    """

    def __init__(self, clause: ClauseElement, dialect: Dialect) -> None:
        compiled = clause.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 - no DDL comes here
        self._text = str(compiled)
        self._order = tuple(compiled.positiontup or ())
        # Values that the statement brings itself, such as SQLite's OFFSET of 0.
        self._own = {name: value for name, value in compiled.params.items() if value is not None}
        # Only where the engine has no clock of its own.
        self._timed = "now" in self._order

    def call(self, **parameters: Any) -> tuple[str, list[Any]]:
        """Give its text and its arguments, for a driver's own connection."""
        return self._text, self._arguments(parameters)

    def _arguments(self, parameters: dict[str, Any]) -> list[Any]:
        given = self._own | parameters
        if self._timed:
            given["now"] = now()
        return [given[name] for name in self._order]

    def rows(self, connection: Connection, **parameters: Any) -> list[Any]:
        """Run it and give its rows as tuples."""
        cursor = connection.connection.cursor()
        try:
            cursor.execute(self._text, self._arguments(parameters))
            return list(cursor.fetchall())
        finally:
            cursor.close()

    def run(self, connection: Connection, **parameters: Any) -> int:
        """Run it and tell how many rows it changed."""
        cursor = connection.connection.cursor()
        try:
            cursor.execute(self._text, self._arguments(parameters))
            return cursor.rowcount
        finally:
            cursor.close()

    def many(self, connection: Connection, rows: list[dict[str, Any]]) -> None:
        """Run it for each of several rows."""
        cursor = connection.connection.cursor()
        try:
            cursor.executemany(self._text, [self._arguments(row) for row in rows])
        finally:
            cursor.close()
