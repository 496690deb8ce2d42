"""Stored time: whole microseconds since 1970, UTC."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

TOUCH_INTERVAL = 60 * 1_000_000
"""How far a session's indexed `updated_at` may lag, in microseconds.

Touching it with every message would move the session in its index each time, and on PostgreSQL no
update would stay within its page.
"""

TOMBSTONE_AGE = 24 * 3600 * 1_000_000
"""How long a deleted session is remembered, in microseconds.

For that long its `seq` goes on where it was, and a write from before the deletion that arrives
late can be told from a new one.
"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def now() -> int:
    """Tell the time of this machine in microseconds."""
    return time.time_ns() // 1_000


def to_micros(moment: datetime) -> int:
    """Turn an aware datetime into microseconds, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Turn microseconds into an aware datetime, exactly."""
    # Not fromtimestamp(): a float of this size is a microsecond off now and then.
    return _EPOCH + timedelta(microseconds=micros)
