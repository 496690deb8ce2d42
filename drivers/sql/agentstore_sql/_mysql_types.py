"""Types of columns on MySQL, where the usual ones lose something."""

from __future__ import annotations

from typing import Any

from sqlalchemy import VARBINARY, ColumnElement, func, literal_column
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.types import TypeDecorator

DIALECTS = ("mysql", "mariadb")
"""What SQLAlchemy calls the dialects, by the URL's scheme."""

OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in DIALECTS
    for option, value in (
        ("engine", "InnoDB"),
        ("charset", "utf8mb4"),
        ("collate", "utf8mb4_bin"),
    )
}
"""What is said of each table, whatever the database itself is set to."""


class Id(TypeDecorator[str]):
    """An id as its bytes: each of the server's collations takes some ids for others.

    Text is compared with it byte for byte, and text is what a SELECT gives.
    """

    impl = VARBINARY  # type: ignore[mutable-override]  # SQLAlchemy's own way to say it
    cache_ok = True  # type: ignore[mutable-override]

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Have the server make text of the bytes."""
        return func.convert(column.op("USING")(literal_column("utf8mb4")), type_=self)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        """Make bytes of text, where it is SQLAlchemy that binds it."""
        return None if value is None else value.encode()
