"""What the stores on PostgreSQL need of the driver, beside jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ._engine import Engine
from ._pooled import Phase
from ._postgresql_statements import SingleStatements


class PostgreSQLEngine(Engine, Protocol):
    """An engine that runs single statements by themselves."""

    single: SingleStatements

    async def fetch(self, text: str, arguments: Sequence[Any], phase: Phase) -> list[Any]:
        """Run one statement in one round trip, and give its rows."""
