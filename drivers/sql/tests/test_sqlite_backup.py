"""Copies of a database that is in use."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agentstore import Message, connect

pytestmark = pytest.mark.asyncio


def vacuum_into(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("VACUUM INTO ?", [str(target)])


def backup(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other, pages=5)


@pytest.mark.parametrize("copy", [vacuum_into, backup])
async def test_a_copy_of_a_file_in_use_is_one_moment_of_it(
    url: str, path: Path, tmp_path: Path, copy: Callable[[Path, Path], None]
) -> None:
    """A copy made while tasks append is a store that opens, and the beginning of each session."""
    target = tmp_path / "copy.db"
    sent = {f"s{number}": [f"{number}-{place}" for place in range(100)] for number in range(4)}
    halfway = threading.Event()

    async def converse(session: str) -> None:
        for place, message_id in enumerate(sent[session]):
            message = Message(role="user", content="x" * 1000, id=message_id)
            await database.conversations.append(session, [message])
            if place == 50:
                halfway.set()

    def copy_meanwhile() -> None:
        assert halfway.wait(20)
        copy(path, target)

    async with connect(url) as database:
        copying = asyncio.create_task(asyncio.to_thread(copy_meanwhile))
        await asyncio.gather(*(converse(session) for session in sent))
        await copying
    async with connect(f"sqlite:///{target}") as copied:
        for session, ids in sent.items():
            found = [message.id for message in await copied.conversations.read(session)]
            assert found == ids[: len(found)]
            assert len(found) > 40
            known = await copied.conversations.get(session)
            assert known is not None
            assert known.message_count == len(found)


async def test_a_copy_of_the_file_alone_lacks_the_newest(
    url: str, path: Path, tmp_path: Path
) -> None:
    """What `cp` takes of a file in use is not the database: messages are in its log."""
    async with connect(url) as database:
        await database.conversations.append("s", [Message(role="user", content="x")])
        copied = tmp_path / "copied.db"
        copied.write_bytes(path.read_bytes())  # noqa: ASYNC240 - a small file
        async with connect(f"sqlite:///{copied}") as copy:
            assert len(await database.conversations.read("s")) == 1
            assert len(await copy.conversations.read("s")) == 0
