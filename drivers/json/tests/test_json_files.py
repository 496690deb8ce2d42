"""The files themselves: their names, their modes, what they hold, and where they may lie."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from agentstore import ConfigurationError, Database, Message, connect
from agentstore.driver import TOMBSTONE_AGE, now
from agentstore.errors import DataError

pytestmark = pytest.mark.asyncio

FileOf = Callable[..., Path]


def said(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def tree(base: Path, pattern: str = "**/*") -> list[Path]:
    return sorted(base.glob(pattern))


def bytes_under(base: Path) -> bytes:
    return b"".join(path.read_bytes() for path in tree(base) if path.is_file())


async def test_only_the_owner_can_read(base: Path, url: str) -> None:
    """Directories are 0700 and files 0600, whatever the umask."""
    umask = os.umask(0)
    try:
        async with connect(url) as database:
            await database.conversations.append("s", said("hello"))
            await database.conversations.rewind("s", to=0)
            await database.state.app().put("key", 1)
    finally:
        os.umask(umask)
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in [base, *tree(base)]}
    assert modes == {(True, 0o700), (False, 0o600)}


async def test_no_id_becomes_a_name(base: Path, url: str) -> None:
    """Names are hashes: no id leaves the directory, meets another one's file or shows itself."""
    ids = ["../escape", "/etc/passwd", "..", ".", "CON", "a" * 512, "Abc", "abc", "é", "e\u0301"]
    async with connect(url) as database:
        for each in ids:
            await database.conversations.append(each, said(each), user_id=each)
            await database.state.user(each).put(each, each)
        for each in ids:
            assert [m.text for m in await database.conversations.read(each)] == [each]
            found = await database.state.user(each).get(each)
            assert found is not None
            assert found.value == each
    names = [path.name for path in tree(base, "conversations/*/*") + tree(base, "state/*/*/*")]
    assert len(names) == 2 * len(ids)
    assert [name for name in names if not re.fullmatch(r"[0-9a-f]{64}\.jsonl?", name)] == []
    assert {path.name for path in base.parent.iterdir()} == {base.name}


async def test_people_can_read_it(url: str, file_of: FileOf) -> None:
    """A line is a JSON object; a message's body stands in it as JSON and not as escaped text."""
    async with connect(url) as database:
        await database.conversations.append("s", said("Grüße, 世界"), user_id="ann", agent="helper")
        await database.conversations.update("s", title="Greetings")
    head, batch, change = map(json.loads, file_of("s").read_text().splitlines())
    assert (head["session_id"], head["user_id"], head["agent"]) == ("s", "ann", "helper")
    assert batch["messages"][0]["body"] == {"role": "user", "content": "Grüße, 世界"}
    assert change == {"title": "Greetings"}
    assert "Grüße, 世界" in file_of("s").read_text()


async def test_what_is_taken_back_is_gone(base: Path, url: str, database: Database) -> None:
    """After a replace, a rewind, a delete or a new value, the old bytes are in no file."""
    conversations, state = database.conversations, database.state.user("ann")
    first = said("secret-1")
    await conversations.append("s", [*first, *said("kept"), *said("secret-2")])
    await conversations.append("gone", said("secret-3"), user_id="secret-4")
    for key in ("a", "b"):
        await state.put(key, "secret-5")
    assert all(b"secret-%d" % n in bytes_under(base) for n in range(1, 6))
    await conversations.replace("s", first[0].id, content="[removed]")
    await conversations.rewind("s", to=2)
    await conversations.delete("gone")
    await state.put("a", "new")
    await state.delete("b")
    assert b"secret" not in bytes_under(base)
    assert [m.text for m in await conversations.read("s")] == ["[removed]", "kept"]


async def test_purge_forgets_ids(base: Path, database: Database) -> None:
    """What is purged leaves no id behind, in the list of sessions neither."""
    await database.conversations.append("secret-session", said("hello"), ttl=0.001)
    await database.state.session("secret-session").put("secret-key", 1, ttl=0.001)
    await asyncio.sleep(0.002)
    assert await database.conversations.purge_expired() == 2
    assert b"secret-key" not in bytes_under(base)
    # The tombstone of a session stays for a day.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agentstore_json._records.now", lambda: now() + 2 * TOMBSTONE_AGE)
        assert await database.conversations.purge_expired() == 0
    assert b"secret-session" not in bytes_under(base)
    assert tree(base, "*/*/*") == []


async def test_what_a_killed_write_left_goes(base: Path, url: str, file_of: FileOf) -> None:
    """A half-written new file is in nobody's way, and goes with what it was to become."""
    async with connect(url) as database:
        state = database.state.app()
        for key in ("a", "b"):
            await state.put(key, 1)
        await database.conversations.append("s", said("hello"))
    values = tree(base, "state/*/*/*.json")
    for path in (*values, file_of("s"), base / "catalog.jsonl", base / "format.json"):
        path.with_name(f"{path.name}.new").write_bytes(b"secret")
    values[0].unlink()
    async with connect(url) as database:
        assert [item.value for item in await database.state.app().items()] == [1]
        assert await database.conversations.delete("s")
        (base / "catalog.jsonl").unlink()
        (base / "format.json.new").unlink()
        assert list(await database.conversations.sessions()) == []
    assert b"secret" not in bytes_under(base)


async def test_link_is_refused(url: str, file_of: FileOf, tmp_path: Path) -> None:
    """A symbolic link in the place of a file is not followed."""
    async with connect(url) as database:
        await database.conversations.append("s", said("hello"))
    file_of("s").rename(tmp_path / "elsewhere")
    file_of("s").symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    async with connect(url) as database:
        with pytest.raises(DataError, match="is a link"):
            await database.conversations.append("s", said("more"))
    assert (tmp_path / "elsewhere").read_bytes() == before


async def test_moved_value_is_refused(base: Path, database: Database) -> None:
    """A value under another key's or scope's name is an error: what is in the file is checked."""
    await database.state.user("ann").put("a", 1)
    (a,) = tree(base, "state/*/*/*.json")
    await database.state.user("ann").put("b", 2)
    (b,) = {*tree(base, "state/*/*/*.json")} - {a}
    b.write_bytes(a.read_bytes())
    with pytest.raises(DataError, match="holds another value"):
        await database.state.user("ann").get("b")


async def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes and a relative path, four and an absolute one; `%20` is a space."""
    monkeypatch.chdir(tmp_path)
    async with connect("json:///a%20store") as database:
        await database.conversations.append("s", said("hello"))
    async with connect(f"json:///{tmp_path}/a%20store") as database:
        assert [m.text for m in await database.conversations.read("s")] == ["hello"]
    assert (tmp_path / "a store" / "format.json").is_file()


async def test_link_to_the_directory(tmp_path: Path, base: Path, url: str) -> None:
    """The store's own path may be a link: it is resolved when the store is opened."""
    (tmp_path / "link").symlink_to(base)
    async with connect(f"json:///{tmp_path}/link") as database:
        (tmp_path / "link").unlink()
        await database.conversations.append("s", said("hello"))
    assert len(tree(base, "conversations/*/*.jsonl")) == 1


async def test_made_by_many_at_once(tmp_path: Path) -> None:
    """A store that several make at the same time is one store, and refused to none of them."""

    async def make(url: str, session_id: str) -> None:
        async with connect(url) as database:
            await database.conversations.append(session_id, said("hello"))

    ids = [f"s{n}" for n in range(12)]
    for number in range(10):
        url = f"json:///{tmp_path}/store-{number}"
        await asyncio.gather(*(make(url, each) for each in ids))
        async with connect(url) as database:
            listed = await database.conversations.sessions(prefix="")
            assert [session.session_id for session in listed] == sorted(ids)


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("json://host/store", "names a host"),
        ("json:///", "names no directory"),
        ("json://", "names no directory"),
        ("json:///a%00b", "names no directory"),
        ("json:///{base}/missing/store", "is missing"),
        ("json:///{base}/a-file", "is a file"),
        ("json:///{base}/a-file/store", "is missing"),
        ("json:///{base}", r"is no store, and not empty \('a-file'\)"),
        ("json:///{base}/newer", "has format 2, .* upgrade it"),
        ("json:///{base}/damaged", "damaged, or not a store's"),
        ("json:///store?timeout=soon", "timeout is 'soon'"),
        ("json:///store?timeout=-1", "timeout is '-1'"),
        ("json:///store?tmeout=1", "did you mean timeout"),
    ],
)
async def test_wrong_url(base: Path, where: str, what: str) -> None:
    """What can't be a store is refused with the reason, and nothing is made or changed."""
    for name, text in (("newer", '{"format": 2}'), ("damaged", "{")):
        (base / name).mkdir(parents=True)
        (base / name / "format.json").write_text(text)
    (base / "a-file").touch()
    before = tree(base)
    with pytest.raises(ConfigurationError, match=what):
        async with connect(where.format(base=base)):
            pass
    assert tree(base) == before
