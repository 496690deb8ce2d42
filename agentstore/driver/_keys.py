"""Keys for engines that can't take an id as it is."""

from __future__ import annotations

import hashlib


def key_hash(*parts: str) -> bytes:
    """Give 32 bytes that stand for these ids and for no others.

    Ids hold no NUL, so that joining them with it is unambiguous.
    """
    return hashlib.sha256("\0".join(parts).encode()).digest()
