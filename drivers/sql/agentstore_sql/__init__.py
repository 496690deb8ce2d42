"""SQL databases for agentstore."""

from __future__ import annotations

from ._import_table import read_table
from ._sqlite import SQLiteDriver
from ._tables import Tables

__all__ = ["SQLiteDriver", "Tables", "read_table"]
