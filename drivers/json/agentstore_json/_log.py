"""A file of JSON lines that grows at its end."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agentstore.errors import DataError

from . import _files as files

_logger = logging.getLogger("agentstore.json")

# The first line begins with a random id, which lies within so many bytes.
_IDENTITY = 64


class Log:
    """A file of lines, and how far it has been read here.

    An append is one write of whole lines and one `fsync`. What a killed writer has left of one is
    cut off by the next who opens the file.
    Every call is made under the file's lock.
    """

    __slots__ = ("_first", "_settled", "end", "lines", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        self.lines = 0
        self._first = b""
        # Whether the file's name is on the disk for certain: whoever made it may have died
        # before that, so that it is not for those who find it.
        self._settled = False

    def pull(self) -> tuple[bool, list[bytes]]:
        """Give the lines that came since the last call.

        True with them means that they are all: the file was not read before, or was replaced.
        Where there is no file, there are no lines, and `end` is 0.
        """
        try:
            with files.opened(self.path, os.O_RDWR) as fd:
                end = self._mend(fd)
                same = files.read(fd, 0, len(self._first)) == self._first and end >= self.end > 0
                start = self.end if same else 0
                data = files.read(fd, start, end)
                # A power cut may leave a part of the last line unwritten, which reads as zeros.
                last = data.rfind(b"\n", 0, -1) + 1
                if b"\0" in data[last:]:
                    self._cut(fd, start + last, end)
                    data = data[:last]
        except FileNotFoundError:
            start, data, same = 0, b"", False
        lines = data.split(b"\n")[:-1]
        if not same:
            self._first, self._settled, self.lines = data[:_IDENTITY], False, 0
        self.end = start + len(data)
        self.lines += len(lines)
        return not same, lines

    def push(self, lines: Sequence[bytes]) -> int:
        """Append lines durably, and tell the size; without any, make durable what is there.

        After a failure nothing of them is there, as far as this process can see; where the disk
        failed to confirm them (`UnsyncedError`), they may yet come back after a power cut.
        """
        data = b"".join(line + b"\n" for line in lines)
        with files.opened(self.path, os.O_RDWR | os.O_APPEND) as fd:
            end = self._mend(fd)
            try:
                files.write(fd, data)
                files.sync(fd)
            except OSError:
                # A sync that failed is not tried again: the next one would succeed for want of
                # anything to write, with the bytes lost.
                with suppress(OSError):
                    os.ftruncate(fd, end)
                raise
        if not self._settled:
            files.sync_directory(self.path.parent)
            self._settled = True
        # Behind lines that were not read here, these are read with them.
        if end == self.end:
            self.end += len(data)
            self.lines += len(lines)
        return end + len(data)

    def replace(self, lines: Sequence[bytes]) -> None:
        """Put these lines in the place of all that were there; the first is to be unique."""
        data = b"".join(line + b"\n" for line in lines)
        files.make_directory(self.path.parent)
        self._settled = False
        files.replace(self.path, data)
        self._first, self._settled = data[:_IDENTITY], True
        self.end, self.lines = len(data), len(lines)

    def remove(self) -> None:
        """Remove the file."""
        files.remove(self.path)
        self.end = 0

    def _mend(self, fd: int) -> int:
        end, size = files.end_of_lines(fd), os.fstat(fd).st_size
        if end == 0:
            raise DataError(f"{self.path} has no first line: it is damaged")
        if end < size:
            self._cut(fd, end, size)
        return end

    def _cut(self, fd: int, end: int, size: int) -> None:
        os.ftruncate(fd, end)
        _logger.warning(
            "%s: cut off %d bytes of a write that was never finished", self.path.name, size - end
        )
