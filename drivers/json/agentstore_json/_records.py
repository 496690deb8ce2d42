"""The lines of a session's file."""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.json import Decoder

from agentstore.driver import Row, from_micros, now, to_micros
from agentstore.errors import DataError

T = TypeVar("T")


class Head(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The first line: whose file it is, and what was known when the file was written.

    Of a deleted session it is the only line, and says where `seq` goes on.
    """

    file: str
    tenant: str
    session_id: str
    created_at: datetime
    updated_at: datetime
    user_id: str | None = None
    agent: str | None = None
    title: str | None = None
    metadata: Raw = Raw(b"{}")
    expires_at: datetime | None = None
    next_seq: int = 1
    operation: str = ""
    dropped: int = 0
    deleted_at: datetime | None = None


class Line(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A message: its body stands in the file as the JSON that it is, byte for byte."""

    seq: int
    id: str
    created_at: datetime
    tokens: int | None = None
    body: Raw
    digest: bytes

    @classmethod
    def of(cls, row: Row) -> Line:
        """Write down a row."""
        return cls(
            seq=row.seq,
            id=row.id,
            created_at=from_micros(row.created),
            tokens=row.tokens,
            body=Raw(row.body.encode()),
            digest=row.digest,
        )

    def row(self) -> Row:
        """Make the row again."""
        body = bytes(self.body).decode()
        created = to_micros(self.created_at)
        return Row(self.seq, self.id, self.digest, body, self.tokens, created)


class Change(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Every other line: what one call changed, the whole of it."""

    updated_at: datetime | UnsetType = UNSET
    expires_at: datetime | None | UnsetType = UNSET
    title: str | None | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    messages: list[Line] = []


# Made here once: threads that meet the same type for the first time crash msgspec 0.22.
HEAD = Decoder(Head)
CHANGE = Decoder(Change)


def decode(line: bytes, decoder: Decoder[T], where: str) -> T:
    """Read a line; `DataError` says `where` it is damaged."""
    try:
        # By way of text: a body that is taken as it is isn't checked to be UTF-8.
        return decoder.decode(line.decode())
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise DataError(f"{where} is damaged") from None


def moment() -> datetime:
    """Tell the time as records have it."""
    return from_micros(now())


def after(ttl: float | None) -> datetime | None:
    """Tell when something expires that lasts for so many seconds from now."""
    return None if ttl is None else from_micros(now() + round(ttl * 1_000_000))


def is_past(when: datetime | None) -> bool:
    """Tell whether something has expired."""
    return when is not None and when <= moment()
