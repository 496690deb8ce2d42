"""One session in memory, with the rules of the contract."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import attrgetter

from ..types import Message
from ._plan import Known, Plan, plan_append
from ._rows import Row

_seq = attrgetter("seq")


class Ledger:
    """The rows of one session, in order.

    `plan` decides and changes nothing, so that a driver can write before it applies.
    `next_seq` never goes back.
    """

    __slots__ = ("_places", "next_seq", "rows")

    def __init__(self, next_seq: int = 1) -> None:
        self.rows: list[Row] = []
        self.next_seq = next_seq
        self._places: dict[str, Row] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def last_seq(self) -> int:
        """The `seq` of the newest message, 0 where there is none."""
        return self.rows[-1].seq if self.rows else 0

    def plan(self, messages: Sequence[Message], expect_seq: int | None) -> Plan:
        """Decide an append, as `plan_append` does."""
        return plan_append(
            messages,
            find=self._known,
            next_seq=self.next_seq,
            last_seq=self.last_seq,
            expect_seq=expect_seq,
        )

    def _known(self, message_id: str) -> Known | None:
        row = self._places.get(message_id)
        return None if row is None else (row.seq, row.digest)

    def add(self, rows: Sequence[Row]) -> None:
        """Append planned rows."""
        for row in rows:
            self.rows.append(row)
            self._places[row.id] = row
        if rows:
            self.next_seq = max(self.next_seq, rows[-1].seq + 1)

    def slice(
        self, *, after: int | None, before: int | None, limit: int | None, newest: bool
    ) -> list[Row]:
        """Give up to `limit` rows between two exclusive bounds, from one end of them."""
        low = 0 if after is None else bisect_right(self.rows, after, key=_seq)
        high = len(self.rows) if before is None else bisect_left(self.rows, before, key=_seq)
        if limit is not None:
            low, high = (max(low, high - limit), high) if newest else (low, min(high, low + limit))
        return self.rows[low:high]

    def find(self, message_id: str) -> Row | None:
        """Look a row up by the id of its message."""
        return self._places.get(message_id)

    def put(self, row: Row) -> None:
        """Put a row in the place of the one that has its `seq`."""
        self.rows[bisect_left(self.rows, row.seq, key=_seq)] = row
        self._places[row.id] = row

    def rewind(self, to: int) -> int:
        """Drop the rows behind `to`, and tell how many they were."""
        keep = bisect_right(self.rows, to, key=_seq)
        dropped = self.rows[keep:]
        del self.rows[keep:]
        for row in dropped:
            del self._places[row.id]
        return len(dropped)

    def clear(self) -> None:
        """Drop every row; `next_seq` stays."""
        self.rewind(0)
