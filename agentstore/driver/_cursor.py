"""Cursors: where a listing goes on, as text that means nothing to the caller."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from ..errors import DataError


def encode_cursor(*place: str | int) -> str:
    """Write down the place of the last item of a page."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def decode_cursor(cursor: str, *shape: type) -> tuple[Any, ...]:
    """Read a place back; `DataError` where it isn't one of this `shape`."""
    try:
        padded = cursor.encode() + b"=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True)
        place = msgspec.json.decode(text, type=list[str | int])
    except (ValueError, binascii.Error, msgspec.DecodeError):
        place = []
    if [type(part) for part in place] != list(shape):
        raise DataError("cursor is not one that this listing gave: start again without it")
    return tuple(place)
