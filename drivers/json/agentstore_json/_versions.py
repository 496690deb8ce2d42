"""The versions of state."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct
from msgspec.json import Decoder, encode

from . import _files as files
from ._locks import Locks
from ._records import decode

# So many are taken at a time, which spares a write for each.
_LEASE = 1_000


class _Taken(Struct):
    taken: int


_TAKEN = Decoder(_Taken)


class Versions:
    """Numbers of which each is given once, whichever process asks.

    They needn't rise from one process to the next: that they never come again is all there is to
    a version.
    """

    def __init__(self, path: Path, locks: Locks) -> None:
        self._path = path
        self._locks = locks
        self._last = self._end = 0

    def draw(self) -> int:
        """Give a number."""
        with self._locks.hold("versions"):
            if self._last == self._end:
                last = self._taken()
                files.replace(self._path, encode(_Taken(last + _LEASE)) + b"\n")
                self._last, self._end = last, last + _LEASE
            self._last += 1
            return self._last

    def _taken(self) -> int:
        try:
            text = files.read_whole(self._path)
        except FileNotFoundError:
            return 0
        return decode(text, _TAKEN, str(self._path)).taken
