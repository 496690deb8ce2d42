"""A message as engines keep it."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ..errors import DataError
from ..types import Message
from ._clock import from_micros, to_micros


class _Body(msgspec.Struct, frozen=True, omit_defaults=True):
    """What makes two messages the same or not: everything but id, time and cost."""

    role: str
    content: Any = UNSET
    name: str | None | UnsetType = UNSET
    tool_calls: Any = UNSET
    tool_call_id: str | None | UnsetType = UNSET
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    extra: dict[str, Any] = msgspec.field(default_factory=dict)


def plain(value: object) -> object:
    """Give text or a number of a subclass, such as a `Reply`, as JSON has it."""
    if isinstance(value, str):
        # Not str(value), which of an enum is its name.
        return str.__str__(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


_encoder = msgspec.json.Encoder(enc_hook=plain)
_canonical = msgspec.json.Encoder(enc_hook=plain, order="sorted")
_body_decoder = msgspec.json.Decoder(_Body)


def encode_body(message: Message) -> bytes:
    """Write a message's body as JSON; NUL comes out escaped."""
    return _encoder.encode(_body(message))


def digest(message: Message) -> bytes:
    """Take the SHA-256 of a message's body, whatever the order of its keys."""
    return hashlib.sha256(_canonical.encode(_body(message))).digest()


def _body(message: Message) -> _Body:
    return _Body(
        message.role,
        message.content,
        message.name,
        message.tool_calls,
        message.tool_call_id,
        message.metadata,
        message.extra,
    )


def dump(value: Any) -> str:  # noqa: ANN401 - any JSON
    """Write any JSON value as text without NUL."""
    return _encoder.encode(value).decode()


def load(text: str | bytes) -> Any:  # noqa: ANN401 - any JSON
    """Read what `dump` wrote; `DataError` where it is damaged."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise DataError("a stored value is damaged: it is not JSON") from None


class Row(msgspec.Struct, frozen=True):
    """One stored message: `body` is JSON text, `created` microseconds, `digest` 32 bytes."""

    seq: int
    id: str
    digest: bytes
    body: str
    tokens: int | None
    created: int

    @classmethod
    def of(cls, message: Message, seq: int) -> Row:
        """Make the row of a message that gets this `seq`."""
        return cls(
            seq,
            message.id,
            message.digest or digest(message),
            encode_body(message).decode(),
            message.tokens,
            to_micros(message.created_at),
        )

    def replaced(
        self, content: str | list[Any] | None, metadata: dict[str, Any] | UnsetType
    ) -> Row:
        """Make the row that says something else in the place of this one."""
        message = msgspec.structs.replace(self.message(), content=content)
        if metadata is not UNSET:
            message = msgspec.structs.replace(message, metadata=metadata)
        return Row.of(message, self.seq)

    def message(self) -> Message:
        """Make the message again."""
        try:
            body = _body_decoder.decode(self.body)
        except msgspec.DecodeError:
            raise DataError(f"message {self.id} is damaged: its body is not readable") from None
        return Message(
            role=body.role,  # type: ignore[arg-type]  # checked when it was appended
            content=body.content,
            name=body.name,
            tool_calls=body.tool_calls,
            tool_call_id=body.tool_call_id,
            metadata=body.metadata,
            extra=body.extra,
            id=self.id,
            tokens=self.tokens,
            created_at=from_micros(self.created),
            seq=self.seq,
        )
