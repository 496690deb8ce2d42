"""UUIDv7: ids that sort by the time at which they were made (RFC 9562, section 5.7)."""

from __future__ import annotations

import os
import threading
import time
import uuid

_lock = threading.Lock()
_last = 0


def uuid7() -> str:
    """Make an id that is greater than every id made before it in this process."""
    global _last  # noqa: PLW0603 - one process has one sequence
    # 48 bits of milliseconds and 74 of chance: `_last` holds both, so that ids of one
    # millisecond still rise (the monotonic random method of section 6.2).
    with _lock:
        now = time.time_ns() // 1_000_000 << 74
        chance = int.from_bytes(os.urandom(9), "big")
        _last = now | chance if now > _last else _last + 1 + (chance >> 40)
        value = _last
    high, low = value >> 62, value & ((1 << 62) - 1)
    time_part, rand_a = high >> 12, high & 0xFFF
    return str(uuid.UUID(int=time_part << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | low))


def derived(*parts: str) -> str:
    """Make the id that always belongs to these parts (UUIDv5), so that a repeat is the same."""
    # The length in front of each part keeps ("a", "bc") and ("ab", "c") apart.
    return str(uuid.uuid5(_NAMESPACE, "".join(f"{len(part)}:{part}" for part in parts)))


# A fork while another thread holds the lock would leave it held in the child for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )

_NAMESPACE = uuid.UUID("5b6d1f3c-8f0c-5c1e-9d0a-2f9d3a5c7e11")
