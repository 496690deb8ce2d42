"""Power cuts at every moment, by a model of what a disk may have forgotten.

After each call of the system that changes files, the model notes two things that may be left when
the power is cut now: only what was synced, or all names with half of the bytes that were not.
The store is opened on each of them, and has to be as it was after the last acknowledged call, or
after the one that was under way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentstore import Database, Message, Versioned, connect

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(sys.platform != "linux", reason="tells files by /proc/self/fd"),
]

Image = dict[str, bytes]
"""What a disk holds: the bytes of each file by its path."""

CHANGES = ("write", "ftruncate", "rename", "unlink", "mkdir", "rmdir")


class Disk:
    """What may be left of a directory, at every moment from now on."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.acknowledged = 0
        self.moments: list[tuple[int, Image]] = []
        self._root = root
        # By inode; one that is held open here is not given to another file.
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._held: dict[int, int] = {}
        for name in (*CHANGES, "fsync"):
            patch.setattr(os, name, self._watched(name, getattr(os, name)))
        self._note()

    def acknowledge(self) -> None:
        """Take note that the caller was told of success."""
        self.acknowledged += 1
        self._note()

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as `call` does
            result = call(*arguments, **options)
            if name == "fsync":
                self._sync(arguments[0])
            self._note()
            return result

        return watched

    def _sync(self, fd: int) -> None:
        inode = os.fstat(fd).st_ino
        path = Path(f"/proc/self/fd/{fd}")
        if path.is_dir():
            self._names[inode] = {each.name: each.stat().st_ino for each in path.iterdir()}
        else:
            self._bytes[inode] = path.read_bytes()

    def _note(self) -> None:
        for path in [self._root, *self._root.rglob("*")]:
            inode = path.stat().st_ino
            if inode not in self._held:
                self._held[inode] = os.open(path, os.O_RDONLY)
                if path.is_dir():
                    self._names[inode] = {}
                else:
                    self._bytes[inode] = b""
        for image in (self._synced(self._root.stat().st_ino), self._hasty()):
            if (self.acknowledged, image) not in self.moments:
                self.moments.append((self.acknowledged, image))

    def _synced(self, directory: int, at: str = "") -> Image:
        image: Image = {}
        for name, inode in self._names[directory].items():
            if inode in self._names:
                image |= self._synced(inode, f"{at}{name}/")
            else:
                image[at + name] = self._bytes[inode]
        return image

    def _hasty(self) -> Image:
        image: Image = {}
        for path in self._root.rglob("*"):
            if path.is_file():
                synced, data = self._bytes[path.stat().st_ino], path.read_bytes()
                if data.startswith(synced):
                    synced = data[: (len(synced) + len(data)) // 2]
                image[str(path.relative_to(self._root))] = synced
        return image


def said(*texts: str) -> list[Message]:
    return [Message(role="user", content=text, id=f"id of {text}") for text in texts]


STEPS: list[Callable[[Database], Awaitable[object]]] = [
    lambda db: db.conversations.append("a", said("one", "two")),
    lambda db: db.conversations.append("a", said("three"), ttl=1000),
    lambda db: db.conversations.append("b", said("x"), user_id="ann"),
    lambda db: db.conversations.update("a", title="Title"),
    lambda db: db.conversations.replace("a", "id of two", content="redacted"),
    lambda db: db.conversations.rewind("a", to=2),
    lambda db: db.conversations.append("a", said("four", "five")),
    lambda db: db.conversations.fork("a", "c", upto=4),
    lambda db: db.conversations.delete("b"),
    lambda db: db.conversations.append("b", said("y"), user_id="bob"),
    lambda db: db.conversations.delete("c"),
    lambda db: db.state.app().put("key", 1),
    lambda db: db.state.app().put("key", [2]),
    lambda db: db.state.user("ann").put("key", 3),
    lambda db: db.state.app().delete("key"),
]


async def everything(database: Database) -> dict[str, object]:
    """Show all that can be seen."""
    conversations = database.conversations
    seen: dict[str, object] = {}
    for session_id in "abc":
        session = await conversations.get(session_id)
        history = await conversations.read(session_id)
        seen[session_id] = [(message.seq, message.text) for message in history]
        seen[f"{session_id}?"] = session and (session.title, session.user_id, session.message_count)
    for user_id in (None, "ann", "bob"):
        page = await conversations.sessions(user_id=user_id, prefix="")
        seen[f"sessions of {user_id}"] = [session.session_id for session in page]
    for state in (database.state.app(), database.state.user("ann")):
        seen[f"state {len(seen)}"] = [(item.key, item.value) for item in await state.items()]
    return seen


async def test_power_cuts(tmp_path: Path) -> None:
    """Whenever the power is cut: the store is as it was before or after the call under way."""
    expected = []
    async with connect("memory://") as database:
        for step in (everything, *STEPS):
            await step(database)
            expected.append(await everything(database))
    (tmp_path / "disk").mkdir()
    results = []
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(tmp_path / "disk", patch)
        async with connect(f"json:///{tmp_path}/disk/store") as database:
            for step in STEPS:
                results.append(await step(database))
                disk.acknowledge()
    assert len(disk.moments) > 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        for number, (acknowledged, image) in enumerate(disk.moments):
            url = restore(image, tmp_path / str(number))
            async with connect(url) as database:
                seen = await everything(database)
                assert seen in expected[acknowledged : acknowledged + 2], (acknowledged, image)
                written = await database.state.app().put("key", 4)
            given = [r.version for r in results[:acknowledged] if isinstance(r, Versioned)]
            assert written.version not in given


def restore(image: Image, root: Path) -> str:
    """Lay out what is left, and name the store in it."""
    root.mkdir()
    for name, data in image.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return f"json:///{root}/store"
