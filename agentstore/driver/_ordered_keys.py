"""How conversations and state lie in an ordered engine.

A key is a letter for its space, 32 bytes of `key_hash`, and what sorts within those.
Numbers in keys are 16 hexadecimal digits, so that they sort as they count; values are JSON.

::

    space      hash of                   then           value
    s session  tenant, session                          Record
    m message  tenant, session           seq            Row
    i id       tenant, session           hash of id     Known
    v value    tenant, kind, owner, key                 Value
    c counter  tenant                                   the version drawn last

    space      hash of                   then a name, in order
    n newest   tenant or tenant, user    2**63 - 1 - touched, session
    b by id    tenant or tenant, user    session
    k keys     tenant, kind, owner       key
    x expiry   tenant                    expires, key of a session or a value
    g graves   tenant                    deleted, key of a session
    r rest     key that was cut          the rest of a name

The spaces of the second table are indexes: sets of names.
An id may be longer than a key, so a name is cut after 272 bytes, and its rest is a name in a set
of the cut key's own.
The cut key counts these rests, and goes with the last of them.
Thus ids sort exactly by their bytes, and no key has more than 305 of them.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, cast

import msgspec

from ..errors import DataError
from ._clock import now
from ._rows import plain

SESSION, MESSAGE, ID, VALUE, COUNTER = b"s", b"m", b"i", b"v", b"c"
NEWEST, BY_ID, KEYS, EXPIRY, GRAVES, _REST = b"n", b"b", b"k", b"x", b"g", b"r"

DIGITS = 16
_CUT = 272  # more than half of the longest name: digits and an id
_PLACE = 33  # a space and a hash

_encoder = msgspec.json.Encoder(enc_hook=plain)

T = TypeVar("T")

Names = set[tuple[bytes, str]]
"""What an object is found by: pairs of an index and a name in it."""


class Transaction(Protocol):
    """What an engine with ordered keys has to offer, for the time of one transaction.

    Keys have at most 511 bytes, and sort as Python sorts them.
    Values are at most 32 KiB longer than twice the largest message, or than the largest value of
    state or metadata.
    """

    def get(self, key: bytes) -> bytes | None:
        """Read one value, `None` where there is none."""

    def put(self, key: bytes, value: bytes) -> None:
        """Write one value, over the one that is there."""

    def delete(self, key: bytes) -> None:
        """Delete one value, if there is one."""

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Walk over what lies in `start <= key < stop`, from the other end where `reverse`.

        `start` is below `stop`.
        The walk may be left at any point, so nothing should be read far ahead; others may begin
        before it ends.
        """


class Batch:
    """A transaction in two halves: first all reads, then all writes.

    What is written waits for `flush`. So work that fails has written nothing, an engine needs
    neither rollback for it nor sight of its own writes, and no walk meets a change.
    Only `get` sees what waits; no work walks over what it wrote.
    """

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._waiting: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """Read one value."""
        return self._waiting[key] if key in self._waiting else self._tx.get(key)

    def load(self, key: bytes, kind: type[T]) -> T | None:
        """Read one value as what it was written from."""
        text = self.get(key)
        return None if text is None else parse(text, kind)

    def put(self, key: bytes, value: object) -> None:
        """Write one value, as JSON."""
        self._waiting[key] = _encoder.encode(value)

    def delete(self, key: bytes) -> None:
        """Delete one value."""
        self._waiting[key] = None

    def clear(self, prefix: bytes) -> None:
        """Delete everything under a prefix."""
        for key, _ in self.scan(prefix, end(prefix)):
            self.delete(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Walk over a range, which may be empty or upside down."""
        return self._tx.scan(start, stop, reverse=reverse) if start < stop else iter(())

    def flush(self) -> None:
        """Write everything that waits."""
        for key, value in self._waiting.items():
            if value is None:
                self._tx.delete(key)
            else:
                self._tx.put(key, value)


_decoders: dict[type, msgspec.json.Decoder[Any]] = {}
_making = threading.Lock()


def parse(text: bytes, kind: type[T]) -> T:
    """Read what `Batch.put` wrote; `DataError` where it is damaged."""
    decoder = _decoders.get(kind)
    if decoder is None:
        # Two threads that decode into a new type at once crash the interpreter (msgspec 0.22).
        with _making:
            decoder = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    try:
        return cast("T", decoder.decode(text))
    except msgspec.DecodeError:
        raise DataError(f"a stored {kind.__name__} is damaged: it is not readable") from None


def digits(number: int) -> str:
    """Write a number so that it sorts as it counts."""
    return f"{number:0{DIGITS}x}"


def end(prefix: bytes) -> bytes:
    """Give the first key behind all that begin with `prefix`."""
    # 0xff has no successor, so it is the byte before that goes up; the letter in front always can.
    prefix = prefix.rstrip(b"\xff")
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def reindex(tx: Batch, old: Names, new: Names) -> None:
    """Make what was found by the `old` names found by the `new` ones."""
    for index, name in old - new:
        _change(tx, index, name, -1)
    for index, name in new - old:
        _change(tx, index, name, +1)


def _change(tx: Batch, index: bytes, name: str, by: int) -> None:
    text = name.encode()
    key = index + text[:_CUT]
    if len(text) >= _CUT:
        _set(tx, _rests(key) + text[_CUT:], by)
        by += tx.load(key, int) or 0
    _set(tx, key, by)


def _set(tx: Batch, key: bytes, count: int) -> None:
    if count > 0:
        tx.put(key, count)
    else:
        tx.delete(key)


def _rests(key: bytes) -> bytes:
    return _REST + hashlib.sha256(key).digest()


def names(tx: Batch, index: bytes, *, prefix: str = "", after: str = "") -> Iterator[str]:
    """List the names of an index that begin with `prefix` and come behind `after`."""
    wanted = prefix.encode()
    start = max(wanted, after.encode() + b"\0") if after else wanted
    for key, _ in tx.scan(index + start[:_CUT], end(index + wanted[:_CUT])):
        head = key[_PLACE:]
        if len(head) < _CUT:
            yield head.decode()
            continue
        rests = _rests(key)
        first = start[_CUT : 2 * _CUT] if head == start[:_CUT] else b""
        for rest, _ in tx.scan(rests + first, end(rests + wanted[_CUT:])):
            yield (head + rest[_PLACE:]).decode()


def due(tx: Batch, index: bytes, *, age: int = 0) -> Iterator[bytes]:
    """List the keys whose moment in an index has come, `age` later."""
    latest = digits(now() - age)
    for name in names(tx, index):
        if name[:DIGITS] > latest:
            return
        yield bytes.fromhex(name[DIGITS:])


def page(
    listed: Iterator[str], find: Callable[[str], T | None], limit: int
) -> tuple[list[T], bool]:
    """Take what is found by the first names, and tell whether there is more."""
    found: list[T] = []
    for name in listed:
        item = find(name)
        if item is not None and len(found) == limit:
            return found, True
        if item is not None:
            found.append(item)
    return found, False


def is_past(moment: int | None) -> bool:
    """Tell whether something has expired."""
    return moment is not None and moment <= now()


def expiry(ttl: float | None) -> int | None:
    """Tell when something expires that has this time to live from now on."""
    return None if ttl is None else now() + round(ttl * 1_000_000)
