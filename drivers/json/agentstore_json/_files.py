"""What is done to files: durably, privately, and never through a symbolic link."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CHUNK = 1 << 16


class UnsyncedError(OSError):
    """The disk was given a write and didn't confirm it: it may be there or not."""


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open a file for the block; where `flags` make one, it is its owner's alone."""
    fd = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def read(fd: int, start: int, stop: int) -> bytes:
    """Read a part of a file, as far as the file goes."""
    parts = []
    while start < stop and (part := os.pread(fd, stop - start, start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def write(fd: int, data: bytes) -> None:
    """Write all of `data`, in one call of the system where it takes that much."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def read_whole(path: Path) -> bytes:
    """Read a file."""
    with opened(path, os.O_RDONLY) as fd:
        return read(fd, 0, os.fstat(fd).st_size)


def end_of_lines(fd: int) -> int:
    """Tell where the last whole line of a file ends, 0 where there is none."""
    place, step = os.fstat(fd).st_size, 1
    while place:
        start = max(0, place - step)
        newline = read(fd, start, place).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        place, step = start, _CHUNK
    return 0


def sync(fd: int) -> None:
    """Wait until the disk has what was written."""
    try:
        os.fsync(fd)
    except OSError as failure:
        raise UnsyncedError(failure.errno, failure.strerror) from None


def sync_directory(path: Path) -> None:
    """Wait until the disk has the names in a directory."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        sync(fd)


def make_directory(path: Path) -> None:
    """Make a directory, unless it is there."""
    with suppress(FileExistsError):
        path.mkdir(0o700)
        sync_directory(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Put a file in the place of the one at `path`: at every moment one of the two is there."""
    new = _new(path)
    try:
        with opened(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
            write(fd, data)
            os.fsync(fd)
        new.rename(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove a file, and what a `replace` that was killed has left of it."""
    for one in (path, _new(path)):
        one.unlink(missing_ok=True)
    with suppress(FileNotFoundError):  # nothing was ever written there
        sync_directory(path.parent)


def _new(path: Path) -> Path:
    return path.with_name(path.name + ".new")
