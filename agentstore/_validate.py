"""What can be stored and what can't: checked once, before anything is sent.

Every engine has other gaps (NUL in text, lone surrogates, NaN, long integers, key order).
What all of them can keep goes through; the rest is a `DataError` everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, get_args

import msgspec
from msgspec import UNSET, UnsetType

from .driver._rows import digest, encode_body, plain
from .errors import DataError
from .types import Limits, Message, Role

ID_BYTES = 512
TITLE_BYTES = 1024
_INT64 = 1 << 63
_LONGEST_TTL = 100 * 366 * 24 * 3600
_ROLES = frozenset(get_args(Role))
_FORMAT = frozenset(("role", "content", "name", "tool_calls", "tool_call_id"))

_encoder = msgspec.json.Encoder(enc_hook=plain)


def identifier(value: object, name: str) -> str:
    """Check an id: text of 1 to 512 bytes without NUL."""
    text = _text(value, name, ID_BYTES)
    if not text:
        raise DataError(f"{name} is empty: is a variable unset?")
    return text


def optional_identifier(value: object, name: str) -> str | None:
    """Check an id that may be absent."""
    return None if value is None else identifier(value, name)


def tenant_name(value: object) -> str:
    """Check a tenant: an id, or `""` for the one that needs no name."""
    return _text(value, "tenant", ID_BYTES)


def title_text(value: object) -> str | None:
    """Check a title."""
    return None if value is None else _text(value, "title", TITLE_BYTES)


def prefix(value: object) -> str | None:
    """Check the beginning of ids; `""` is the beginning of all."""
    return None if value is None else _text(value, "prefix", ID_BYTES)


def cursor(value: object) -> str | None:
    """Check what a listing gave to go on with; only the store can read it."""
    if value is None or (isinstance(value, str) and value):
        return value
    raise DataError("cursor is not one that this listing gave: start again without it")


def _text(value: object, name: str, limit: int) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} is {type(value).__name__}, and has to be text")
    size = len(_utf8(value.encode, name))
    if size > limit:
        raise DataError(f"{name} has {size} bytes: {limit} is the most")
    if "\0" in value:
        raise DataError(f"{name} has a NUL character, which not every store can keep")
    return value if type(value) is str else str.__str__(value)


def count(value: object, name: str, *, least: int = 1, most: int | None = None) -> int:
    """Check a number of things."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{name} is {type(value).__name__}, and has to be an integer")
    if value < least or value >= _INT64 or (most is not None and value > most):
        upper = f" and at most {most}" if most is not None else ""
        raise DataError(f"{name} is {value}, and has to be at least {least}{upper}")
    return value


def optional_count(value: object, name: str, *, least: int = 1) -> int | None:
    """Check a number that may be absent."""
    return None if value is None else count(value, name, least=least)


def seconds(value: object, name: str) -> float | None:
    """Check a time to live."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{name} is {type(value).__name__}, and has to be seconds")
    if not 0 < value <= _LONGEST_TTL:
        raise DataError(f"{name} is {value}, and has to be more than 0 seconds and finite")
    return value


def json_value(value: object, name: str, *, limit: int, depth: int) -> None:
    """Check that a value is JSON that comes back equal, and how large and deep it is."""
    _check_json(value, name, depth)
    _check_size(_encoded(value, name), name, limit)


def metadata(value: object, limits: Limits, name: str = "metadata") -> None:
    """Check the metadata of a session or of a message."""
    if not isinstance(value, dict):
        raise DataError(f"{name} is {type(value).__name__}, and has to be a dict")
    if value:
        json_value(value, name, limit=limits.metadata, depth=limits.depth)


def messages(given: Sequence[Message | Mapping[str, Any]], limits: Limits) -> list[Message]:
    """Check a batch, and give it as messages that are ready to be stored."""
    if isinstance(given, (str, bytes, Message, Mapping)) or not isinstance(given, Sequence):
        raise DataError(f"messages is {type(given).__name__}, and has to be a list of messages")
    if not 1 <= len(given) <= limits.batch:
        raise DataError(f"a batch of {len(given)} messages: 1 to {limits.batch} can be appended")
    return [_message(one, f"messages[{place}]", limits) for place, one in enumerate(given)]


def _message(given: object, name: str, limits: Limits) -> Message:
    message = given if isinstance(given, Message) else _from_mapping(given, name)
    if not isinstance(message.role, str) or message.role not in _ROLES:
        known = ", ".join(sorted(_ROLES))
        raise DataError(f"{name}: role is {message.role!r}, and has to be one of {known}")
    message_id = identifier(message.id, f"{name}.id")
    content(message.content, f"{name}.content", limits)
    for key in ("name", "tool_call_id"):
        value = getattr(message, key)
        if value is not UNSET and value is not None and not isinstance(value, str):
            raise DataError(f"{name}.{key} is {type(value).__name__}, and has to be text")
    if message.role == "tool" and not message.tool_call_id:
        raise DataError(f"{name}: a tool's result needs tool_call_id, the call that it answers")
    if message.tool_calls is not UNSET and message.tool_calls is not None:
        if not isinstance(message.tool_calls, list):
            raise DataError(f"{name}.tool_calls has to be a list")
        _check_json(message.tool_calls, f"{name}.tool_calls", limits.depth)
    metadata(message.metadata, limits, f"{name}.metadata")
    _check_extra(message.extra, f"{name}.extra", limits)
    if message.tokens is not None:
        count(message.tokens, f"{name}.tokens", least=0)
    _check_size(_utf8(lambda: encode_body(message), name), name, limits.message)
    return msgspec.structs.replace(
        message,
        id=message_id,
        digest=digest(message),
        created_at=_utc(message.created_at, name),
        seq=None,
    )


def _from_mapping(given: object, name: str) -> Message:
    if not isinstance(given, Mapping):
        raise DataError(f"{name} is {type(given).__name__}, and has to be a Message or a dict")
    if "role" not in given:
        raise DataError(f"{name} has no role")
    return Message.from_openai(given)


def content(value: object, name: str, limits: Limits) -> None:
    """Check the content of a message: text, a list of parts, or none."""
    if value is None or value is UNSET or isinstance(value, str):
        return
    if not isinstance(value, list):
        raise DataError(f"{name} is {type(value).__name__}: text, a list of parts or None")
    _check_json(value, name, limits.depth)


def replacement(value: object, meta: dict[str, Any] | UnsetType, limits: Limits) -> None:
    """Check what is to stand in the place of a message's content."""
    content(value, "content", limits)
    _check_size(_encoded(value, "content"), "content", limits.message)
    if meta is not UNSET:
        metadata(meta, limits)


def _check_extra(extra: object, name: str, limits: Limits) -> None:
    if not isinstance(extra, dict):
        raise DataError(f"{name} is {type(extra).__name__}, and has to be a dict")
    _check_json(extra, name, limits.depth)
    for key in _FORMAT & extra.keys():
        raise DataError(f"{name} has {key!r}, which is a field of the message itself")


def _utc(moment: object, name: str) -> datetime:
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise DataError(f"{name}.created_at has to be a datetime with its time zone")
    try:
        return moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except OverflowError:
        raise DataError(f"{name}.created_at lies outside of the years 1 to 9999 in UTC") from None


def _check_json(value: object, name: str, depth: int) -> None:
    if value is None or isinstance(value, (str, bool)):
        return
    if isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise DataError(f"{name} has an integer of more than 64 bits: keep it as text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"{name} has {value}, which is not JSON")
    elif isinstance(value, (list, dict)):
        if depth == 0:
            raise DataError(f"{name} is nested too deeply")
        _check_items(value, name, depth)
    else:
        raise DataError(f"{name} has {type(value).__name__}, which is not JSON")


def _check_items(value: list[Any] | dict[Any, Any], name: str, depth: int) -> None:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise DataError(f"{name} has the key {key!r}: keys of JSON are text")
        value = list(value.values())
    for item in value:
        _check_json(item, name, depth - 1)


def _encoded(value: object, name: str) -> bytes:
    return _utf8(lambda: _encoder.encode(value), name)


def _utf8(encode: Callable[[], bytes], name: str) -> bytes:
    with suppress(UnicodeEncodeError):
        return encode()
    # Raised out here, because the suppressed error holds the whole text, and would be our context.
    raise DataError(f"{name} has half of a surrogate pair, which no store can keep")


def _check_size(encoded: bytes, name: str, limit: int) -> None:
    if len(encoded) > limit:
        raise DataError(f"{name} has {len(encoded)} bytes of JSON: {limit} is the most")
