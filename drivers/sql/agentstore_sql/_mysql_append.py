"""An append in one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from agentstore.driver import Row
from agentstore.errors import ConflictError, StoreError

from ._appends import Append, Appends
from ._engine import Engine
from ._mysql_errors import NULL
from ._mysql_statements import SingleTrips, Trip
from ._pooled import Phase


class MySQLEngine(Engine, Protocol):
    """An engine that runs several statements in one round trip."""

    trips: SingleTrips
    packet: int
    """The longest statement that the server takes."""

    async def fetch(self, text: str, arguments: Sequence[Any], phase: Phase) -> list[Any]:
        """Run one statement, and give its rows."""

    async def travel(self, trip: Trip, arguments: Sequence[Any]) -> list[Any]:
        """Run statements that write in one round trip, and give the rows of the last."""


class MySQLAppends(Appends):
    """The appends of a process: for each session one transaction at a time."""

    def __init__(self, engine: MySQLEngine) -> None:
        super().__init__(engine)
        self._server = engine

    async def _insert(self, key: tuple[str, str], terms: Append, rows: Sequence[Row]) -> list[int]:
        """Store rows, or none where that is not plain; gives their `seq`."""
        if sum(map(_most, rows)) > self._server.packet // 2:
            return []
        first = await self._first(key, terms, rows, begin=False)
        # With an `expect_seq` there has to be a session, unless it is 0.
        if first is None and not terms.expect_seq:
            first = await self._first(key, terms, rows, begin=True)
        return [] if first is None else list(range(first, first + len(rows)))

    async def _first(
        self, key: tuple[str, str], terms: Append, rows: Sequence[Row], *, begin: bool
    ) -> int | None:
        trip = self._server.trips.append(len(rows), begin=begin)
        arguments: list[Any] = [*key, terms.user_id, terms.agent] if begin else []
        arguments += (*key, terms.user_id, terms.user_id, terms.expect_seq, terms.expect_seq)
        for row in rows:
            arguments += (row.id, row.digest, row.body, row.tokens, row.created)
        arguments.append(None if terms.ttl is None else round(terms.ttl * 1_000_000))
        try:
            found = await self._server.travel(trip, arguments)
        except ConflictError:
            return None  # an id that is there already: a repeat, or another body
        except StoreError as error:
            if error.code != NULL:
                raise
            return None
        return int(found[0][0])


def _most(row: Row) -> int:
    """Say how long a row may be in a statement: each byte escaped, and all that is beside it."""
    return 2 * len(row.body) * (1 if row.body.isascii() else 4) + 2_048
