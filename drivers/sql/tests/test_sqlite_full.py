"""When the disk is full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from sqlite_workers import FORKS, fill_disk, fill_file, open_without_room


def outcome(fill: Callable[[str, Connection], None], path: Path) -> dict[str, Any]:
    """Let a process of its own fill the disk, and tell what it met."""
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=fill, args=(f"sqlite:///{path}", sender))
    process.start()
    try:
        assert receiver.poll(40)
        answer: dict[str, Any] = receiver.recv()
        process.join(10)
        assert process.exitcode == 0
    finally:
        process.kill()
    return answer


def check(answer: dict[str, Any], code: str) -> None:
    """Each write past the end is refused whole, reads go on, and so do writes afterwards."""
    assert answer["refused"] == [("CapacityError", code, False, False)] * 8
    assert answer["stored"] > 5
    assert answer["read"] == answer["stored"]
    assert answer["sessions"] == 1
    assert answer["afterwards"] == answer["stored"] + 1


def test_no_more_room_for_the_file(path: Path) -> None:
    """At the limit of a file's size an append is a `CapacityError`, and nothing else is lost."""
    check(outcome(fill_file, path), "SQLITE_IOERR_WRITE")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a file system")
    yield directory
    subprocess.run(["/bin/umount", str(directory)], check=True)


def test_no_more_room_on_the_disk(small_disk: Path) -> None:
    """On a full disk an append is a `CapacityError`, and nothing else is lost."""
    check(outcome(fill_disk, small_disk / "agents.db"), "SQLITE_FULL")


def test_no_room_for_the_tables(path: Path) -> None:
    """A new file that finds no room is refused as such, and opened when there is some."""
    answer = outcome(open_without_room, path)
    assert answer == {"refused": "CapacityError SQLITE_IOERR_WRITE", "afterwards": None}
