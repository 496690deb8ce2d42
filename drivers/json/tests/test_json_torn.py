"""What killed writers and failing disks leave in the files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from agentstore import Database, Message, connect
from agentstore.errors import DataError

pytestmark = pytest.mark.asyncio

FileOf = Callable[..., Path]


def said(*texts: str) -> list[Message]:
    return [Message(role="user", content=text, id=f"id of {text}") for text in texts]


async def texts(database: Database, session_id: str = "s") -> list[str]:
    return [message.text for message in await database.conversations.read(session_id)]


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="agentstore.json")


async def test_torn_tail_at_every_byte(
    url: str, file_of: FileOf, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever a write broke off: what was there is read, the rest is cut off and told of once."""
    async with connect(url) as database:
        await database.conversations.append("s", said("one", "two"))
        file = file_of("s")
        whole = len(file.read_bytes())
        await database.conversations.append("s", said("three", "four"))
    data = file.read_bytes()
    for end in range(whole + 1, len(data)):
        caplog.clear()
        file.write_bytes(data[:end])
        async with connect(url) as database:
            assert await texts(database) == ["one", "two"]
            result = await database.conversations.append("s", said("three"))
            assert (result.seqs, result.created) == ((3,), (True,))
            assert await texts(database) == ["one", "two", "three"]
        assert [record.getMessage() for record in caplog.records] == [
            f"{file.name}: cut off {end - whole} bytes of a write that was never finished"
        ]


async def test_torn_tail_while_open(
    database: Database, other: Database, file_of: FileOf, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that has the session in memory cuts off what another left, and so do all."""
    await database.conversations.append("s", said("one"))
    assert await texts(other) == ["one"]
    with file_of("s").open("ab") as file:
        file.write(b'{"messages":[{"seq":2')
    await other.conversations.append("s", said("two"))
    assert await texts(database) == ["one", "two"]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("zeros", [1, 20, 60])
async def test_unwritten_part_of_the_last_line(
    url: str, file_of: FileOf, caplog: pytest.LogCaptureFixture, zeros: int
) -> None:
    """A power cut can leave zeros in the last line, newline or not: it was never finished."""
    async with connect(url) as database:
        await database.conversations.append("s", said("one"))
        await database.conversations.append("s", said("two"))
    file = file_of("s")
    data = file.read_bytes()
    file.write_bytes(data[: -zeros - 1] + b"\0" * zeros + b"\n")
    async with connect(url) as database:
        assert await texts(database) == ["one"]
        await database.conversations.append("s", said("three"))
        assert await texts(database) == ["one", "three"]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("line", [1, 2, 3, 4])
@pytest.mark.parametrize("damage", [b"\n", b"\xff", b'"'])
async def test_damaged_line_is_refused(
    url: str, file_of: FileOf, caplog: pytest.LogCaptureFixture, line: int, damage: bytes
) -> None:
    """A line that was whole and can't be read is an error that names it; nothing is skipped."""
    async with connect(url) as database:
        for text in ("one", "two", "three"):
            await database.conversations.append("s", said(text))
        await database.conversations.append("whole", said("fine"))
    file = file_of("s")
    lines = file.read_bytes().splitlines(keepends=True)
    place = lines[line - 1].index(b'id"') + 7
    lines[line - 1] = lines[line - 1][:place] + damage + lines[line - 1][place:]
    file.write_bytes(b"".join(lines))
    async with connect(url) as database:
        for call in (
            database.conversations.read("s"),
            database.conversations.append("s", said("four")),
            database.conversations.delete("s"),
        ):
            with pytest.raises(DataError, match=f"line {line} of .*{file.name}"):
                await call
        assert await texts(database, "whole") == ["fine"]
    assert file.read_bytes() == b"".join(lines)
    assert caplog.records == []


async def test_damage_that_another_wrote_is_told_by_its_line(
    database: Database, file_of: FileOf
) -> None:
    """The line is named by its number in the file, however much of it was read before."""
    for text in ("one", "two"):
        await database.conversations.append("s", said(text))
    with file_of("s").open("ab") as file:
        file.write(b'{"mesages":[]}\n')
    with pytest.raises(DataError, match="line 4 of "):
        await texts(database)


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b'{"file":"'])
async def test_file_without_a_line(url: str, file_of: FileOf, data: bytes) -> None:
    """A file that should be there and has nothing in it is an error, not an absent session."""
    async with connect(url) as database:
        await database.conversations.append("s", said("one"))
    file_of("s").write_bytes(data)
    async with connect(url) as database:
        with pytest.raises(DataError, match=r"\.jsonl has no first line"):
            await texts(database)
    assert file_of("s").read_bytes() == data


async def test_moved_file_is_refused(url: str, file_of: FileOf) -> None:
    """A session under another one's name is an error: the id in the file is checked."""
    async with connect(url) as database:
        await database.conversations.append("a", said("of a"))
        await database.conversations.append("b", said("of b"))
    file_of("b").write_bytes(file_of("a").read_bytes())
    async with connect(url) as database:
        with pytest.raises(DataError, match="holds another session"):
            await texts(database, "b")
